"""The synthetic market: one truth per moment, on real grids, at the rate asked for."""

import time
from datetime import UTC, date, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.demo.instruments import contract, instrument, next_roll
from ingest.demo.market import QUOTE_RATE_MAX, RATE_MIN, Market, split_rate
from ingest.errors import ConfigurationError
from storage.schemas import QUOTES, TICKS, Flag

SYMBOLS = ("MES", "MNQ", "NQ", "SPY", "QQQ", "VIX")
SECOND = 1_000_000
NOON = int(datetime(2026, 11, 18, 17, tzinfo=UTC).timestamp()) * SECOND
GRID = {"MES": 4, "MNQ": 4, "NQ": 4, "SPY": 100, "QQQ": 100, "VIX": 100}

windows = st.lists(
    st.integers(NOON - SECOND, NOON + SECOND), min_size=3, max_size=6, unique=True
).map(sorted)


def rows_of(batch: pa.RecordBatch) -> list[dict[str, object]]:
    return [row | {"ts_recv": None} for row in batch.to_pylist()]


def by_symbol(table: pa.RecordBatch) -> dict[str, pa.RecordBatch]:
    symbols = table["symbol"].cast(pa.string())
    return {name: table.filter(pc.equal(symbols, name)) for name in pc.unique(symbols).to_pylist()}


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(SYMBOLS, rate=1_000, seed=7)


@pytest.fixture(scope="module")
def minute(market: Market) -> pa.RecordBatch:
    return market.ticks(NOON, NOON + 60 * SECOND, received=NOON + 60 * SECOND)


@given(cuts=windows)
@settings(deadline=None, max_examples=25)
def test_a_window_holds_what_its_parts_hold(cuts: list[int]) -> None:
    market = Market(SYMBOLS, rate=500, seed=3)
    for read in (market.ticks, market.quotes):
        whole = rows_of(read(cuts[0], cuts[-1], received=0))
        parts = [rows_of(read(start, end, received=0)) for start, end in pairwise(cuts)]
        assert whole == [row for part in parts for row in part]


def test_two_instances_agree_on_every_row_they_both_know() -> None:
    first = Market(SYMBOLS, rate=1_000, seed=7).ticks(NOON, NOON + SECOND, received=0)
    again = Market(SYMBOLS, rate=1_000, seed=7).ticks(NOON, NOON + SECOND, received=0)
    other = Market(SYMBOLS, rate=1_000, seed=8).ticks(NOON, NOON + SECOND, received=0)
    assert first.equals(again)
    assert not first.equals(other)


@given(slow=st.integers(1, 3_000), fast=st.integers(3_000, 60_000))
@settings(deadline=None, max_examples=15)
def test_one_sequence_means_one_row_at_any_rate(slow: int, fast: int) -> None:
    seen: dict[object, dict[str, object]] = {}
    for rate in (slow, fast):
        batch = Market(SYMBOLS, rate=rate, seed=7).ticks(NOON, NOON + SECOND // 2, received=0)
        for row in rows_of(batch):
            identity = (row["source"], row["contract"], row["sequence"], row["kind"])
            assert seen.setdefault(identity, row) == row


def test_sequences_rise_strictly_in_every_symbol(minute: pa.RecordBatch) -> None:
    for rows in by_symbol(minute).values():
        assert (np.diff(rows["sequence"].to_numpy()) > 0).all()


def test_rows_lie_in_their_window_and_in_order(minute: pa.RecordBatch) -> None:
    times = minute["ts_event"].cast(pa.int64()).to_numpy()
    assert times.min() >= NOON
    assert times.max() < NOON + 60 * SECOND
    assert (np.diff(times) >= 0).all()
    assert minute["ts_recv"].cast(pa.int64()).to_pylist() == [NOON + 60 * SECOND] * len(minute)


def test_the_rate_is_kept_to_the_tick(minute: pa.RecordBatch, market: Market) -> None:
    counts = {symbol: len(rows) for symbol, rows in by_symbol(minute).items()}
    assert sum(market.rates.values()) == 1_000
    assert min(market.rates.values()) >= RATE_MIN
    for symbol, rate in market.rates.items():
        # The first and the last slot may lie across the edge of the window.
        assert abs(counts[symbol] - 60 * rate) <= 2


@given(
    rate=st.integers(1, 1_000_000),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=40),
)
def test_shares_of_the_rate_add_up_and_none_starves(rate: int, weights: list[float]) -> None:
    shares = split_rate(rate, weights)
    assert sum(shares) == max(rate, RATE_MIN * len(weights))
    assert min(shares) >= RATE_MIN


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_prices_lie_on_the_grid(minute: pa.RecordBatch, symbol: str) -> None:
    rows = by_symbol(minute)[symbol]
    for column in ("price", "bid", "ask"):
        steps = rows[column].to_numpy() * GRID[symbol]
        assert np.round(steps) / GRID[symbol] == pytest.approx(rows[column].to_numpy(), abs=0)


def test_the_aggressor_pays_the_other_side(minute: pa.RecordBatch) -> None:
    price, bid, ask, side = (minute[name].to_numpy() for name in ("price", "bid", "ask", "side"))
    assert (bid < ask).all()
    assert (price[side == 1] == ask[side == 1]).all()
    assert (price[side == -1] == bid[side == -1]).all()
    inside = side == 0
    assert ((bid[inside] < price[inside]) & (price[inside] < ask[inside])).all()
    assert set(side) == {-1, 0, 1}


