"""What a snapshot answers: the model's bars, whatever came late, twice, or from elsewhere."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import bars_view, merge
from storage.bar_sessions import Grid, Session, parse_interval
from storage.bars_view import BarsRequest, bars
from storage.errors import InvalidDataError
from storage.schemas import BARS, Flag
from storage.selection import ALL_SOURCES, Selection
from storage.snapshot import COVERAGE_KEY
from storage.store import Store
from tests.bars.conftest import DAY, MIDNIGHT, MINUTE, TICKS, Bar, Tick, model_bars
from tests.storage.conftest import Lab, rows_of, send, ticks

FOREVER = 1 << 62
MINUTES = Grid(parse_interval("1m"))
GRIDS = [
    Grid(parse_interval(interval), session)
    for interval in ("1s", "90s", "1m", "5m", "4h", "1d")
    for session in Session
]
PRIORITY = ("best", "good")
OWN_FLAGS = ~int(Flag.SUSPICIOUS)
"""The door adds that one to whatever looks odd to it."""
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all examples: each has symbols and contracts of its own."""
    lab = Lab(tmp_path_factory.mktemp("bars"))
    yield lab.open(None, *PRIORITY)
    lab.close_all()
    assert lab.failures == []


def put(store: Store, rows: Sequence[Tick]) -> None:
    names = ("symbol", "source", "contract", "sequence", "kind", "price", "size", "side", "flags")
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in names}
    instants = [row.ts for row in rows]
    send(store, ticks(len(rows), ts_event=instants, ts_recv=instants, **columns))


def put_candles(store: Store, symbol: str, *minutes: int, **columns: Any) -> None:
    defaults = {
        "ts_event": [MIDNIGHT + minute * MINUTE for minute in minutes],
        "ts_recv": [MIDNIGHT + (minute + 1) * MINUTE for minute in minutes],
        "symbol": symbol,
        "interval": "1m",
        **dict.fromkeys(("open", "high", "low", "close", "vwap"), 77.0),
        **dict.fromkeys(("volume", "buy_volume", "sell_volume"), 7.0),
        "trades": 7,
        "flags": int(Flag.BACKFILLED),
        "source": "candles",
    }
    send(store, rows_of(BARS, len(minutes), defaults, **columns), dataset="bars")


def table_of(
    store: Store, grid: Grid = MINUTES, span: tuple[int, int] = (0, FOREVER), **selection: Any
) -> pa.Table:
    answer = bars(store.snapshot(), BarsRequest(Selection(**selection), grid, *span))
    table = pa.Table.from_batches(answer.batches, answer.schema)
    assert table.schema.remove_metadata().equals(BARS.wire_schema)
    return table


def asked(
    store: Store,
    grid: Grid,
    symbols: tuple[str, ...],
    span: tuple[int, int] = (0, FOREVER),
    source: str | None = None,
) -> list[Bar]:
    """Ask for bars and read them row by row."""
    table = table_of(store, grid, span, symbols=symbols, source=source)
    assert set(table["interval"].to_pylist()) <= {grid.interval.text}
    names = ["ts_event", *BARS.schema.names[2:3], "source", *BARS.schema.names[4:-1]]
    found = table.select(names).set_column(0, "ts_event", table["ts_event"].cast(pa.int64()))
    columns = [found[name].to_pylist() for name in names]
    return [without_doubt(Bar(*row)) for row in zip(*columns, strict=True)]


def without_doubt(bar: Bar) -> Bar:
    return replace(bar, flags=bar.flags & OWN_FLAGS)


def admitted(rows: Sequence[Tick]) -> list[Tick]:
    """Leave out what the door takes for a repeat."""
    known: dict[tuple[object, ...], Tick] = {}
    for row in rows:
        known.setdefault((row.source, row.contract, row.sequence, row.kind), row)
    return list(known.values())


