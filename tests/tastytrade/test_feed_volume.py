"""Ticks that never came are found by the feed's own count of the day."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.tastytrade.contracts import Instrument
from ingest.tastytrade.events import Events
from ingest.tastytrade.volume import (
    SETTLING_US,
    SPACING_MAX_US,
    SPACING_US,
    TICKS_MAX,
    Shortfall,
    VolumeWatch,
)
from tests.tastytrade.conftest import MNQ, Ledger, Start
from tests.tastytrade.dxfeed_events import Event, time_and_sale, trade
from tests.tastytrade.venue import Venue

FOLLOWED = (Instrument("MNQ", MNQ), Instrument("VIX", "VIX", is_index=True))
BEGIN_MS = 1_795_000_000_000
SPACING_MS = SPACING_US // 1_000


def events(*sent: Event, received: int) -> Events:
    values = [value for one in sent for value in one.values()]
    return Events(tuple(sent[0]), values, np.full(len(sent), received, np.int64))


class Tape:
    """A market of one contract; what its feed counts is right, whatever it sends."""

    def __init__(self) -> None:
        self.watch = VolumeWatch(FOLLOWED)
        self.volume = 1_000.0
        self.found: list[Shortfall] = []

    def trade(self, time_ms: int, size: float, *, arrives: bool = True, **fields: Any) -> None:
        self.volume += size
        if arrives:
            one = time_and_sale(MNQ, time_ms, size=size, **fields)
            self.watch.add_ticks(events(one, received=time_ms * 1_000))

    def count(self, time_ms: int, **fields: Any) -> None:
        received = time_ms * 1_000
        one = trade(MNQ, time_ms, **{"dayVolume": self.volume, **fields})
        self.watch.add_counts(events(one, received=received))
        self.found += self.watch.shortfalls(received + SETTLING_US)


@pytest.fixture
def tape() -> Tape:
    tape = Tape()
    tape.count(BEGIN_MS)
    return tape


def test_a_tick_that_never_came_is_found_between_two_counts(tape: Tape) -> None:
    tape.trade(BEGIN_MS + 10, 3.0)
    tape.trade(BEGIN_MS + 20, 2.0, arrives=False)
    tape.count(BEGIN_MS + SPACING_MS)
    end = (BEGIN_MS + SPACING_MS + 1) * 1_000
    assert tape.found == [Shortfall("MNQ", BEGIN_MS * 1_000, end, 2.0)]
    tape.trade(BEGIN_MS + SPACING_MS + 10, 3.0)
    tape.count(BEGIN_MS + 2 * SPACING_MS)
    assert len(tape.found) == 1, "each is told once"


def test_ticks_may_come_long_after_their_count(tape: Tape) -> None:
    tape.volume += 5.0
    received = (BEGIN_MS + SPACING_MS) * 1_000
    counted = trade(MNQ, BEGIN_MS + SPACING_MS, dayVolume=tape.volume)
    tape.watch.add_counts(events(counted, received=received))
    assert tape.watch.shortfalls(received + SETTLING_US - 1) == []
    late = time_and_sale(MNQ, BEGIN_MS + 30, size=5.0)
    tape.watch.add_ticks(events(late, received=received + SETTLING_US - 1))
    assert tape.watch.shortfalls(received + SETTLING_US) == []


def test_corrections_do_not_stand_for_what_is_missing(tape: Tape) -> None:
    tape.trade(BEGIN_MS + 10, 2.0, arrives=False)
    again = time_and_sale(MNQ, BEGIN_MS + 20, size=2.0, type="CORRECTION")
    tape.watch.add_ticks(events(again, received=0))
    tape.count(BEGIN_MS + SPACING_MS)
    assert [one.size for one in tape.found] == [2.0]


def test_a_feed_that_always_falls_short_is_told_ever_less_often_and_completely(
    tape: Tape,
) -> None:
    for step in range(1, 200):
        tape.trade(BEGIN_MS + step * SPACING_MS - 10, 2.0, arrives=False)
        tape.count(BEGIN_MS + step * SPACING_MS)
    lengths = [one.end - one.start for one in tape.found]
    assert lengths == sorted(lengths)
    assert lengths[-1] == SPACING_MAX_US + 1_000
    assert len(lengths) < 20
    ends = [one.end - 1_000 for one in tape.found]
    assert [one.start for one in tape.found[1:]] == ends[:-1], "nothing between them is left out"
    tape.count(BEGIN_MS + 300 * SPACING_MS)
    tape.count(BEGIN_MS + 350 * SPACING_MS)
    tape.trade(BEGIN_MS + 351 * SPACING_MS - 10, 2.0, arrives=False)
    tape.count(BEGIN_MS + 351 * SPACING_MS)
    assert tape.found[-1].end - tape.found[-1].start == SPACING_US + 1_000, "it agreed in between"


@pytest.mark.parametrize(
    "fields",
    [
        {"dayId": 20_778, "dayVolume": 5.0},
        {"dayVolume": "NaN"},
        {"time": "NaN"},
        {"extendedTradingHours": True},
        {"time": BEGIN_MS},
    ],
)
def test_a_count_that_can_not_be_compared_is_not(fields: dict[str, Any], tape: Tape) -> None:
    tape.trade(BEGIN_MS + 10, 2.0, arrives=False)
    tape.count(BEGIN_MS + SPACING_MS, **fields)
    assert tape.found == []


def test_trades_without_counts_do_not_fill_the_memory(tape: Tape) -> None:
    many = [time_and_sale(MNQ, BEGIN_MS + 1, 1)] * (TICKS_MAX // 4)
    values = list(many[0].values()) * len(many)
    batch = Events(tuple(many[0]), values, np.zeros(len(many), np.int64))
    for _ in range(6):
        tape.watch.add_ticks(batch)
    assert tape.watch._tallies[MNQ].held <= TICKS_MAX + len(many)
    tape.count(BEGIN_MS + SPACING_MS)
    tape.count(BEGIN_MS + 2 * SPACING_MS)
    assert tape.found == [], "it has begun anew"


@given(seed=st.integers(0, 2**32), lost=st.booleans())
def test_a_feed_is_blamed_only_if_it_lost_something(seed: int, lost: bool) -> None:  # noqa: FBT001
    """Counts come with some of the trades, and stand anywhere among those of their moment."""
    rng = random.Random(seed)
    tape = Tape()
    tape.count(BEGIN_MS)
    at, victim = BEGIN_MS, rng.randrange(200) if lost else None
    for number in range(200):
        at += rng.choice((0, 0, 1, 400))
        tape.trade(at, float(rng.randint(1, 5)), arrives=number != victim)
        if rng.random() < 0.2:
            tape.count(at)
    if not lost:
        assert tape.found == []
    assert len(tape.found) <= 1


def test_missing_ticks_become_a_gap_of_their_symbol(
    venue: Venue, start: Start, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.tastytrade.volume.SETTLING_US", 1_000)
    monkeypatch.setattr("ingest.tastytrade.volume.SPACING_US", 0)
    start()
    venue.wait_for_subscription("Trade", MNQ)
    venue.send("Trade", trade(MNQ, BEGIN_MS, dayVolume=100.0))
    venue.send("TimeAndSale", time_and_sale(MNQ, BEGIN_MS + 10, 1))
    ledger.wait_for("ticks", 1)
    venue.send("Trade", trade(MNQ, BEGIN_MS + 30, dayVolume=103.0))
    for number in range(2):  # something has to come for the time to be looked at
        venue.send("TimeAndSale", time_and_sale(MNQ, BEGIN_MS + 40 + number, 1))
        ledger.wait_for("ticks", 2 + number)
    (gap,) = ledger.wait_for("gaps", 1)
    assert (gap["symbol"], gap["dataset"], gap["reason"]) == ("MNQ", "ticks", "sequence")
    assert (gap["start"], gap["end"]) == (BEGIN_MS * 1_000, (BEGIN_MS + 31) * 1_000)
    assert gap["state"] == "unfillable"