def test_ticks_and_quotes_show_the_same_book(market: Market) -> None:
    ticks = by_symbol(market.ticks(NOON, NOON + 5 * SECOND, received=0))
    quotes = by_symbol(market.quotes(NOON, NOON + 5 * SECOND, received=0))
    for symbol, rows in ticks.items():
        near = np.searchsorted(
            quotes[symbol]["sequence"].to_numpy(), rows["sequence"].to_numpy()
        ).clip(0, len(quotes[symbol]) - 1)
        apart = np.abs(quotes[symbol]["bid"].to_numpy()[near] - rows["bid"].to_numpy())
        assert apart.max() <= 0.001 * rows["bid"].to_numpy().max()


@pytest.mark.parametrize(
    ("symbol", "low", "high"),
    [
        ("MES", 6_000, 7_000),
        ("MNQ", 21_000, 25_000),
        ("NQ", 21_000, 25_000),
        ("SPY", 590, 690),
        ("QQQ", 500, 620),
        ("VIX", 15, 21),
    ],
)
def test_prices_stay_near_their_level_for_years(symbol: str, low: float, high: float) -> None:
    market = Market([symbol], rate=20, seed=0)
    days = range(0, 2_000, 5)
    prices = np.concatenate(
        [
            market.ticks(start, start + SECOND // 10, received=0)["price"].to_numpy()
            for start in (NOON + day * 86_400 * SECOND for day in days)
        ]
    )
    assert low < prices.min() < prices.max() < high
    assert prices.max() / prices.min() > 1.02


def hourly_returns(market: Market, symbol: str) -> np.ndarray:
    prices = [
        market.ticks(start, start + SECOND, received=0)
        for start in range(NOON, NOON + 400 * 3_600 * SECOND, 3_600 * SECOND)
    ]
    last = [by_symbol(batch)[symbol]["price"][-1].as_py() for batch in prices]
    return np.diff(np.log(last))


def test_nasdaq_futures_move_as_one_and_volatility_against_the_market() -> None:
    market = Market(SYMBOLS, rate=120, seed=0)
    mes, mnq, nq, vix = (hourly_returns(market, name) for name in ("MES", "MNQ", "NQ", "VIX"))
    assert np.corrcoef(mnq, nq)[0, 1] > 0.99
    assert np.corrcoef(mes, mnq)[0, 1] > 0.8
    assert np.corrcoef(mes, vix)[0, 1] < -0.8


def test_rows_say_what_they_are(minute: pa.RecordBatch) -> None:
    assert minute.schema == TICKS.wire_schema
    assert pc.unique(minute["flags"]).to_pylist() == [Flag.VALID_TICK | Flag.SYNTHETIC]
    assert pc.unique(minute["kind"]).to_pylist() == [0]
    assert pc.unique(minute["source"].cast(pa.string())).to_pylist() == ["demo"]
    assert pc.min(minute["size"]).as_py() > 0
    assert not minute["exchange"].null_count


def test_quotes_have_their_schema_and_their_own_rate() -> None:
    market = Market(["MNQ"], rate=5_000)
    quotes = market.quotes(NOON, NOON + SECOND, received=NOON)
    assert quotes.schema == QUOTES.wire_schema
    assert abs(len(quotes) - QUOTE_RATE_MAX) <= 2
    assert pc.all(pc.less(quotes["bid"], quotes["ask"])).as_py()


def test_an_unknown_symbol_trades_like_a_stock() -> None:
    rows = Market(["ACME.X"], rate=50).ticks(NOON, NOON + SECOND, received=0)
    assert set(rows["contract"].to_pylist()) == {"ACME.X"}
    assert pc.min(rows["price"]).as_py() > 10


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (date(2026, 11, 21), "/MNQZ26:XCME"),
        (date(2026, 12, 13), "/MNQZ26:XCME"),
        (date(2026, 12, 14), "/MNQH27:XCME"),  # Monday before the third Friday
        (date(2027, 1, 1), "/MNQH27:XCME"),
        (date(2027, 6, 13), "/MNQM27:XCME"),
        (date(2027, 6, 14), "/MNQU27:XCME"),
    ],
)
def test_the_front_month_is_the_one_of_the_day(day: date, expected: str) -> None:
    assert contract(instrument("MNQ"), day) == expected
    assert next_roll(day) > day


def test_a_roll_falls_between_two_rows() -> None:
    roll = int(datetime(2026, 12, 14, tzinfo=UTC).timestamp()) * SECOND
    rows = Market(["MNQ", "SPY"], rate=200).ticks(roll - SECOND, roll + SECOND, received=0)
    futures = by_symbol(rows)["MNQ"]
    before = futures["sequence"].to_numpy() < roll
    months = np.array(futures["contract"].to_pylist())
    assert set(months[before]) == {"/MNQZ26:XCME"}
    assert set(months[~before]) == {"/MNQH27:XCME"}
    assert set(by_symbol(rows)["SPY"]["contract"].to_pylist()) == {"SPY"}


def test_an_empty_window_has_the_schema(market: Market) -> None:
    assert market.ticks(NOON, NOON, received=0).schema == TICKS.wire_schema
    assert market.quotes(NOON, NOON - 5, received=0).num_rows == 0


def test_a_hundred_thousand_ticks_a_second_are_made_in_time() -> None:
    market = Market(SYMBOLS, rate=100_000)
    step = SECOND // 50
    began = time.process_time()
    rows = sum(
        market.ticks(NOON + i * step, NOON + (i + 1) * step, received=0).num_rows for i in range(50)
    )
    assert rows == pytest.approx(100_000, abs=12)
    # A tenth is usual; this fails only when the work is no longer vectorised.
    assert time.process_time() - began < 0.9


@pytest.mark.parametrize(
    ("symbols", "rate"), [((), 100), (("mnq",), 100), (("MNQ",), 0), (("MNQ",), 2_000_000)]
)
def test_settings_that_can_not_work_are_refused(symbols: tuple[str, ...], rate: int) -> None:
    with pytest.raises(ConfigurationError):
        Market(symbols, rate=rate)