def best(rows: Sequence[Tick]) -> list[Tick]:
    """Keep the rows of the best source of each symbol and date."""
    speakers: dict[tuple[str, int], str] = {}
    for row in sorted(rows, key=lambda row: PRIORITY.index(row.source)):
        speakers.setdefault((row.symbol, row.ts // DAY), row.source)
    return [row for row in rows if speakers[row.symbol, row.ts // DAY] == row.source]


def alone(rows: Sequence[Tick]) -> list[Tick]:
    """Give rows symbols and contracts that no other example has."""
    number = next(NUMBERS)
    return [
        replace(
            row,
            symbol=f"{row.symbol}{number}",
            contract=f"{row.symbol}{row.contract}.{number}",
            sequence=row.sequence,
        )
        for row in rows
    ]


def symbols_of(rows: Sequence[Tick]) -> tuple[str, ...]:
    return tuple({row.symbol for row in rows})


def expected(rows: Sequence[Tick], grid: Grid, span: tuple[int, int] = (0, FOREVER)) -> list[Bar]:
    model = model_bars(rows, lambda ts: int(grid.starts(np.array([ts]))[0]))
    return [without_doubt(bar) for bar in model if span[0] <= bar.start < span[1]]


INSTANTS = st.one_of(
    st.just(0),
    st.just(FOREVER),
    st.integers(-120, 1500).map(lambda minute: MIDNIGHT + minute * MINUTE),
    st.integers(-120, 90_000).map(lambda second: MIDNIGHT + second * 1_000_000),
)


@given(
    st.lists(TICKS, min_size=1, max_size=30),
    st.integers(1, 7),
    st.sampled_from(GRIDS),
    st.tuples(INSTANTS, INSTANTS).map(sorted),
)
@settings(max_examples=150)
def test_any_tape_in_any_batches_gives_the_bars_of_the_model(
    store: Store, rows: list[Tick], size: int, grid: Grid, span: Sequence[int]
) -> None:
    rows = alone(rows)
    for at in range(0, len(rows), size):
        put(store, rows[at : at + size])
    within = span[0], span[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "BLOCK_ROWS_TARGET", size)
        patch.setattr(bars_view, "BLOCK_BARS_MIN", size)
        model = expected(best(admitted(rows)), grid, within)
        assert asked(store, grid, symbols_of(rows), within) == model


@given(st.lists(TICKS, min_size=1, max_size=30), st.sampled_from(GRIDS))
@settings(max_examples=50)
def test_every_source_has_bars_of_its_own_when_all_are_asked_for(
    store: Store, rows: list[Tick], grid: Grid
) -> None:
    rows = alone(rows)
    put(store, rows)
    model = model_bars(
        admitted(rows),
        lambda ts: int(grid.starts(np.array([ts]))[0]),
        apart=lambda row: (row.symbol, row.source),
    )
    found = asked(store, grid, symbols_of(rows), source=ALL_SOURCES)
    assert found == [without_doubt(bar) for bar in model]


def tick(second: float, **fields: Any) -> Tick:
    (row,) = alone([Tick(0, "A", "best", "Z6", 1, 0, 10.0, 1.0, 0, int(Flag.VALID_TICK))])
    return replace(row, ts=MIDNIGHT + int(second * 1e6), **fields)


class TestSpans:
    def test_bars_are_whole_and_begin_inside(self, store: Store) -> None:
        row = tick(0)
        put(store, [replace(row, ts=MIDNIGHT + s * 1_000_000, sequence=s) for s in range(180)])
        span = MIDNIGHT + 30_000_000, MIDNIGHT + 90_000_000
        (bar,) = asked(store, MINUTES, (row.symbol,), span)
        assert (bar.start, bar.trades) == (MIDNIGHT + MINUTE, 60)

    def test_an_empty_span_has_no_bars_and_a_reversed_one_is_refused(self, store: Store) -> None:
        assert asked(store, MINUTES, ("A",), (MIDNIGHT, MIDNIGHT)) == []
        with pytest.raises(InvalidDataError) as refused:
            asked(store, MINUTES, ("A",), (1, 0))
        assert refused.value.field == "end"

    def test_the_end_of_a_bar_is_when_it_is_known(self, store: Store) -> None:
        row = tick(61)
        put(store, [row])
        known = table_of(store, symbols=(row.symbol,))["ts_recv"].cast(pa.int64()).to_pylist()
        assert known == [MIDNIGHT + 2 * MINUTE]

    def test_a_symbol_without_rows_has_the_schema_and_a_coverage(self, store: Store) -> None:
        table = table_of(store, symbols=("NONE",))
        assert table.num_rows == 0
        assert b'"NONE"' in table.schema.metadata[COVERAGE_KEY]


class TestCandles:
    def test_a_candle_stands_in_for_a_minute_without_ticks(self, store: Store) -> None:
        row = tick(61)
        put(store, [row])
        put_candles(store, row.symbol, 0, 1, 3)
        found = asked(store, MINUTES, (row.symbol,))
        assert [bar.source for bar in found] == ["candles", "best", "candles"]
        assert [bar.open for bar in found] == [77.0, 10.0, 77.0]

    def test_longer_bars_are_made_of_ticks_and_candles(self, store: Store) -> None:
        row = tick(61)
        put(store, [row])
        put_candles(store, row.symbol, 0, 1, 3)
        (bar,) = asked(store, Grid(parse_interval("5m")), (row.symbol,))
        assert (bar.volume, bar.trades, bar.source) == (15.0, 15, "candles")
        assert (bar.open, bar.low, bar.close) == (77.0, 10.0, 77.0)
        assert bar.flags == Flag.VALID_TICK | Flag.BACKFILLED

    def test_the_last_candle_told_of_a_minute_counts(self, store: Store) -> None:
        (symbol,) = symbols_of([tick(0)])
        put_candles(store, symbol, 5, open=1.0)
        put_candles(store, symbol, 5, open=2.0)
        (bar,) = asked(store, MINUTES, (symbol,))
        assert bar.open == 2.0

    def test_candles_of_other_intervals_and_spans_are_left_out(self, store: Store) -> None:
        (symbol,) = symbols_of([tick(0)])
        put_candles(store, symbol, 5, interval="5m")
        put_candles(store, symbol, 1, 2, 3)
        span = MIDNIGHT + 2 * MINUTE, MIDNIGHT + 3 * MINUTE
        (bar,) = asked(store, MINUTES, (symbol,), span)
        assert bar.start == span[0]

    def test_below_a_minute_there_are_no_candles(self, store: Store) -> None:
        (symbol,) = symbols_of([tick(0)])
        put_candles(store, symbol, 5)
        assert asked(store, Grid(parse_interval("1s")), (symbol,)) == []


def test_several_blocks_of_bars_are_sent_and_all_symbols_are_in_order(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    store = lab.open()
    count = bars_view.BLOCK_BARS_MIN
    instants = [MIDNIGHT + second * 1_000_000 for second in range(count)]
    for symbol in ("Z", "A"):
        send(
            store, ticks(count, ts_event=instants, ts_recv=instants, symbol=symbol, contract=symbol)
        )
    request = BarsRequest(Selection(), Grid(parse_interval("1s")), 0, FOREVER)
    batches = list(bars(store.snapshot(), request).batches)
    assert len(batches) > 1
    table = pa.Table.from_batches(batches)
    assert table.num_rows == 2 * count
    assert table["symbol"].to_pylist() == ["A", "Z"] * count
    lab.close_all()
