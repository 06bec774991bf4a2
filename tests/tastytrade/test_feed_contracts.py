"""Which contract a symbol means, and when the connection is made anew."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from ingest.tastytrade.contracts import OVERLAP_US, Instrument, Instruments, Roll, rolled
from ingest.tastytrade.rotation import BREAK_SECONDS, seconds_to_rotation

OLD, NEW, NEXT = "/MNQZ26:XCME", "/MNQH27:XCME", "/MNQM27:XCME"
SPY = Instrument("SPY", "SPY")
NEW_YORK = ZoneInfo("America/New_York")


def front(contract: str) -> Instruments:
    return Instruments((Instrument("MNQ", contract), SPY))


def test_nothing_rolls_while_the_month_is_the_same() -> None:
    assert rolled(front(OLD), front(OLD), now=0) == (front(OLD), [])
    assert rolled(Instruments(), front(OLD), now=0) == (front(OLD), [])


def test_the_old_month_is_followed_until_the_overlap_ends() -> None:
    after, rolls = rolled(front(OLD), front(NEW), now=5)
    assert rolls == [Roll("MNQ", OLD, NEW)]
    left = Instrument("MNQZ26", OLD, until=5 + OVERLAP_US)
    assert after.followed == (*front(NEW).followed, left)
    later, rolls = rolled(after, front(NEW), now=4 + OVERLAP_US)
    assert (later, rolls) == (after, [])
    assert rolled(after, front(NEW), now=5 + OVERLAP_US) == (front(NEW), [])


def test_a_month_that_comes_back_is_followed_once() -> None:
    after, _ = rolled(front(OLD), front(NEW), now=5)
    back, rolls = rolled(after, front(OLD), now=6)
    assert rolls == [Roll("MNQ", NEW, OLD)]
    assert sorted(back.contracts()) == [NEW, OLD, "SPY"]


def test_a_symbol_that_is_gone_is_not_followed() -> None:
    gone = Instruments((SPY,), ("MNQ",))
    assert rolled(front(OLD), gone, now=5) == (gone, [])


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        ("2026-11-20T12:00", "2026-11-20T17:05"),
        ("2026-11-20T17:05", "2026-11-21T17:05"),
        ("2026-11-20T23:30", "2026-11-21T17:05"),
        ("2026-03-07T20:00", "2026-03-08T17:05"),  # the clock goes forward that night
        ("2026-10-31T20:00", "2026-11-01T17:05"),  # and back that one
    ],
)
def test_connections_rotate_in_the_break_of_the_futures(now: str, begins: str) -> None:
    instant = datetime.fromisoformat(now).replace(tzinfo=NEW_YORK)
    microseconds = int(instant.timestamp()) * 1_000_000
    expected = datetime.fromisoformat(begins).replace(tzinfo=NEW_YORK).astimezone(UTC)
    wait = (expected - instant.astimezone(UTC)).total_seconds()
    assert seconds_to_rotation(microseconds, 0.0) == wait
    assert seconds_to_rotation(microseconds, 0.5) == wait + BREAK_SECONDS / 2
