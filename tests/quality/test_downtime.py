"""Gaps for the time in which the server did not run."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flight_server.downtime import PRODUCER, SETTLE_SECONDS, DowntimeWatch, judged
from flight_server.sessions import FILE_NAME, SessionFile
from storage.ledger import Gap
from storage.schemas import SERVICE_EVENTS
from storage.store import Store
from tests.flight_server.conftest import Caller, Server, caller_at, new_key, until
from tests.flight_server.conftest import ticks as ticks_now
from tests.quality.conftest import gap
from tests.storage.conftest import NOON, Lab, TurnedClock, rows_of, send, stored, ticks

SECOND = 1_000_000


class HandTurnedClock(TurnedClock):
    """A clock of which both hands stand where the test has put them."""

    def monotonic(self) -> float:
        return self.instant / SECOND


@dataclass
class Station:
    """A store whose lives a test begins and ends, and the watch of the present one."""

    lab: Lab
    store: Store
    watch: DowntimeWatch
    open: frozenset[str] = frozenset({"ticks"})

    @property
    def gaps(self) -> list[Gap]:
        return self.store.snapshot().known.gaps()

    def at(self, second: float) -> "Station":
        self.lab.clock.instant = NOON + int(second * SECOND)
        return self

    def hear(self, *seconds: float, **columns: Any) -> None:
        """Append a tick for each instant at which its source had it."""
        instants = [NOON + int(second * SECOND) for second in seconds]
        numbers = [int(second * 1_000) for second in seconds]
        own = {"ts_event": instants, "ts_recv": instants, "sequence": numbers}
        send(self.store, ticks(len(instants), **(own | columns)))

    def note(self) -> None:
        self.watch.note()

    def fall(self, up: float) -> None:
        """End this life, and begin the next one at an instant."""
        self.store = self.lab.reopen(self.store)
        self.at(up)
        self.watch = watch_of(self)
        self.watch.begin()
        until(self.is_written)

    def is_written(self) -> bool:
        return self.store.producers.durable(PRODUCER) == self.watch._seq

    def settle(self) -> None:
        """Look until verdicts are due, and once more."""
        self.watch.look()
        self.lab.clock.instant += int(SETTLE_SECONDS * SECOND)
        self.watch.look()
        until(self.is_written)


def watch_of(station: Station) -> DowntimeWatch:
    sessions = SessionFile(station.lab.directory)
    return DowntimeWatch(station.store, sessions, lambda: station.open, station.lab.clock)


@pytest.fixture
def station(lab: Lab) -> Station:
    lab.clock = HandTurnedClock()
    station = Station(lab, lab.open(), None)  # type: ignore[arg-type]
    station.watch = watch_of(station)
    station.watch.begin()
    return station


def told(station: Station) -> list[tuple[str | None, float, float | None, str, int]]:
    return [
        (
            one.symbol,
            (one.start - NOON) / SECOND,
            None if one.end is None else (one.end - NOON) / SECOND,
            one.state,
            one.rows_recovered,
        )
        for one in station.gaps
    ]


class TestOpening:
    def test_a_feed_that_was_sending_has_a_gap_from_its_last_row(self, station: Station) -> None:
        station.at(10).hear(8, 9, symbol=["MNQ", "NQ"])
        station.note()
        station.fall(up=40)
        assert told(station) == [("MNQ", 9, None, "open", 0), ("NQ", 9, None, "open", 0)]
        assert {one.reason for one in station.gaps} == {"downtime"}
        assert station.watch.watched == {("ticks", "demo")}

    def test_nobody_was_there_when_no_stream_was_open(self, station: Station) -> None:
        station.at(10).hear(9)
        station.note()
        station.open = frozenset({"service_events", "quotes"})
        station.note()
        station.fall(up=40)
        assert station.gaps == []

    def test_a_feed_that_was_quiet_when_the_server_ended_has_no_gap(self, station: Station) -> None:
        station.at(10).hear(9)
        station.note()
        station.at(60).note()
        station.fall(up=70)
        assert station.gaps == []

    def test_a_source_that_said_it_stopped_has_no_gap(self, station: Station) -> None:
        station.at(10).hear(9)
        station.note()
        said = {"ts_event": NOON, "ts_recv": NOON, "level": "info", "event": "stopped"}
        rows = rows_of(SERVICE_EVENTS, 1, said, service="ingest.demo")
        send(station.store, rows, dataset="service_events")
        station.fall(up=40)
        assert station.gaps == []

    def test_a_source_that_is_known_to_be_cut_off_is_not_cut_off_twice(
        self, station: Station
    ) -> None:
        station.at(10).hear(8, 9, symbol=["MNQ", "NQ"])
        send(station.store, gap("mine", 5, None), dataset="gaps")
        station.note()
        station.fall(up=40)
        assert [(one.symbol, one.reason) for one in station.gaps] == [
            ("MNQ", "disconnect"),
            ("NQ", "downtime"),
        ]

    @pytest.mark.parametrize("content", ["", "{", '{"epoch": 1}', '{"epoch": 7, "alive": 1}'])
    def test_a_file_that_says_nothing_opens_nothing(self, station: Station, content: str) -> None:
        station.at(10).hear(9)
        station.note()
        (station.lab.directory / FILE_NAME).write_text(content)
        station.fall(up=40)
        assert station.gaps == []

    def test_a_second_fall_before_the_source_is_back_leaves_one_gap(self, station: Station) -> None:
        station.at(10).hear(9)
        station.note()
        station.fall(up=40)
        station.note()
        station.fall(up=50)
        assert told(station) == [("MNQ", 9, None, "open", 0)]
        station.at(51).hear(51)
        station.settle()
        assert told(station) == [("MNQ", 9, 51, "unfillable", 0)]

    def test_the_runner_of_the_source_would_give_the_same_id(self, station: Station) -> None:
        station.at(10).hear(9)
        station.note()
        station.fall(up=40)
        assert station.gaps[0].gap_id == f"demo:ticks:MNQ:downtime:{NOON + 9 * SECOND}"


class TestClosing:
    def fall(self, station: Station) -> None:
        station.at(10).hear(7, 8, 9)
        station.note()
        station.fall(up=40)

    def test_a_gap_lasts_until_its_source_is_heard(self, station: Station) -> None:
        self.fall(station)
        station.at(100).settle()
        assert told(station) == [("MNQ", 9, None, "open", 0)]

    def test_what_a_spool_delivers_late_fills_the_gap(self, station: Station) -> None:
        self.fall(station)
        station.at(41).hear(*range(10, 42))
        station.settle()
        assert told(station) == [("MNQ", 9, 40, "filled", 30)]
        assert station.watch.watched == frozenset()

    def test_what_nobody_kept_is_lost(self, station: Station) -> None:
        self.fall(station)
        station.at(42).hear(42, 43)
        station.settle()
        assert told(station) == [("MNQ", 9, 42, "unfillable", 0)]

    def test_what_is_left_of_a_half_filled_gap_is_the_gap(self, station: Station) -> None:
        self.fall(station)
        station.at(42).hear(10, 11, 12, 30, 31, 42)
        station.settle()
        assert told(station) == [("MNQ", 12, 30, "unfillable", 5)]

    def test_rows_are_waited_for_while_a_spool_is_emptied(self, station: Station) -> None:
        self.fall(station)
        station.at(41).hear(*range(10, 25))
        station.settle()
        assert told(station) == [("MNQ", 9, None, "open", 0)]
        station.at(60).hear(*range(25, 61))
        station.settle()
        assert told(station) == [("MNQ", 9, 40, "filled", 30)]

    def test_a_verdict_waits_for_the_other_streams_of_a_source(self, station: Station) -> None:
        self.fall(station)
        station.at(41).hear(41)
        station.watch.look()
        station.at(42).hear(*range(10, 41))
        station.settle()
        assert told(station) == [("MNQ", 9, 40, "filled", 30)]

    def test_rows_that_came_late_are_counted_by_symbol(self, station: Station) -> None:
        station.at(10).hear(8, 9, symbol=["MNQ", "NQ"])
        station.note()
        station.fall(up=12)
        station.at(13).hear(10, 10.5, 11, 12, 13, symbol=["MNQ", "MNQ", "NQ", "NQ", "MNQ"])
        station.settle()
        assert [(one.symbol, one.state, one.rows_recovered) for one in station.gaps] == [
            ("MNQ", "filled", 2),
            ("NQ", "filled", 1),
        ]

    def test_a_gap_that_its_source_has_closed_is_left_alone(self, station: Station) -> None:
        self.fall(station)
        opened = station.gaps[0]
        closed = gap(
            opened.gap_id,
            9 * SECOND,
            41 * SECOND,
            revision=1,
            reason="downtime",
            state="unfillable",
        )
        send(station.store, closed, dataset="gaps")
        station.at(42).hear(*range(10, 43))
        station.settle()
        assert [(one.revision, one.state) for one in station.gaps] == [(1, "unfillable")]
        assert station.watch.watched == frozenset()

    def test_rows_of_gaps_are_written_once_through_all_lives(self, station: Station) -> None:
        self.fall(station)
        station.at(42).hear(42)
        station.settle()
        station.note()
        station.fall(up=80)
        station.at(81).hear(81)
        station.settle()
        assert [one.state for one in station.gaps] == ["unfillable", "unfillable"]
        revisions = [(row["gap_id"], row["revision"]) for row in stored(station.store, "gaps")]
        assert len(revisions) == len(set(revisions)) == 4


class TestVerdicts:
    def instants(self, *seconds: float) -> Any:
        return np.array([NOON + int(second * SECOND) for second in seconds], np.int64)

    def judge(self, *seconds: float, up: float = 40) -> tuple[float, float, bool]:
        found = judged(self.instants(*seconds), NOON, NOON + int(up * SECOND))
        return (found.start - NOON) / SECOND, (found.end - NOON) / SECOND, found.filled

    def test_a_short_hole_is_none(self) -> None:
        assert self.judge(-0.1, 0, 0.9, 1.7, up=1) == (0, 1.7, True)

    def test_a_source_that_pauses_anyway_may_pause(self) -> None:
        assert self.judge(-30, -15, 0, 41) == (0, 41, True)
        assert self.judge(-1, 0, 41) == (0, 41, False)

    def test_the_longest_hole_is_told(self) -> None:
        assert self.judge(-1, 0, 5, 20, 30, 41) == (5, 20, False)

    def test_a_hole_that_is_known_is_no_usual_pause(self) -> None:
        seconds = self.instants(-31, -30, 0, 41)
        known = [(NOON - 30 * SECOND, NOON)]
        assert judged(seconds, NOON, NOON + 40 * SECOND).filled
        assert not judged(seconds, NOON, NOON + 40 * SECOND, known).filled

    def test_what_comes_after_the_feed_is_back_does_not_count(self) -> None:
        assert self.judge(-1, 0, 2, 4, 6, 500, up=5) == (0, 6, True)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_verdict_lies_within_the_downtime(self, seed: int) -> None:
        chance = random.Random(seed)
        seconds = sorted(chance.uniform(-60, 80) for _ in range(chance.randrange(1, 60)))
        start, end, _ = self.judge(0, *[one for one in seconds if one != 0], up=40)
        assert 0 <= start <= end


class TestFiles:
    def test_a_place_that_can_not_be_written_is_no_failure(self, tmp_path: Path) -> None:
        sessions = SessionFile(tmp_path / "nowhere")
        sessions.write(1, NOON, ["ticks"])
        assert sessions.read() is None

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        SessionFile(tmp_path).write(3, NOON, {"ticks", "gex"})
        found = SessionFile(tmp_path).read()
        assert found is not None
        assert (found.epoch, found.alive) == (3, NOON)
        assert found.datasets == {"ticks", "gex"}


class TestRealServer:
    def gaps(self, caller: Caller) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = caller.act("gaps", symbols=["MNQ"])["gaps"]
        return found

    def test_a_killed_server_tells_of_its_downtime_and_what_became_of_it(
        self, tmp_path: Path
    ) -> None:
        server = Server(tmp_path)
        key = new_key(tmp_path)
        caller = caller_at(server.uri, key)
        stream = caller.open(ticks_now().schema)
        stream.write(ticks_now(), "feed", 1)
        assert stream.next_ack() is not None
        sessions = SessionFile(tmp_path)
        until(lambda: (found := sessions.read()) is not None and "ticks" in found.datasets)
        server.kill()
        server = Server(tmp_path)
        caller = caller_at(server.uri, key)
        (opened,) = self.gaps(caller)
        assert (opened["reason"], opened["state"], opened["end"]) == ("downtime", "open", None)
        assert opened["detail"] == "the source or the service did not run, and still is"
        time.sleep(max(0.0, 1.2 - (time.time() - opened["start"] / SECOND)))
        caller.put(ticks_now(sequence=[2]), producer="feed", first=2)
        until(lambda: self.gaps(caller)[0]["state"] != "open")
        (closed,) = self.gaps(caller)
        assert (closed["state"], closed["start"]) == ("unfillable", opened["start"])
        server.stop()

    def test_a_server_whose_writers_have_left_tells_of_no_downtime(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        key = new_key(tmp_path)
        caller_at(server.uri, key).put(ticks_now())
        sessions = SessionFile(tmp_path)
        until(lambda: (found := sessions.read()) is not None and not found.datasets)
        server.kill()
        server = Server(tmp_path)
        assert self.gaps(caller_at(server.uri, key)) == []
        server.stop()
