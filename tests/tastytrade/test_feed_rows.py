"""Events of the feed become rows: nothing of them is lost on the way, however they are laid out."""

import time
from typing import Any

import pytest

import tickflight
from storage.schemas import Flag, Kind, Side
from tests.tastytrade.conftest import MNQ, Ledger, Start
from tests.tastytrade.dxfeed_events import index_of, quote, time_and_sale, trade
from tests.tastytrade.venue import PATIENCE_SECONDS, Layout, Venue

NOON_MS = 1_795_000_000_123


@pytest.fixture
def feed(venue: Venue, start: Start) -> Venue:
    """A venue whose feed is followed."""
    start()
    venue.wait_for_subscription("Trade", MNQ, "SPY", "VIX")
    return venue


def test_a_trade_becomes_a_tick_with_all_it_says(feed: Venue, ledger: Ledger) -> None:
    before = time.time_ns() // 1_000
    fields = {"price": 21_001.5, "size": 3.0, "timeNanoPart": 456_789, "exchangeCode": "Q"}
    feed.send(
        "TimeAndSale",
        time_and_sale(MNQ, NOON_MS, 7, **fields, exchangeSaleConditions="@ I"),
    )
    (row,) = ledger.wait_for("ticks", 1)
    received = row.pop("ts_recv")
    assert before <= received <= time.time_ns() // 1_000
    assert row == {
        "ts_event": NOON_MS * 1_000 + 456,
        "symbol": "MNQ",
        "contract": MNQ,
        "price": 21_001.5,
        "size": 3.0,
        "bid": 21_000.0,
        "ask": 21_000.25,
        "side": Side.BUY,
        "kind": Kind.NEW,
        "flags": Flag.VALID_TICK,
        "exchange": "Q",
        "condition": "@ I",
        "sequence": index_of(NOON_MS, 7),
        "source": "tastytrade",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"aggressorSide": "SELL"}, {"side": Side.SELL}),
        ({"aggressorSide": "UNDEFINED"}, {"side": Side.UNKNOWN}),
        ({"type": "CORRECTION"}, {"kind": Kind.CORRECTION}),
        ({"type": "CANCEL", "validTick": False}, {"kind": Kind.CANCEL, "flags": 0}),
        (
            {"extendedTradingHours": True, "spreadLeg": True},
            {"flags": Flag.VALID_TICK | Flag.EXTENDED_HOURS | Flag.SPREAD_LEG},
        ),
        ({"bidPrice": "NaN", "askPrice": None}, {"bid": None, "ask": None}),
        ({"size": 0.5}, {"size": 0.5}),
        ({"size": "NaN"}, {"size": 0.0}),
        ({"size": 1.3743299e7}, {"size": 13_743_299.0}),
        ({"exchangeCode": "\x00", "exchangeSaleConditions": " "}, {"exchange": None}),
        ({"buyer": "A", "seller": "B"}, {"price": 21_000.25}),
        ({"index": 2**62 + 1}, {"sequence": 2**62 + 1}),
    ],
)
def test_what_the_sdk_would_drop_or_bend_is_kept(
    fields: dict[str, Any], expected: dict[str, Any], feed: Venue, ledger: Ledger
) -> None:
    feed.send("TimeAndSale", time_and_sale(MNQ, NOON_MS, **fields))
    (row,) = ledger.wait_for("ticks", 1)
    assert {name: row[name] for name in expected} == expected


def test_an_event_that_is_no_row_is_quarantined_without_its_neighbours(
    feed: Venue, ledger: Ledger
) -> None:
    good = [time_and_sale(MNQ, NOON_MS + step, 1) for step in range(3)]
    bad = [
        time_and_sale(MNQ, NOON_MS, type="REVISION"),
        time_and_sale(MNQ, NOON_MS, time="NaN"),
        time_and_sale(MNQ, NOON_MS, price="dear"),
    ]
    feed.send("TimeAndSale", good[0], bad[0], good[1], bad[1], bad[2], good[2])
    unreadable = ledger.wait_for("quarantine", 3)
    assert [row["sequence"] for row in ledger.rows("ticks")] == [one["index"] for one in good]
    assert {row["dataset"] for row in unreadable} == {"ticks"}
    assert ["REVISION" in row["payload"] for row in unreadable] == [True, False, False]


