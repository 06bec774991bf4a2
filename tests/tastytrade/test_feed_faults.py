"""What a real network and a real feed do to a connection: it comes back, and each hole is told."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from ingest.runner import RunState
from ingest.tastytrade import FeedOptions, Patience
from ingest.tastytrade.frames import Frame, Intake
from ingest.tastytrade.source import CLOCK_MARGIN_US
from tests.tastytrade.conftest import MNQ, Ledger, Start
from tests.tastytrade.dxfeed_events import time_and_sale
from tests.tastytrade.venue import Venue

MARGIN_US = 20_000
"""One clock stamps both ends, and frames wait for a few milliseconds."""
Fault = Callable[[Venue], None]
FAULTS: dict[str, Fault] = {
    "closed the connection (1012 Reconnection is required)": lambda venue: venue.close(),
    "the connection to the feed broke": lambda venue: venue.abort(),
    "a message that can't be read": lambda venue: venue.send_raw(b"{half of"),
    "a message that can't be read ": lambda venue: venue.send_message(kind="?"),
    "end in the middle": lambda venue: venue.send_message(
        type="FEED_DATA", channel=13, data=["TimeAndSale", [MNQ, 0]]
    ),
    "of a kind it does not name": lambda venue: venue.send_message(
        type="FEED_DATA", channel=13, data=["TimeAndSale"]
    ),
    "which nobody asked for": lambda venue: venue.send_message(
        type="FEED_DATA", channel=13, data=["Message", [1]]
    ),
    "closed the channel of TimeAndSale": lambda venue: venue.send_message(
        type="CHANNEL_CLOSED", channel=13
    ),
    "ended the connection: TIMEOUT": lambda venue: venue.send_message(
        type="ERROR", channel=0, error="TIMEOUT", message="no keepalive"
    ),
}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def newest_gaps(ledger: Ledger) -> dict[str, dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for row in ledger.rows("gaps"):
        newest[row["gap_id"]] = row
    return newest


@pytest.fixture
def feed(venue: Venue, start: Start) -> Venue:
    start()
    venue.wait_for_subscription("Trade", MNQ, "VIX")
    return venue


@pytest.mark.parametrize("told", FAULTS)
def test_a_fault_is_a_gap_and_a_new_connection(told: str, feed: Venue, ledger: Ledger) -> None:
    feed.send("TimeAndSale", time_and_sale(MNQ, now_ms(), 1))
    ledger.wait_for("ticks", 1)
    before = time.time_ns() // 1_000
    FAULTS[told](feed)
    assert ledger.wait_until_told(told.strip())["event"] == "restarting"
    feed.wait_for(lambda: any(one.follows("Trade", MNQ) for one in feed.connections[1:]))
    after = time.time_ns() // 1_000
    feed.send("TimeAndSale", time_and_sale(MNQ, now_ms(), 2))
    assert [row["price"] for row in ledger.wait_for("ticks", 2)] == [21_000.25] * 2
    ledger.wait_for("gaps", 12)  # two datasets of three symbols, open and closed
    gaps = newest_gaps(ledger).values()
    assert {gap["symbol"] for gap in gaps} == {"MNQ", "SPY", "VIX"}
    assert {gap["dataset"] for gap in gaps} == {"ticks", "quotes"}
    assert {(gap["reason"], gap["state"]) for gap in gaps} == {("disconnect", "unfillable")}
    assert all(gap["start"] <= before and gap["end"] >= after for gap in gaps)


def test_silence_is_a_gap_of_its_own_reason(start: Start, ledger: Ledger) -> None:
    start(patience=Patience(silence_seconds=0.2))
    ledger.wait_until_told("the feed said nothing for")
    assert {row["reason"] for row in ledger.wait_for("gaps", 6)} == {"silence"}


@pytest.mark.slow
def test_an_open_market_without_data_is_silence_although_keepalives_come(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    start(patience=Patience(data_seconds=2.0))
    venue.wait_for_subscription("Trade", MNQ)
    venue.send("TimeAndSale", time_and_sale(MNQ, now_ms()))
    (tick,) = ledger.wait_for("ticks", 1)
    venue.send_message(type="KEEPALIVE", channel=0)
    ledger.wait_until_told("the market is open, and no data came")
    gaps = ledger.wait_for("gaps", 6)
    assert {gap["reason"] for gap in gaps} == {"silence"}
    assert {gap["start"] for gap in gaps} == {tick["ts_recv"] - CLOCK_MARGIN_US}


def test_a_closed_market_may_be_silent(venue: Venue, start: Start, ledger: Ledger) -> None:
    venue.manners.open_markets = frozenset()
    start(patience=Patience(data_seconds=0.05))
    asked = "/market-time/sessions/current"
    venue.wait_for(lambda: [one.path for one in venue.requests].count(asked) >= 3)
    assert len(venue.connections) == 1
    assert ledger.rows("gaps") == []


def test_keepalives_keep_a_quiet_feed_and_end_an_outage(feed: Venue, ledger: Ledger) -> None:
    feed.abort()
    feed.wait_for(lambda: any(one.follows("Trade", MNQ) for one in feed.connections[1:]))
    feed.send_message(type="KEEPALIVE", channel=0)
    ledger.wait_for("gaps", 12)
    assert all(gap["end"] is not None for gap in newest_gaps(ledger).values())


def test_a_complaint_about_a_channel_is_survived(feed: Venue, ledger: Ledger) -> None:
    feed.send_message(type="ERROR", channel=13, error="BAD_ACTION", message="informational")
    feed.send_message(type="NEWS", channel=0)
    feed.send("TimeAndSale", time_and_sale(MNQ, now_ms()))
    ledger.wait_for("ticks", 1)
    assert len(feed.connections) == 1


def test_what_had_come_before_a_drop_is_written(feed: Venue, ledger: Ledger) -> None:
    sent = [time_and_sale(MNQ, now_ms(), number) for number in range(20_000)]
    for first in range(0, len(sent), 1_000):
        feed.send("TimeAndSale", *sent[first : first + 1_000])
    feed.close()
    ledger.wait_until_told("closed the connection")
    assert len(ledger.wait_for("ticks", len(sent))) == len(sent)


def test_a_rotation_opens_the_new_connection_before_it_ends_the_old(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    pauses = iter([0.3])
    start(options=FeedOptions(rotation_seconds=lambda _now, _jitter: next(pauses, 3_600.0)))
    venue.wait_for(lambda: len(venue.connections) == 2 and venue.connections[0].closed)
    assert venue.connections[1].follows("Trade", MNQ, "VIX")
    venue.send("TimeAndSale", time_and_sale(MNQ, now_ms()))
    ledger.wait_for("ticks", 1)
    assert ledger.rows("gaps") == []
    assert ledger.told() == ["running: None"]


def test_a_roll_is_told_and_the_old_contract_followed_under_its_own_name(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    def roll(_now: int, _jitter: float) -> float:
        again = venue.manners.futures[0]["active-month"]
        for item in venue.manners.futures:
            item["active-month"] = item["symbol"].endswith("H7")
        return 0.01 if again else 3_600.0

    start(options=FeedOptions(rotation_seconds=roll))
    ledger.wait_until_told("MNQ rolls from /MNQZ26:XCME to /MNQH27:XCME")
    venue.wait_for(lambda: len(venue.open_connections) == 1 and len(venue.connections) == 2)
    venue.wait_for_subscription("Trade", "/MNQH27:XCME", MNQ, "VIX")
    new, old = time_and_sale("/MNQH27:XCME", now_ms(), 1), time_and_sale(MNQ, now_ms(), 2)
    venue.send("TimeAndSale", new, old)
    rows = ledger.wait_for("ticks", 2)
    assert [(row["symbol"], row["contract"]) for row in rows] == [
        ("MNQ", "/MNQH27:XCME"),
        ("MNQZ26", "/MNQZ26:XCME"),
    ]


def test_a_symbol_nobody_knows_is_told_and_the_others_followed(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    start("MNQ", "NOPE")
    ledger.wait_until_told("tastytrade does not know NOPE")
    venue.wait_for_subscription("Trade", MNQ)


def test_symbols_nobody_knows_end_the_run(start: Start) -> None:
    result = start("NOPE", "NADA").ended()
    assert (result.state, result.is_refusal) == (RunState.FAILED, True)
    assert "TICKFLIGHT_SYMBOLS" in str(result.detail)


def test_the_intake_holds_so_much_and_no_more() -> None:
    async def overfill() -> None:
        intake = Intake(held_values_max=10)
        frame = Frame("Quote", ("bidPrice",), [1.0] * 11, 0)
        await intake.put(frame)
        waiting = asyncio.create_task(intake.put(frame))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await intake.take() == [frame]
        await waiting
        intake.end()
        assert await intake.take() == [frame]
        assert await intake.take() == []

    asyncio.run(overfill())


@pytest.mark.slow
def test_every_tick_is_stored_or_inside_a_gap_that_is_told(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    """Thirty faults while ticks are sent without pause; nothing may be missing in silence."""
    start(options=FeedOptions(clock_margin_us=MARGIN_US))
    venue.wait_for_subscription("Trade", MNQ, "VIX")
    rng = random.Random(6)
    sent = []
    faults = list(FAULTS.values())
    for number in range(1_500):
        sent.append(time_and_sale(MNQ, now_ms(), number))
        venue.send("TimeAndSale", *sent[-rng.choice((1, 1, 3)) :])
        if number % 50 == 25:
            rng.choice(faults)(venue)
        time.sleep(0.002)
    venue.wait_for(lambda: any(one.follows("Trade", MNQ) for one in venue.open_connections))
    last = time_and_sale(MNQ, now_ms(), 1_500)
    venue.send("TimeAndSale", last)
    stored: dict[int, int] = {}
    while last["index"] not in stored:
        ledger.wait_for("ticks", len(stored) + 1)
        rows = ledger.rows("ticks")
        stored = {row["sequence"]: row["ts_recv"] - row["ts_event"] for row in rows}
    # A busy machine holds ticks up for longer than the margin allows for.
    delay = max(0, *stored.values())
    gaps = [
        (gap["start"] - max(0, delay - MARGIN_US), gap["end"])
        for gap in newest_gaps(ledger).values()
        if (gap["symbol"], gap["dataset"]) == ("MNQ", "ticks")
    ]
    missing = [one for one in sent if one["index"] not in stored]
    assert missing, "thirty faults must have cost something, or they were none"
    silent = [
        one["index"]
        for one in missing
        if not any(begin <= one["time"] * 1_000 <= end for begin, end in gaps)
    ]
    assert silent == []
    assert stored.keys() <= {one["index"] for one in [*sent, last]}
