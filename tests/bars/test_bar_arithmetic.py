"""Columns give the same bars as a person with a pencil."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.bar_sessions import Grid, Session, parse_interval
from storage.bars import Bars, Ticks, bars_of, condensed, joined, settled
from storage.schemas import Flag, Kind
from tests.bars.conftest import DAY, MIDNIGHT, MINUTE, TICKS, Bar, Tick, events_of, model_bars

SYMBOLS = ["A", "B"]
SOURCES = ["best", "good"]
CONTRACTS = ["Z6", "H7"]
SOME = settings(max_examples=200)
GRIDS = [
    Grid(parse_interval(interval), session)
    for interval in ("1s", "15s", "90s", "1m", "5m", "1h", "4h", "1d")
    for session in Session
]
TAPES = st.lists(TICKS, max_size=40)


def columns(rows: list[Tick]) -> Ticks:
    """Build what the arithmetic takes."""
    rows = sorted(rows, key=lambda row: row.order)

    def column(name: str, kind: type = np.int64) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], kind)

    series = np.array([SYMBOLS.index(row.symbol) for row in rows], np.int64)
    source = np.array([SOURCES.index(row.source) for row in rows], np.int64)
    contract = np.array([CONTRACTS.index(row.contract) for row in rows], np.int64)
    return Ticks(
        ts_event=column("ts"),
        series=series,
        source=source,
        feed=(series * len(SOURCES) + source) * len(CONTRACTS) + contract,
        sequence=column("sequence"),
        kind=column("kind", np.int8),
        price=column("price", np.float64),
        size=column("size", np.float64),
        side=column("side", np.int8),
        flags=column("flags", np.uint16),
    )


def rows_of(bars: Bars) -> list[Bar]:
    """Read bars row by row."""
    _, _, series, source, *_ = columns = [column.tolist() for column in bars]
    columns[Bars._fields.index("turnover")] = bars.vwap.tolist()
    named = [[SYMBOLS[one] for one in series], [SOURCES[one] for one in source]]
    return [Bar(*row) for row in zip(columns[0], *named, *columns[4:], strict=True)]


def bars(rows: list[Tick], grid: Grid) -> Bars:
    ticks = settled(columns(rows))
    return condensed(bars_of(ticks), grid.starts(ticks.ts_event))


def start_in(grid: Grid, instant: int) -> int:
    return int(grid.starts(np.array([instant]))[0])


def tick(second: float = 0.0, **fields: object) -> Tick:
    plain = Tick(0, "A", "best", "Z6", 1, Kind.NEW, 10.0, 1.0, 0, int(Flag.VALID_TICK))
    return replace(plain, ts=MIDNIGHT + int(second * 1e6), **fields)  # type: ignore[arg-type]


@given(TAPES, st.sampled_from(GRIDS))
@SOME
def test_any_tape_gives_the_bars_of_the_model(rows: list[Tick], grid: Grid) -> None:
    assert rows_of(bars(rows, grid)) == model_bars(rows, lambda ts: start_in(grid, ts))


@given(TAPES)
@SOME
def test_settling_leaves_one_row_an_event_in_total_order(rows: list[Tick]) -> None:
    left = settled(columns(rows))
    expected = events_of(rows)
    assert left.ts_event.tolist() == [row.ts for row in expected]
    assert left.price.tolist() == [row.price for row in expected]


@given(TAPES, st.sampled_from(GRIDS))
@SOME
def test_bars_of_bars_are_the_bars_of_their_ticks(rows: list[Tick], grid: Grid) -> None:
    base = grid.interval.base
    ticks = settled(columns(rows))
    short = condensed(bars_of(ticks), ticks.ts_event // base * base)
    assert rows_of(condensed(short, grid.starts(short.start))) == rows_of(bars(rows, grid))


@given(TAPES, st.integers(0, 1500))
@SOME
def test_a_tape_cut_at_a_minute_gives_the_same_bars(rows: list[Tick], minute: int) -> None:
    cut = MIDNIGHT + minute * MINUTE
    grid = Grid(parse_interval("1d"), Session.CME)
    parts = [
        settled(columns([row for row in rows if (row.ts < cut) == early]))
        for early in (True, False)
    ]
    together = joined([bars_of(part) for part in parts])
    assert rows_of(condensed(together, grid.starts(together.start))) == rows_of(bars(rows, grid))


class TestAmendments:
    GRID = Grid(parse_interval("1m"))

    def bar(self, *rows: Tick) -> Bar:
        (bar,) = rows_of(bars(list(rows), self.GRID))
        return bar

    def test_a_cancelled_trade_never_happened(self) -> None:
        kept = tick(1, sequence=1, price=10.0)
        wrong = tick(2, sequence=2, price=99.0)
        assert self.bar(kept, wrong, replace(wrong, kind=Kind.CANCEL)) == self.bar(kept)

    def test_a_minute_whose_trades_were_all_cancelled_has_no_bar(self) -> None:
        wrong = tick(2, price=99.0)
        assert rows_of(bars([wrong, replace(wrong, kind=Kind.CANCEL)], self.GRID)) == []

    def test_a_corrected_trade_stays_where_it_was(self) -> None:
        first, last = tick(1, sequence=1, price=10.0), tick(3, sequence=2, price=11.0)
        corrected = tick(2, sequence=1, price=8.0, size=5.0, kind=Kind.CORRECTION)
        bar = self.bar(first, corrected, last)
        assert (bar.open, bar.high, bar.low, bar.close) == (8.0, 11.0, 8.0, 11.0)
        assert (bar.volume, bar.trades) == (6.0, 2)

    def test_a_correction_of_a_trade_that_never_came_is_a_trade(self) -> None:
        bar = self.bar(tick(1, kind=Kind.CORRECTION, price=7.0))
        assert (bar.close, bar.trades) == (7.0, 1)

    def test_a_repeat_counts_once(self) -> None:
        assert self.bar(tick(1), tick(1)).trades == 1

    def test_the_same_sequence_of_another_contract_is_another_trade(self) -> None:
        bar = self.bar(tick(1), tick(1, contract="H7", price=12.0))
        assert (bar.trades, bar.high) == (2, 12.0)


class TestPrices:
    GRID = Grid(parse_interval("1m"))

    def bar(self, *rows: Tick) -> Bar:
        (bar,) = rows_of(bars([replace(r, sequence=i) for i, r in enumerate(rows)], self.GRID))
        return bar

    @pytest.mark.parametrize("flags", [Flag.VALID_TICK | Flag.SPREAD_LEG, Flag(0)])
    def test_legs_and_invalid_trades_make_volume_and_no_price(self, flags: Flag) -> None:
        odd = tick(1, price=50.0, size=3.0, flags=int(flags))
        bar = self.bar(odd, tick(2, price=10.0), tick(3, price=12.0), odd)
        assert (bar.open, bar.high, bar.low, bar.close) == (10.0, 12.0, 10.0, 12.0)
        assert (bar.volume, bar.trades) == (8.0, 4)
        assert bar.vwap == 322.0 / 8.0
        assert bar.flags == int(flags | Flag.VALID_TICK)

    def test_where_no_trade_is_valid_all_make_the_price_and_the_flags_say_so(self) -> None:
        bar = self.bar(tick(1, price=50.0, flags=0), tick(2, price=49.0, flags=0))
        assert (bar.open, bar.close, bar.flags) == (50.0, 49.0, 0)

    def test_without_volume_the_mean_price_is_the_close(self) -> None:
        bar = self.bar(tick(1, price=50.0, size=0.0), tick(2, price=49.0, size=0.0))
        assert (bar.volume, bar.vwap, bar.trades) == (0.0, 49.0, 2)

    def test_a_bar_is_suspicious_when_a_trade_is(self) -> None:
        odd = tick(2, price=0.5, flags=int(Flag.VALID_TICK | Flag.SUSPICIOUS))
        bar = self.bar(tick(1, price=50.0), odd)
        assert bar.low == 0.5
        assert bar.flags & Flag.SUSPICIOUS


def test_nothing_gives_no_bars() -> None:
    for grid in GRIDS:
        assert rows_of(bars([], grid)) == []
        assert len(grid.ends(np.empty(0, np.int64), np.empty(0, np.int64))) == 0


def test_bars_of_a_day_with_one_trade_each_are_the_trades() -> None:
    rows = [tick(second, sequence=second) for second in range(0, DAY // 1_000_000, 60)]
    assert len(rows_of(bars(rows, Grid(parse_interval("1m"))))) == 1440
