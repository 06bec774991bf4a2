"""The rollover of a running service, as whoever owns it meets it."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server.identity import Scope
from tests.flight_server.conftest import (
    Caller,
    House,
    Server,
    caller_at,
    new_key,
    serving,
    ticks,
    told,
    until,
)

EVER = {"start": 0, "end": 1 << 57}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with serving(tmp_path) as house:
        yield house


def rolled(caller: Caller) -> None:
    """Bring all there is into the lake, and wait for it."""
    last = caller.act("rollover", all=True)["last"]
    until(lambda: caller.act("status")["rollover"]["through"] >= last)


def everything(caller: Caller, symbol: str = "MNQ") -> pa.Table:
    return caller.get({"op": "range", "dataset": "ticks", "symbols": [symbol], **EVER})


def test_rows_are_in_the_lake_and_in_the_answer_once(house: House, tmp_path: Path) -> None:
    caller = house.caller()
    caller.put(ticks(1_000))
    before = everything(caller)
    rolled(caller)
    lake = pl.scan_delta(str(tmp_path / "lake" / "ticks")).collect()
    assert len(lake) == 1_000
    assert everything(caller).equals(before)


def test_nothing_to_do_is_no_trouble(house: House) -> None:
    caller = house.caller()
    rolled(caller)
    answer = caller.act("rollover", all=True)
    rolled(caller)
    assert answer["failures"] == 0


def test_a_key_that_is_no_admin_is_refused(house: House) -> None:
    with pytest.raises(flight.FlightUnauthorizedError, match="admin"):
        house.caller(Scope.WRITE, Scope.READ_HISTORY).act("rollover")


def test_a_wrong_body_is_named(house: House) -> None:
    with pytest.raises(flight.FlightServerError) as caught:
        house.caller().act("rollover", all="yes")
    assert told(caught.value)["code"] == "invalid_argument"


def test_the_rollover_is_a_service_of_its_own_in_the_status(house: House) -> None:
    caller = house.caller()
    caller.put(ticks(10))
    rolled(caller)
    services = {one["name"]: one for one in caller.act("status")["services"]}
    assert services["rollover"]["state"] == "running"


def test_a_lake_that_takes_nothing_is_told_and_mended_by_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as house:
        caller = house.caller()
        caller.put(ticks(10))
        place = tmp_path / "lake" / "ticks"
        place.parent.mkdir(exist_ok=True)
        place.write_text("a file where the table should be")
        last = caller.act("rollover", all=True)["last"]

        def state() -> str:
            services = {one["name"]: one for one in caller.act("status")["services"]}
            return str(services["rollover"]["state"])

        until(lambda: state() == "degraded")
        assert everything(caller).num_rows == 10
        place.unlink()
        until(lambda: caller.act("status")["rollover"]["through"] >= last)
        until(lambda: state() == "running")
        assert len(pl.scan_delta(str(place)).collect()) == 10


def test_rows_leave_memory_when_their_time_is_over_and_answers_stay(tmp_path: Path) -> None:
    with serving(tmp_path, hot_window_us=1_000) as house:
        caller = house.caller()
        caller.put(ticks(1_000))
        before = everything(caller)
        rolled(caller)
        until(lambda: "ticks" not in caller.act("status")["datasets"])
        assert everything(caller).equals(before)
        caller.put(ticks(10, sequence=list(range(2_001, 2_011))))
        assert everything(caller).num_rows == 1_010
        newest = caller.get({"op": "latest", "dataset": "ticks", "symbols": ["MNQ"], "limit": 20})
        assert newest.num_rows == 20


def test_what_the_lake_alone_knows_of_gaps_counts_after_a_restart(tmp_path: Path) -> None:
    bad = ticks(2, symbol="MNQ", price=[float("inf"), 1.0])
    with serving(tmp_path, hot_window_us=1_000) as house:
        caller = house.caller()
        caller.put(bad)
        rolled(caller)
        until(lambda: "quarantine" not in caller.act("status")["datasets"])
    for file in (tmp_path / "journal").iterdir():
        file.unlink()
    with serving(tmp_path, hot_window_us=1_000) as house:
        coverage = json.loads(everything(house.caller()).schema.metadata[b"tickflight.coverage"])
        assert coverage["symbols"]["MNQ"]["quarantined"] == 1


@pytest.mark.slow
def test_a_server_killed_while_it_rolls_over_goes_on_where_it_was(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    sent = 0
    for life in range(3):
        server = Server(tmp_path)
        caller = caller_at(server.uri, key)
        for _ in range(3):
            caller.put(ticks(20_000, sequence=list(range(sent, sent + 20_000))))
            sent += 20_000
        last = caller.act("rollover", all=True)["last"]
        if life % 2:
            until(lambda: caller.act("status")["rollover"]["through"] >= last)  # noqa: B023
        server.kill()
    server = Server(tmp_path)
    caller = caller_at(server.uri, key)
    rolled(caller)
    try:
        assert sorted(everything(caller)["sequence"].to_pylist()) == list(range(sent))
        lake = pl.scan_delta(str(tmp_path / "lake" / "ticks")).select("sequence").collect()
        assert sorted(lake["sequence"].to_list()) == list(range(sent))
        ledger = caller.get({"op": "range", "dataset": "segments", "symbols": [], **EVER})
        told_rows = [row for row in ledger.to_pylist() if row["dataset"] == "ticks"]
        assert sum(row["rows"] for row in told_rows) == sent
    finally:
        server.kill()