@pytest.mark.parametrize("layout", Layout)
def test_fields_may_come_in_any_order(
    layout: Layout, venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.layout = layout
    start()
    venue.wait_for_subscription("Trade", MNQ)
    sent = [time_and_sale(MNQ, NOON_MS + step, 1, price=100.0 + step) for step in range(5)]
    venue.send("TimeAndSale", *sent)
    rows = ledger.wait_for("ticks", 5)
    assert [(row["sequence"], row["price"]) for row in rows] == [
        (one["index"], one["price"]) for one in sent
    ]


def test_fields_that_say_nothing_of_a_trade_may_be_left_out(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.left_out = frozenset({"buyer", "timeNanoPart", "exchangeSaleConditions"})
    start()
    venue.wait_for_subscription("Trade", MNQ)
    venue.send("TimeAndSale", time_and_sale(MNQ, NOON_MS))
    (row,) = ledger.wait_for("ticks", 1)
    assert (row["ts_event"], row["condition"]) == (NOON_MS * 1_000, None)


def test_a_feed_without_prices_is_a_failure_that_says_so(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.left_out = frozenset({"price"})
    start()
    venue.wait_for_subscription("Trade", MNQ)
    venue.send("TimeAndSale", time_and_sale(MNQ, NOON_MS))
    ledger.wait_until_told("the feed leaves out price")


def test_a_frame_far_over_64_kib_is_read(feed: Venue, ledger: Ledger) -> None:
    sent = [time_and_sale(MNQ, NOON_MS + step, 1) for step in range(5_000)]
    feed.send("TimeAndSale", *sent)
    rows = ledger.wait_for("ticks", 5_000)
    assert [row["sequence"] for row in rows] == [one["index"] for one in sent]


def test_a_frame_may_hold_several_kinds_or_none(feed: Venue, ledger: Ledger) -> None:
    (connection,) = feed.connections
    first, second = (time_and_sale(MNQ, NOON_MS + step, 1) for step in range(2))
    values = [[one[name] for name in connection.fields["TimeAndSale"]] for one in (first, second)]
    channel = connection.channels["TimeAndSale"]
    feed.send_message(type="FEED_DATA", channel=channel, data=[])
    feed.send_message(type="FEED_DATA", channel=channel, data=["TimeAndSale", []])
    data = ["TimeAndSale", values[0], "TimeAndSale", values[1]]
    feed.send_message(type="FEED_DATA", channel=channel, data=data)
    rows = ledger.wait_for("ticks", 2)
    assert [row["sequence"] for row in rows] == [first["index"], second["index"]]


def test_a_quote_carries_the_time_of_its_receipt(feed: Venue, ledger: Ledger) -> None:
    feed.send("Quote", quote(MNQ), quote("SPY", bidPrice="NaN", bidSize="NaN"))
    first, second = ledger.wait_for("quotes", 2)
    assert first["ts_event"] == first["ts_recv"]
    assert (first["bid"], first["bid_size"], first["ask"], first["ask_size"]) == (
        21_000.0,
        3.0,
        21_000.25,
        5.0,
    )
    assert (second["symbol"], second["bid"], second["bid_size"]) == ("SPY", None, None)
    assert second["sequence"] > first["sequence"]


def test_an_index_has_its_values_as_ticks_and_a_future_has_not(feed: Venue, ledger: Ledger) -> None:
    none_yet = trade("VIX", NOON_MS, price="NaN")
    value = trade("VIX", NOON_MS + 15_000, 3, price=17.25, size="NaN", dayVolume="NaN")
    feed.send("Trade", trade(MNQ, NOON_MS), none_yet, value)
    feed.send("TimeAndSale", time_and_sale(MNQ, NOON_MS, 9))
    index, future = ledger.wait_for("ticks", 2)
    assert (index["symbol"], index["price"], index["size"]) == ("VIX", 17.25, 0.0)
    assert index["sequence"] == index_of(NOON_MS + 15_000, 3)
    assert future["sequence"] == index_of(NOON_MS, 9)


def test_what_comes_twice_around_a_new_connection_is_stored_once(
    venue: Venue, client: tickflight.Client, start: Start
) -> None:
    start(service=client)
    venue.wait_for_subscription("Trade", MNQ, "VIX")
    now = time.time_ns() // 1_000_000
    sent = [time_and_sale(MNQ, now + step, 1) for step in range(6)]
    value = trade("VIX", now, 1, price=17.0)
    venue.send("Trade", value)
    venue.send("TimeAndSale", *sent[:4])
    wait_for_ticks(client, "MNQ", 4)
    wait_for_ticks(client, "VIX", 1)
    venue.close()
    venue.wait_for(lambda: len(venue.connections) > 1 and len(venue.open_connections) == 1)
    venue.wait_for_subscription("Trade", MNQ, "VIX")
    venue.send("Trade", value)
    venue.send("TimeAndSale", *sent[2:])
    wait_for_ticks(client, "MNQ", 6)
    held = client.latest(["MNQ", "VIX"], limit=100).arrow()
    expected = sorted([one["index"] for one in sent] + [index_of(now, 1)])
    assert sorted(held["sequence"].to_pylist()) == expected


def wait_for_ticks(client: tickflight.Client, symbol: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while client.latest(symbol, limit=count).arrow().num_rows < count:
        assert time.monotonic() < deadline, f"{symbol} has not got {count} ticks"
        time.sleep(0.02)
