"""What counts as trouble, and since when."""

import threading
from dataclasses import dataclass, field, replace

import pytest

from flight_server.health import (
    CLOCK_AHEAD_MAX,
    SLOW_COMMIT_SECONDS,
    STALLED_SECONDS,
    Health,
    Vitals,
    clock_trouble,
    memory_trouble,
)
from storage.ports import MICROSECONDS, SystemClock

START = 1_790_000_000 * MICROSECONDS
PATIENCE_SECONDS = 30.0
WELL = Vitals(
    used=1,
    full=2,
    arrival=START,
    commits=0,
    waiting_rows=0,
    commit_seconds=(),
    broken=None,
    broken_since=None,
    writing=frozenset(),
)


@dataclass
class Patient:
    """A server's figures as a test sets them, and the clock beside them."""

    vitals: Vitals = WELL
    seconds: float = 0.0
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        self.health = Health(self, lambda: self.vitals)

    def now(self) -> int:
        return START + round(self.seconds * MICROSECONDS)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def after(self, seconds: float, **figures: object) -> dict[str, tuple[float, str]]:
        """Look after a while; return seconds since the start and sentence of each trouble."""
        self.seconds += seconds
        self.vitals = replace(self.vitals, **figures)  # type: ignore[arg-type]
        found = self.health.look()
        return {
            part: ((one.since - START) / MICROSECONDS, one.detail) for part, one in found.items()
        }


@pytest.fixture
def patient() -> Patient:
    return Patient()


def test_nothing_is_wrong_with_a_server_at_rest(patient: Patient) -> None:
    assert patient.after(60) == {}


class TestSince:
    def test_it_is_when_the_trouble_began_and_not_when_the_server_did(
        self, patient: Patient
    ) -> None:
        patient.after(10)
        assert patient.after(5, used=3)["memory"][0] == 15
        assert patient.after(100, used=4)["memory"][0] == 15

    def test_a_trouble_that_comes_back_begins_anew(self, patient: Patient) -> None:
        patient.after(1, used=3)
        assert patient.after(1, used=1) == {}
        assert patient.health.well_since("memory") == START + 2 * MICROSECONDS
        assert patient.after(1, used=3)["memory"][0] == 3

    def test_a_part_that_was_never_in_trouble_is_well_since_the_start(
        self, patient: Patient
    ) -> None:
        patient.after(60)
        assert patient.health.well_since("clock") == START


class TestMemory:
    def test_the_limit_itself_is_allowed(self) -> None:
        assert memory_trouble(100, 100) is None
        assert memory_trouble(101, 100) is not None


class TestClock:
    def test_a_clock_set_back_by_more_than_a_second_is_told(self) -> None:
        assert clock_trouble(START, START) is None
        assert clock_trouble(START + CLOCK_AHEAD_MAX, START) is None
        assert "3.0 s" in str(clock_trouble(START + 3 * MICROSECONDS, START))

    def test_it_heals_when_time_has_caught_up(self, patient: Patient) -> None:
        assert "clock" in patient.after(1, arrival=START + 30 * MICROSECONDS)
        assert patient.after(29.5) == {}


class TestJournal:
    def test_what_the_journal_says_of_itself_counts_from_when_it_said_so(
        self, patient: Patient
    ) -> None:
        broken_since = START + 4 * MICROSECONDS
        found = patient.after(9, broken="the disk is full", broken_since=broken_since)
        assert found["journal"] == (4, "the disk is full")

    def test_rows_that_wait_without_a_commit_mean_a_disk_that_hangs(self, patient: Patient) -> None:
        patient.after(10, commits=5)
        assert patient.after(STALLED_SECONDS, waiting_rows=7, commits=6) == {}
        since, detail = patient.after(STALLED_SECONDS + 1)["journal"]
        assert since == 10 + STALLED_SECONDS
        assert "7 rows" in detail
        assert patient.after(1, commits=7, waiting_rows=0) == {}

    def test_rows_that_come_after_an_idle_hour_are_no_stall(self, patient: Patient) -> None:
        patient.after(3600)
        assert patient.after(0.5, waiting_rows=100) == {}

    def test_slow_commits_are_told_and_one_slow_among_many_is_not(self, patient: Patient) -> None:
        quick, slow = 0.002, SLOW_COMMIT_SECONDS * 2
        assert patient.after(1, commits=9, commit_seconds=(*[quick] * 8, slow)) == {}
        found = patient.after(1, commits=12, commit_seconds=(*[quick] * 9, slow, slow, slow))
        assert "500 ms" in found["journal"][1]

    def test_only_commits_since_the_last_look_count(self, patient: Patient) -> None:
        slow = SLOW_COMMIT_SECONDS * 2
        assert "journal" in patient.after(1, commits=3, commit_seconds=(slow, slow, slow))
        assert patient.after(1, commits=4, commit_seconds=(slow, slow, slow, 0.002)) == {}


class TestWriters:
    def test_one_that_left_is_silent_from_then_on(self, patient: Patient) -> None:
        patient.after(5, writing=frozenset({"feed"}))
        assert patient.health.silent_since("feed") is None
        patient.after(5, writing=frozenset())
        patient.after(5)
        assert patient.health.silent_since("feed") == START + 10 * MICROSECONDS

    def test_one_that_never_came_is_silent_since_the_start(self, patient: Patient) -> None:
        patient.after(5)
        assert patient.health.silent_since("feed") == START

    def test_one_that_came_back_is_not_silent(self, patient: Patient) -> None:
        for writing in ({"feed"}, set[str](), {"feed"}):
            patient.after(1, writing=frozenset(writing))
        assert patient.health.silent_since("feed") is None


def test_it_looks_by_itself_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flight_server.health.LOOK_SECONDS", 0.01)
    looked = threading.Event()

    def read() -> Vitals:
        looked.set()
        return WELL

    health = Health(SystemClock(), read)
    health.start()
    assert looked.wait(PATIENCE_SECONDS)
    health.stop()
    assert not health._thread.is_alive()
