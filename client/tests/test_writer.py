"""The writer against a real server over a real socket."""

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyarrow import flight

import tickflight
from tickflight import engine, supervisor
from tickflight.records import Title
from tickflight.testing import FakeServer, Fate

Ticks = Callable[..., pa.RecordBatch]
Eventually = Callable[[Callable[[], object]], None]


def sequences(server: FakeServer) -> list[int]:
    return list(server.rows("ticks")["sequence"].to_pylist())


def error(code: str, **extra: Any) -> flight.FlightServerError:
    fields = "".join(f',"{name}":{value}' for name, value in extra.items())
    return flight.FlightServerError(f"refused: {code}", f'{{"code":"{code}"{fields}}}'.encode())


def write_for_ever(writer: tickflight.Writer, ticks: Ticks, *, timeout: float | None) -> None:
    for first in itertools.count(0, 100):
        writer.write(ticks(first, 100), timeout=timeout)


class TestRowsArrive:
    def test_flush_returns_when_every_row_is_on_the_server(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks") as writer:
            for first in range(0, 1_000, 10):
                writer.write(ticks(first, 10))
            writer.flush()
            assert sequences(server) == list(range(1_000))
            stats = writer.stats
        assert stats.rows_written == stats.rows_durable == 1_000
        assert (stats.reconnects, stats.last_failure) == (0, None)

    def test_rows_written_while_others_are_in_flight_share_a_batch(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        server.acks.clear()
        with client.writer("ticks") as writer:
            for first in range(500):
                writer.write(ticks(first))
            server.acks.set()
            writer.flush()
            assert server.durable(writer.producer) < 100
        assert sequences(server) == list(range(500))

    def test_a_table_of_many_chunks_is_written_in_order(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        table = pa.Table.from_batches([ticks(0, 70_000), ticks(70_000, 5), ticks(70_005, 70_000)])
        with client.writer("ticks") as writer:
            writer.write(table)
        assert sequences(server) == list(range(140_005))

    def test_dictionaries_travel_as_they_are_and_are_merged_when_they_differ(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        server.acks.clear()
        with client.writer("ticks") as writer:
            for first, symbol in enumerate(["MNQ", "NQ", "MNQ", "SPY"]):
                batch = ticks(first, 1, symbol)
                encoded = batch["symbol"].dictionary_encode()
                writer.write(batch.set_column(1, "symbol", encoded))
            server.acks.set()
        assert server.rows("ticks")["symbol"].to_pylist() == ["MNQ", "NQ", "MNQ", "SPY"]

    def test_a_change_of_columns_goes_on_in_a_new_stream(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks") as writer:
            writer.write(ticks(0))
            writer.write(ticks(1).drop_columns(["bid"]))
            writer.write(ticks(2))
        assert sequences(server) == [0, 1, 2]
        assert server.streams == 3

    def test_frames_and_dicts_are_written_like_tables(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks") as writer:
            writer.write(pl.DataFrame(ticks(0, 2)))
            writer.write(ticks(2, 2).to_pandas())
            row = {"symbol": "MNQ", "price": 1, "size": 2, "sequence": 4}
            writer.write([row | {"ts_event": 1_700_000_000_000_000}])
            writer.write([row | {"ts_event": datetime(2025, 1, 1, tzinfo=UTC), "sequence": 5}])
        assert sequences(server) == list(range(6))

    @pytest.mark.parametrize(
        ("rows", "field"),
        [
            ([{"symbol": "MNQ", "prize": 1.0}], "prize"),
            ([{"symbol": "MNQ"}], "ts_event"),
            ([{"ts_event": datetime(2025, 1, 1)}], "ts_event"),  # noqa: DTZ001 - the point
            ([{"ts_event": "yesterday"}], None),
            (7, None),
        ],
    )
    def test_rows_that_do_not_fit_are_refused_where_they_are_written(
        self, client: tickflight.Client, rows: Any, field: str | None
    ) -> None:
        with client.writer("ticks") as writer:
            with pytest.raises(tickflight.InvalidRequestError) as caught:
                writer.write(rows)
            assert caught.value.field == field
            assert writer.stats.rows_written == 0

    def test_nothing_is_sent_for_no_rows(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks") as writer:
            writer.write(ticks(0, 0))
            writer.write(ticks(0, 0).to_pylist())
            writer.flush()
        assert server.streams == 0

    def test_many_threads_may_write(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks") as writer:

            def write(lane: int) -> None:
                for number in range(100):
                    writer.write(ticks(lane * 1_000 + number))

            threads = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        arrived = sequences(server)
        for lane in range(4):
            of_lane = [one for one in arrived if one // 1_000 == lane]
            assert of_lane == list(range(lane * 1_000, lane * 1_000 + 100))


class TestLostConnections:
    @pytest.mark.parametrize("fate", [Fate.DROP, Fate.TAKE_AND_DROP])
    @pytest.mark.parametrize("good", [0, 1, 7])
    def test_each_row_arrives_once_though_the_stream_breaks(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks, fate: Fate, good: int
    ) -> None:
        server.script.extend([Fate.TAKE] * good + [fate, Fate.TAKE, fate])
        with client.writer("ticks") as writer:
            for first in range(0, 300, 10):
                writer.write(ticks(first, 10))
                time.sleep(0.001)
            writer.flush(20)
            assert writer.stats.reconnects == 2
        assert sequences(server) == list(range(300))

    def test_lost_acks_do_not_double_rows(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks, eventually: Eventually
    ) -> None:
        server.acks.clear()
        with client.writer("ticks") as writer:
            writer.write(ticks(0, 10))
            eventually(lambda: server.durable(writer.producer) == 1)
            server.script.append(Fate.TAKE_AND_DROP)
            writer.write(ticks(10, 10))
            eventually(lambda: writer.stats.reconnects == 1)
            server.acks.set()
            writer.flush(20)
            assert writer.stats.rows_duplicate > 0
        assert sequences(server) == list(range(20))

    def test_a_busy_server_is_asked_again(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        busy = flight.FlightUnavailableError("busy")
        server.script.extend([busy, busy, error("internal"), error("cancelled")])
        with client.writer("ticks") as writer:
            writer.write(ticks(0))
            writer.flush(20)
        assert sequences(server) == [0]

    def test_silence_counts_as_a_lost_connection(
        self,
        server: FakeServer,
        client: tickflight.Client,
        ticks: Ticks,
        monkeypatch: pytest.MonkeyPatch,
        eventually: Eventually,
    ) -> None:
        monkeypatch.setattr(supervisor, "ACK_TIMEOUT_SECONDS", 0.3)
        server.acks.clear()
        with client.writer("ticks") as writer:
            writer.write(ticks(0, 3))
            eventually(lambda: writer.stats.reconnects >= 1)
            assert "no ack" in str(writer.stats.last_failure)
            server.acks.set()
            writer.flush(20)
        assert sequences(server) == [0, 1, 2]

    @pytest.mark.parametrize("spooled", [False, True])
    def test_rows_survive_a_server_that_is_killed_and_comes_back(
        self, server_process: Any, ticks: Ticks, tmp_path: Path, *, spooled: bool
    ) -> None:
        client = tickflight.connect(server_process.uri, server_process.api_key)
        spool = tmp_path / "spool" if spooled else None
        with client, client.writer("ticks", spool=spool) as writer:
            for round_number in range(3):
                for first in range(100):
                    writer.write(ticks(round_number * 100 + first))
                    if first == 50:
                        server_process.kill()
                server_process.start()
                writer.flush(20)
            assert writer.stats.reconnects >= 3
            answer = client.range("ticks", "MNQ", 0).arrow()
        assert answer["sequence"].to_pylist() == list(range(300))

    def test_a_frozen_server_that_thaws_gets_each_row_once(
        self, server_process: Any, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervisor, "ACK_TIMEOUT_SECONDS", 0.5)
        client = tickflight.connect(server_process.uri, server_process.api_key)
        with client, client.writer("ticks") as writer:
            writer.write(ticks(0, 10))
            writer.flush(20)
            server_process.signal(signal.SIGSTOP)
            for first in range(10, 200):
                writer.write(ticks(first))
            with pytest.raises(tickflight.DeadlineError, match="not durable yet"):
                writer.flush(1.5)
            server_process.signal(signal.SIGCONT)
            writer.flush(30)
            answer = client.range("ticks", "MNQ", 0).arrow()
        assert answer["sequence"].to_pylist() == list(range(200))

    def test_a_lost_server_is_logged_once_and_its_return_as_well(
        self,
        server: FakeServer,
        client: tickflight.Client,
        ticks: Ticks,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.script.extend([Fate.DROP] * 3)
        with caplog.at_level(logging.INFO, "tickflight"), client.writer("ticks") as writer:
            writer.write(ticks(0))
            writer.flush(20)
        levels = [record.levelname for record in caplog.records]
        assert levels == ["WARNING", "INFO"]


class TestFakeServer:
    def test_it_takes_a_batch_once_and_none_before_its_turn(
        self, server: FakeServer, ticks: Ticks
    ) -> None:
        title = Title("feed", "ticks")
        assert server.append(title, 1, ticks(0))
        assert not server.append(title, 1, ticks(0))
        with pytest.raises(flight.FlightServerError, match="batch 2 was expected"):
            server.append(title, 3, ticks(2))
        assert server.rows("ticks").num_rows == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("refusal", "kind"),
        [
            (flight.FlightUnauthenticatedError("revoked"), tickflight.AuthenticationError),
            (flight.FlightUnauthorizedError("no scope write"), tickflight.PermissionDeniedError),
            (error("invalid_argument", field='"price"'), tickflight.InvalidRequestError),
            (error("limit"), tickflight.LimitError),
            (error("sequence", expected=77), tickflight.SequenceError),
        ],
    )
    def test_what_trying_again_cannot_mend_is_raised_by_every_call_after(
        self,
        server: FakeServer,
        client: tickflight.Client,
        ticks: Ticks,
        refusal: flight.FlightError,
        kind: type[tickflight.TickflightError],
    ) -> None:
        server.script.append(refusal)
        writer = client.writer("ticks")
        writer.write(ticks(0))
        calls: list[Callable[[], None]] = [
            writer.flush,
            partial(writer.write, ticks(1)),
            writer.close,
        ]
        for call in calls:
            with pytest.raises(kind):
                call()
        assert server.streams == 1

    def test_a_wrong_key_is_an_authentication_error_that_does_not_show_the_key(
        self, server: FakeServer, ticks: Ticks
    ) -> None:
        with tickflight.connect(server.uri, "tf_wrong_hush") as client:
            writer = client.writer("ticks")
            writer.write(ticks(0))
            with pytest.raises(tickflight.AuthenticationError) as caught:
                writer.close()
        for shown in (repr(caught.value), str(caught.value), repr(writer), repr(client)):
            assert "hush" not in shown

    def test_a_sequence_error_within_what_is_kept_is_mended_by_sending_again(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        server.script.append(error("sequence", expected=1))
        with client.writer("ticks") as writer:
            writer.write(ticks(0, 5))
            writer.flush(20)
        assert sequences(server) == [0, 1, 2, 3, 4]

    def test_two_that_fight_over_a_producer_do_not_fight_for_ever(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        server.script.extend([error("sequence", expected=1)] * 50)
        writer = client.writer("ticks")
        writer.write(ticks(0))
        with pytest.raises(tickflight.SequenceError):
            writer.flush(20)
        assert server.streams == engine.MAX_REWINDS + 1
        with pytest.raises(tickflight.SequenceError):
            writer.close()

    def test_a_producer_id_that_was_used_before_is_refused(
        self, client: tickflight.Client, ticks: Ticks
    ) -> None:
        with client.writer("ticks", producer="import-1") as writer:
            for first in range(3):
                writer.write(ticks(first))
                writer.flush()
        again = client.writer("ticks", producer="import-1")
        again.write(ticks(0))
        with pytest.raises(tickflight.SequenceError) as caught:
            again.close()
        assert caught.value.expected == 4

    def test_an_import_continues_behind_what_the_server_has(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        for number in range(3):
            with client.writer("ticks", producer="import-1", first_seq=number + 1) as writer:
                writer.write(ticks(number))
        assert sequences(server) == [0, 1, 2]


class TestBounds:
    def test_write_waits_for_room_and_says_so_when_there_is_none_in_time(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        server.acks.clear()
        limits = tickflight.WriterLimits(memory_bytes=50_000)
        with client.writer("ticks", limits=limits) as writer:
            with pytest.raises(tickflight.DeadlineError, match="no room"):
                write_for_ever(writer, ticks, timeout=0.2)
            taken = writer.stats.rows_written
            assert 0 < taken < 2_000
            threading.Timer(0.2, server.acks.set).start()
            writer.write(ticks(taken, 100))
        assert sequences(server) == list(range(taken + 100))

    def test_a_batch_larger_than_the_memory_bound_goes_alone(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks
    ) -> None:
        limits = tickflight.WriterLimits(memory_bytes=1)
        with client.writer("ticks", limits=limits) as writer:
            for first in range(5):
                writer.write(ticks(first))
        assert sequences(server) == list(range(5))

    def test_a_closed_writer_takes_nothing(self, client: tickflight.Client, ticks: Ticks) -> None:
        writer = client.writer("ticks")
        writer.close()
        writer.close()
        with pytest.raises(tickflight.WriterClosedError):
            writer.write(ticks(0))

    def test_close_says_when_rows_were_left_behind(self, ticks: Ticks) -> None:
        with tickflight.connect("grpc://127.0.0.1:1", "tf_a_b") as client:
            writer = client.writer("ticks")
            writer.write(ticks(0, 5))
            with pytest.raises(tickflight.DeadlineError, match="5 rows"):
                writer.close(0.3)

    def test_no_thread_outlives_its_writer(
        self, client: tickflight.Client, ticks: Ticks, eventually: Eventually
    ) -> None:
        with client.writer("ticks") as writer:
            writer.write(ticks(0))
        eventually(
            lambda: not [t for t in threading.enumerate() if t.name.startswith("tickflight")]
        )

    def test_its_repr_shows_where_it_stands(self, client: tickflight.Client, ticks: Ticks) -> None:
        with client.writer("ticks") as writer:
            assert repr(writer) == "<Writer ticks not connected, 0 of 0 rows durable>"
            writer.write(ticks(0, 1_000))
            writer.flush()
            assert repr(writer) == "<Writer ticks connected, 1,000 of 1,000 rows durable>"


class TestSpool:
    def test_rows_written_while_the_server_is_away_wait_on_disk_for_the_next_life(
        self, server: FakeServer, ticks: Ticks, tmp_path: Path, eventually: Eventually
    ) -> None:
        with tickflight.connect("grpc://127.0.0.1:1", "tf_a_b") as nowhere:
            for life in range(2):
                writer = nowhere.writer("ticks", spool=tmp_path / "spool")
                for first in range(50):
                    writer.write(ticks(life * 50 + first))
                writer.close()
        with (
            tickflight.connect(server.uri, server.api_key) as client,
            client.writer("ticks", spool=tmp_path / "spool") as writer,
        ):
            assert writer.stats.spooled_rows == 100
            writer.write(ticks(100, 10))
            writer.flush(20)
            eventually(lambda: writer.stats.spooled_bytes == 0)
        assert sequences(server) == list(range(110))
        assert [path.name for path in (tmp_path / "spool").iterdir()] == ["lock"]

    def test_rows_go_to_disk_while_the_server_is_away_and_follow_in_order(
        self,
        server: FakeServer,
        client: tickflight.Client,
        ticks: Ticks,
        tmp_path: Path,
        eventually: Eventually,
    ) -> None:
        server.script.extend([Fate.TAKE] + [Fate.DROP] * 4)
        with client.writer("ticks", spool=tmp_path) as writer:
            for first in range(100):
                writer.write(ticks(first))
                time.sleep(0.005)
            writer.flush(20)
            assert writer.stats.reconnects == 4
            eventually(lambda: writer.stats.spooled_bytes == 0)
        assert sequences(server) == list(range(100))

    def test_a_full_memory_goes_to_disk_though_the_server_is_there(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks, tmp_path: Path
    ) -> None:
        server.acks.clear()
        limits = tickflight.WriterLimits(memory_bytes=50_000)
        with client.writer("ticks", spool=tmp_path, limits=limits) as writer:
            for first in range(0, 5_000, 100):
                writer.write(ticks(first, 100), timeout=20)
            assert writer.stats.spooled_rows > 0
            server.acks.set()
            writer.flush(20)
        assert sequences(server) == list(range(5_000))

    def test_rows_beyond_the_limit_are_reported_and_all_others_arrive(
        self, server: FakeServer, client: tickflight.Client, ticks: Ticks, tmp_path: Path
    ) -> None:
        overflows: list[tickflight.Overflow] = []
        limits = tickflight.WriterLimits(memory_bytes=20_000, spool_bytes=60_000)
        server.acks.clear()
        with client.writer(
            "ticks", spool=tmp_path, limits=limits, on_overflow=overflows.append
        ) as writer:
            for first in range(0, 5_000, 100):
                writer.write(ticks(first, 100))
            assert writer.stats.spooled_bytes <= 60_000
            server.acks.set()
            writer.flush(20)
        arrived = sequences(server)
        assert arrived == sorted(set(arrived))
        refused = [
            sequence
            for one in overflows
            for sequence in range(
                (one.first_ts_event or 0) - 1_700_000_000_000_000,
                (one.last_ts_event or 0) - 1_700_000_000_000_000 + 1,
            )
        ]
        assert refused
        assert sorted(arrived + refused) == list(range(5_000))
        assert {one.symbols for one in overflows} == {("MNQ",)}
        assert {one.dataset for one in overflows} == {"ticks"}

    def test_without_a_listener_a_full_spool_raises(self, ticks: Ticks, tmp_path: Path) -> None:
        limits = tickflight.WriterLimits(memory_bytes=20_000, spool_bytes=1)
        with tickflight.connect("grpc://127.0.0.1:1", "tf_a_b") as client:
            writer = client.writer("ticks", spool=tmp_path, limits=limits)
            with pytest.raises(tickflight.SpoolFullError):
                write_for_ever(writer, ticks, timeout=None)
            with pytest.raises(tickflight.DeadlineError, match="not durable"):
                writer.close(0.1)

    def test_a_directory_serves_one_writer_at_a_time(
        self, client: tickflight.Client, tmp_path: Path
    ) -> None:
        with (
            client.writer("ticks", spool=tmp_path),
            pytest.raises(tickflight.SpoolLockedError),
        ):
            client.writer("ticks", spool=tmp_path)
        client.writer("ticks", spool=tmp_path).close()

    def test_a_revoked_key_leaves_the_rows_for_a_better_one(
        self, server: FakeServer, ticks: Ticks, tmp_path: Path, eventually: Eventually
    ) -> None:
        with tickflight.connect(server.uri, "tf_revoked_key") as client:
            writer = client.writer("ticks", spool=tmp_path)
            writer.write(ticks(0, 10))
            with pytest.raises(tickflight.AuthenticationError):
                writer.close()
        with (
            tickflight.connect(server.uri, server.api_key) as client,
            client.writer("ticks", spool=tmp_path) as writer,
        ):
            eventually(lambda: sequences(server) == list(range(10)))

    def test_a_record_that_rots_while_it_waits_ends_the_writer(
        self, server: FakeServer, ticks: Ticks, tmp_path: Path
    ) -> None:
        with (
            tickflight.connect("grpc://127.0.0.1:1", "tf_a_b") as nowhere,
            nowhere.writer("ticks", spool=tmp_path) as writer,
        ):
            writer.write(ticks(0, 10))
        spool_file = next(tmp_path.glob("*.spool"))
        with tickflight.connect(server.uri, server.api_key) as client:
            content = bytearray(spool_file.read_bytes())
            content[len(content) // 2] ^= 4
            spool_file.write_bytes(content)
            with pytest.raises(tickflight.SpoolCorruptError, match=spool_file.name):
                client.writer("ticks", spool=tmp_path)

    def test_an_own_producer_and_a_spool_exclude_each_other(
        self, client: tickflight.Client, tmp_path: Path
    ) -> None:
        with pytest.raises(tickflight.ConfigurationError):
            client.writer("ticks", producer="mine", spool=tmp_path)
        with pytest.raises(tickflight.ConfigurationError):
            client.writer("ticks", first_seq=2)
