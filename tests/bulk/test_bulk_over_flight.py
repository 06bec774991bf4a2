"""Old data as clients send it: plain Arrow Flight, the SDK, the importer; and what kills leave."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

import tickflight
from flight_server import bulk_writes
from flight_server.identity import Scope
from ingest.files import ImportOutcome, import_ticks, importing
from tests.flight_server.conftest import (
    REPOSITORY,
    Caller,
    House,
    Server,
    caller_at,
    new_key,
    serving,
    ticks,
    told,
)

SECOND = 1_000_000
FAR = 1_600_000_000 * SECOND
SPAN = (FAR, FAR + 86_400 * SECOND)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


def old(symbol: str, count: int, first: int = 1) -> pa.RecordBatch:
    """Ticks of 2020, numbered from ``first``, a second apart."""
    instants = [FAR + (first + i) * SECOND for i in range(count)]
    return ticks(
        count,
        symbol=symbol,
        ts_event=instants,
        ts_recv=instants,
        sequence=list(range(first, first + count)),
        source="import",
    )


def numbers(caller: Caller, symbol: str) -> list[int]:
    asked = {"op": "range", "dataset": "ticks", "symbols": [symbol], "columns": ["sequence"]}
    table = caller.get({**asked, "start": SPAN[0], "end": SPAN[1]})
    return list(table["sequence"].to_pylist())


class TestPlainClients:
    def test_a_path_of_three_goes_past_memory(self, house: House) -> None:
        caller = house.caller()
        stream = caller.open(old("AAA", 1).schema, "ticks", "bulk", "aaa-2020")
        stream.write(old("AAA", 3))
        stream.write(old("AAA", 2, first=4))
        assert stream.finish() == {"seq": 2, "rows": 5, "quarantined": 0, "duplicates": 0}
        assert numbers(caller, "AAA") == [1, 2, 3, 4, 5]
        assert "ticks" not in caller.act("status")["datasets"]

    def test_numbered_batches_carry_the_name_of_the_job(self, house: House) -> None:
        caller = house.caller()
        stream = caller.open(old("BBB", 1).schema, "ticks", "bulk", "bbb")
        stream.write(old("BBB", 3), "bbb", 1)
        assert stream.finish()["seq"] == 1
        wrong = caller.open(old("BBB", 1).schema, "ticks", "bulk", "bbb")
        wrong.write(old("BBB", 3, first=4), "somebody", 2)
        with pytest.raises(flight.FlightServerError, match="name as their producer"):
            wrong.finish()

    def test_a_jump_says_what_comes_next(self, house: House) -> None:
        stream = house.caller().open(old("BBC", 1).schema, "ticks", "bulk", "bbc")
        stream.write(old("BBC", 3), "bbc", 3)
        with pytest.raises(flight.FlightServerError) as caught:
            stream.finish()
        assert told(caught.value) == {"code": "sequence", "expected": 1}

    def test_it_takes_the_scope_to_write(self, house: House) -> None:
        stream = house.caller(Scope.READ_HISTORY).open(old("CCC", 1).schema, "ticks", "bulk", "c")
        with pytest.raises(flight.FlightUnauthorizedError, match="write"):
            stream.finish()

    def test_other_paths_are_told_what_there_is(self, house: House) -> None:
        stream = house.caller().open(old("CCC", 1).schema, "ticks", "fast", "c")
        with pytest.raises(flight.FlightServerError, match="'bulk'") as caught:
            stream.finish()
        assert told(caught.value) == {"code": "invalid_argument", "field": "path"}

    def test_there_are_so_many_jobs_at_once(self, house: House) -> None:
        assert house.service._server is not None
        places = house.service._server._rooms.writes._bulk._places
        with ExitStack() as taken:
            for _ in range(bulk_writes.JOBS_MAX):
                taken.enter_context(places)
            refused = house.caller().open(old("DDD", 1).schema, "ticks", "bulk", "one-more")
            with pytest.raises(flight.FlightUnavailableError, match="jobs are running"):
                refused.finish()


class TestSdk:
    def test_rows_are_there_when_the_block_ends(self, house: House) -> None:
        with client(house) as asking:
            with asking.bulk("ticks", "eee") as writer:
                writer.write(old("EEE", 3))
                writer.write(pa.Table.from_batches([old("EEE", 2, first=4)]))
            assert (writer.stats.rows_durable, writer.stats.seq) == (5, 2)
            assert asking.ticks("EEE", *SPAN).arrow().num_rows == 5

    def test_sent_again_it_adds_nothing(self, house: House) -> None:
        with client(house) as asking:
            for expected in (3, 0):
                with asking.bulk("ticks", "eef") as writer:
                    writer.write(old("EEF", 3))
                assert writer.stats.rows_durable == expected
            assert asking.ticks("EEF", *SPAN).arrow().num_rows == 3

    def test_a_refusal_says_why(self, house: House) -> None:
        with client(house) as asking:
            writer = asking.bulk("gaps", "eeg")
            rows = [{"ts_event": FAR}]
            with pytest.raises(tickflight.InvalidRequestError):
                writer.write(rows)
            with (
                pytest.raises(tickflight.SequenceError) as caught,
                asking.bulk("ticks", "eeg", first_seq=7) as late,
            ):
                late.write(old("EEG", 1))
            assert caught.value.expected == 1

    def test_a_closed_writer_takes_nothing(self, house: House) -> None:
        with client(house) as asking:
            writer = asking.bulk("ticks", "eeh")
            writer.close()
            with pytest.raises(tickflight.WriterClosedError):
                writer.write(old("EEH", 1))


class TestImporter:
    def test_a_large_old_file_goes_past_memory_and_goes_on_after_a_failure(
        self, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importing, "BULK_ROWS_MIN", 100)
        monkeypatch.setattr(importing, "BATCH_ROWS", 40)
        path = tmp_path / "fff.parquet"
        instants = pa.array([FAR + i * SECOND for i in range(130)], pa.timestamp("us", "UTC"))
        prices = pa.array([100.0 + i % 7 for i in range(130)])
        rows = {"ts_event": instants, "price": prices, "size": pa.array([1.0] * 130)}
        pq.write_table(pa.table(rows), path)
        with client(house) as asking:
            with monkeypatch.context() as broken:
                broken.setattr(importing, "_sent", fails_at(80))
                with pytest.raises(InterruptedError):
                    import_ticks(asking, [path], symbol="FFF")
            (report,) = import_ticks(asking, [path], symbol="FFF")
            assert report.outcome is ImportOutcome.RESUMED
            assert report.first_row in (40, 80)
            assert asking.ticks("FFF", *SPAN).arrow()["price"].to_pylist() == prices.to_pylist()
            assert asking.symbols("ticks")[-1].symbol == "FFF"
            (again,) = import_ticks(asking, [path], symbol="FFF")
            assert again.outcome is ImportOutcome.ALREADY_IMPORTED
        assert "ticks" not in house.caller().act("status")["datasets"]


class TestKills:
    def test_a_client_that_is_killed_leaves_nothing(self, house: House) -> None:
        key = house.keys.create("model", scopes=list(Scope)).key
        script = """
            import os, sys, tickflight
            from tests.bulk.test_bulk_over_flight import old
            writer = tickflight.connect(sys.argv[1], sys.argv[2]).bulk("ticks", "ggg")
            for number in range(5):
                writer.write(old("GGG", 3, first=1 + 3 * number))
            os.kill(os.getpid(), 9)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), house.service.uri, key]
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path})
        caller = house.caller()
        assert numbers(caller, "GGG") == []
        with client(house) as asking, asking.bulk("ticks", "ggg") as writer:
            for number in range(6):
                writer.write(old("GGG", 3, first=1 + 3 * number))
        assert numbers(caller, "GGG") == list(range(1, 19))

    @pytest.mark.slow
    def test_a_server_that_is_killed_has_each_row_once(self, tmp_path: Path) -> None:
        key, server = new_key(tmp_path), Server(tmp_path)
        batches = [old("HHH", 100, first=1 + 100 * number) for number in range(8)]
        try:
            for upto in (3, 8):
                caller = caller_at(server.uri, key)
                stream = caller.open(batches[0].schema, "ticks", "bulk", "hhh")
                for batch in batches[:upto]:
                    stream.write(batch)
                assert stream.finish()["seq"] == upto
                cut = caller.open(batches[0].schema, "ticks", "bulk", "hhh")
                for batch in batches[: upto + 1]:
                    cut.write(batch)
                server.kill()
                with pytest.raises((flight.FlightError, pa.ArrowException)):
                    cut.finish()
                server = Server(tmp_path)
                caller = caller_at(server.uri, key)
                assert numbers(caller, "HHH") == list(range(1, 100 * upto + 1))
        finally:
            server.kill()


def client(house: House) -> tickflight.Client:
    key = house.keys.create("model", scopes=list(Scope)).key
    return tickflight.connect(house.service.uri, key)


def fails_at(row: int) -> Any:
    sent = importing._sent

    def failing(file: Any, rows: int) -> Any:
        if rows == row:
            raise InterruptedError
        return sent(file, rows)

    return failing
