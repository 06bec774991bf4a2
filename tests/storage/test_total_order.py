"""Whatever order rows arrive in, readers get them in the total order, each exactly once."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import merge
from storage.columnar import CHUNK_ROWS, ColumnarStore
from storage.runs import BLOCK_ROWS
from storage.schemas import TICKS
from storage.selection import Order, Selection, SourcePolicy
from storage.speakers import DAY
from storage.validation import Decoder
from tests.storage.conftest import HOUR, NOON, Alone, ticks, ticks_of

ALL = Selection(source="all")
PRIORITY = ("best", "good")


@dataclass(frozen=True, order=True)
class Row:
    """A tick; its fields in the total order."""

    ts: int
    source: str
    contract: str
    sequence: int
    kind: int

    @property
    def symbol(self) -> str:
        return self.contract[:1]


ROWS = st.builds(
    Row,
    ts=st.integers(0, 12).map(lambda step: NOON + step * DAY // 5),
    source=st.sampled_from(["worst", "good", "best"]),
    contract=st.sampled_from(["A1", "A2", "B1"]),
    sequence=st.integers(0, 6),
    kind=st.integers(0, 2),
)
BATCHES = st.lists(st.lists(ROWS, max_size=12), max_size=12)
SOME = settings(max_examples=50)


class Shelf:
    """A columnar store beside a model of it: rows of Python in a list."""

    def __init__(self) -> None:
        self.store = ColumnarStore(TICKS)
        self.model: list[Row] = []

    def append(self, rows: list[Row]) -> None:
        batch = ticks_of(rows)
        known = {identity(row) for row in self.model}
        fresh = list({identity(row): row for row in reversed(rows)}.values())[::-1]
        fresh = [row for row in fresh if identity(row) not in known]
        columns, _ = Decoder(TICKS, batch.schema, self.store.dictionaries).decode(batch)
        assert self.store.append(columns) == len(rows) - len(fresh)
        self.model += fresh

    def view(self, *priority: str) -> Alone:
        return Alone(self.store.state, SourcePolicy(priority or PRIORITY, fresh_us=HOUR))


def identity(row: Row) -> Row:
    return replace(row, ts=0)


def rows_in(batches: Iterable[pa.RecordBatch]) -> list[Row]:
    """Read the rows of an answer back."""
    names = ("ts_event", "source", "contract", "sequence", "kind")
    table = pa.Table.from_batches(list(batches), schema=TICKS.wire_schema)
    columns = [table[name] for name in names]
    columns[0] = columns[0].cast(pa.int64())
    return [Row(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]


def read(view: Alone, selection: Selection = ALL, start: int = 0, end: int = 1 << 62) -> list[Row]:
    return rows_in(view.range(selection, start, end, Order.TIME))


def shelf_of(batches: Iterable[list[Row]]) -> Shelf:
    shelf = Shelf()
    for rows in batches:
        shelf.append(rows)
    return shelf


class TestRange:
    @SOME
    @given(BATCHES)
    def test_rows_come_in_total_order_whatever_order_they_arrived_in(
        self, batches: list[list[Row]]
    ) -> None:
        shelf = shelf_of(batches)
        assert read(shelf.view()) == sorted(shelf.model)

    @SOME
    @given(BATCHES, st.integers(-1, 13), st.integers(-1, 13))
    def test_a_span_includes_its_start_and_excludes_its_end(
        self, batches: list[list[Row]], first: int, last: int
    ) -> None:
        shelf = shelf_of(batches)
        start, end = sorted(NOON + step * DAY // 5 for step in (first, last))
        expected = sorted(row for row in shelf.model if start <= row.ts < end)
        assert read(shelf.view(), ALL, start, end) == expected

    @SOME
    @given(BATCHES, st.integers(1, 5))
    def test_blocks_of_any_size_hold_the_same_rows(
        self, batches: list[list[Row]], size: int
    ) -> None:
        shelf = shelf_of(batches)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(merge, "BLOCK_ROWS_TARGET", size)
            assert read(shelf.view()) == sorted(shelf.model)

    @SOME
    @given(BATCHES)
    def test_symbols_come_one_after_another_when_asked_for_so(
        self, batches: list[list[Row]]
    ) -> None:
        shelf = shelf_of(batches)
        found = rows_in(shelf.view().range(ALL, 0, 1 << 62, Order.SYMBOL))
        assert found == sorted(shelf.model, key=lambda row: (row.symbol, row))

    @SOME
    @given(BATCHES, st.sampled_from(["best", "worst", "nobody"]))
    def test_a_source_by_name_is_that_source_alone(
        self, batches: list[list[Row]], name: str
    ) -> None:
        shelf = shelf_of(batches)
        expected = sorted(row for row in shelf.model if row.source == name)
        assert read(shelf.view(), Selection(source=name)) == expected

    @SOME
    @given(BATCHES, st.sets(st.sampled_from(["A", "B", "C"])))
    def test_only_the_symbols_asked_for_come(
        self, batches: list[list[Row]], symbols: set[str]
    ) -> None:
        shelf = shelf_of(batches)
        expected = sorted(row for row in shelf.model if row.symbol in symbols)
        assert read(shelf.view(), replace(ALL, symbols=tuple(symbols))) == expected


def speaker(model: list[Row], row: Row) -> str:
    """The best source that has a row of the same symbol on the same date."""
    same = {r.source for r in model if (r.symbol, r.ts // DAY) == (row.symbol, row.ts // DAY)}
    return min(same, key=["best", "good", "worst"].index)


class TestSeveralSources:
    @SOME
    @given(BATCHES)
    def test_the_best_source_speaks_for_a_symbol_and_date(self, batches: list[list[Row]]) -> None:
        shelf = shelf_of(batches)
        spoken = [row for row in shelf.model if row.source == speaker(shelf.model, row)]
        assert read(shelf.view(), Selection()) == sorted(spoken)

    @SOME
    @given(BATCHES, st.integers(0, 13))
    def test_two_halves_of_a_span_are_the_whole(self, batches: list[list[Row]], step: int) -> None:
        view = shelf_of(batches).view()
        middle = NOON + step * DAY // 5
        halves = read(view, Selection(), end=middle) + read(view, Selection(), start=middle)
        assert halves == read(view, Selection())

    def test_latest_listens_to_live_sources_alone(self) -> None:
        old, live = Row(NOON, "best", "A1", 1, 0), Row(NOON + 2 * HOUR, "worst", "A1", 1, 0)
        view = shelf_of([[live], [old]]).view()
        assert rows_in([view.latest(Selection(), 10, NOON + 2 * HOUR)]) == [live]
        assert rows_in([view.latest(Selection(), 10, NOON + HOUR)]) == [old, live]
        assert rows_in([view.latest(ALL, 10, NOON + 2 * HOUR)]) == [old, live]

    def test_latest_listens_to_the_source_with_the_newest_row_when_none_is_live(self) -> None:
        old, newer = Row(NOON, "best", "A1", 1, 0), Row(NOON + 1, "worst", "A1", 1, 0)
        view = shelf_of([[newer], [old]]).view()
        assert rows_in([view.latest(Selection(), 10, NOON + 9 * HOUR)]) == [newer]

    def test_a_year_of_two_sources_comes_in_whole_blocks(self) -> None:
        """Every date has two sources to choose from, and still the answer is one block."""
        rows = [Row(NOON + day * DAY, "best", "A1", day, 0) for day in range(366)]
        other = [replace(row, source="worst") for row in rows]
        view = shelf_of([rows, other]).view()
        blocks = list(view.range(Selection(), 0, 1 << 62, Order.TIME))
        assert [block.num_rows for block in blocks] == [366]


class TestLatest:
    @SOME
    @given(BATCHES, st.integers(1, 8))
    def test_latest_is_the_end_of_the_total_order_of_each_symbol(
        self, batches: list[list[Row]], limit: int
    ) -> None:
        shelf = shelf_of(batches)
        newest = [
            row
            for symbol in "AB"
            for row in sorted(r for r in shelf.model if r.symbol == symbol)[-limit:]
        ]
        assert rows_in([shelf.view().latest(ALL, limit, NOON)]) == sorted(newest)

    @pytest.mark.parametrize("symbols", [(), ("C",), ("C", "D")])
    def test_latest_of_nothing_is_an_empty_batch(self, symbols: tuple[str, ...]) -> None:
        view = shelf_of([[Row(NOON, "best", "A1", 1, 0)]]).view()
        batch = view.latest(Selection(symbols=symbols), 10, NOON)
        assert batch.num_rows == 0
        assert batch.schema == TICKS.wire_schema


class TestViews:
    @SOME
    @given(BATCHES, st.data())
    def test_a_view_never_changes_while_rows_come(
        self, batches: list[list[Row]], data: st.DataObject
    ) -> None:
        shelf, views = Shelf(), []
        for rows in batches:
            views.append((shelf.view(), sorted(shelf.model)))
            shelf.append(rows)
        for view, model in views:
            assert read(view) == model
            limit = data.draw(st.integers(1, 8))
            alone = [row for row in model if row.symbol == "A"][-limit:]
            chosen = replace(ALL, symbols=("A",))
            assert rows_in([view.latest(chosen, limit, NOON)]) == alone

    @SOME
    @given(BATCHES)
    def test_a_view_knows_its_symbols_and_how_far_they_reached(
        self, batches: list[list[Row]]
    ) -> None:
        shelf, views = Shelf(), []
        for rows in batches:
            views.append((shelf.view(), list(shelf.model)))
            shelf.append(rows)
        for view, model in views:
            assert view.symbols() == sorted({row.symbol for row in model})
            for symbol in "AB":
                own = [row for row in model if row.symbol == symbol]
                extent = view.extent(symbol)
                if extent is None:
                    assert own == []
                else:
                    assert extent.rows == len(own)
                    assert (extent.first, extent.last) == (min(own).ts, max(own).ts)
                    assert extent.sources == {row.source for row in own}

    def test_a_source_that_begins_later_does_not_silence_an_older_view(self) -> None:
        shelf = shelf_of([[Row(NOON, "best", "A1", 1, 0)]])
        view = shelf.view()
        shelf.append([Row(NOON + 2 * HOUR, "good", "A1", 1, 0)])
        later = NOON + 2 * HOUR
        assert rows_in([view.latest(Selection(), 5, later)]) == [Row(NOON, "best", "A1", 1, 0)]


def numbered(start: int, stop: int, **columns: Any) -> pa.RecordBatch:
    instants = pa.array(np.arange(NOON + start, NOON + stop), pa.timestamp("us", tz="UTC"))
    sequences = pa.array(np.arange(start, stop))
    count = stop - start
    return ticks(count, ts_event=instants, ts_recv=instants, sequence=sequences, **columns)


class TestBorders:
    """Chunks and blocks are full at the same places whatever the batches were."""

    @pytest.mark.parametrize("batch_rows", [BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 50_000])
    def test_rows_on_both_sides_of_every_border_are_there(self, batch_rows: int) -> None:
        count = CHUNK_ROWS + BLOCK_ROWS + 7
        store = ColumnarStore(TICKS)
        for start in range(0, count, batch_rows):
            batch = numbered(start, min(start + batch_rows, count))
            columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
            store.append(columns)
        view = Alone(store.state)
        table = pa.Table.from_batches(view.range(ALL, 0, 1 << 62, Order.TIME))
        assert (table["sequence"].to_numpy() == np.arange(count)).all()
        for border in (BLOCK_ROWS, CHUNK_ROWS, CHUNK_ROWS + BLOCK_ROWS):
            span = view.range(ALL, NOON + border - 2, NOON + border + 2, Order.TIME)
            found = pa.Table.from_batches(span)["sequence"].to_pylist()
            assert found == [border - 2, border - 1, border, border + 1]
            below = Alone(store.state)
            below.hot.end = border + 1
            latest = below.latest(ALL, 3, NOON)["sequence"].to_pylist()
            assert latest == [border - 2, border - 1, border]

    def test_a_batch_longer_than_a_chunk_is_kept_whole(self) -> None:
        store = ColumnarStore(TICKS)
        count = 2 * CHUNK_ROWS + 5
        batch = numbered(0, count)
        columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
        assert store.append(columns) == 0
        assert store.append(columns) == count
        journaled = pa.Table.from_batches(store.journal_batches(0, count))
        assert (journaled["sequence"].to_numpy() == np.arange(count)).all()

    def test_a_whole_chunk_that_came_late_is_merged(self) -> None:
        store = ColumnarStore(TICKS)
        for start, stop in ((BLOCK_ROWS, 2 * BLOCK_ROWS), (0, BLOCK_ROWS)):
            batch = numbered(start, stop)
            columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
            store.append(columns)
        view = Alone(store.state)
        table = pa.Table.from_batches(view.range(ALL, 0, 1 << 62, Order.TIME))
        assert (table["sequence"].to_numpy() == np.arange(2 * BLOCK_ROWS)).all()


def test_absent_numbers_and_names_read_back_as_null() -> None:
    store = ColumnarStore(TICKS)
    batch = ticks(2, bid=[None, 1.5], exchange=[None, "X"])
    columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
    store.append(columns)
    (found,) = Alone(store.state).range(ALL, 0, 1 << 62, Order.TIME)
    assert found["bid"].to_pylist() == [None, 1.5]
    assert found["exchange"].to_pylist() == [None, "X"]
    assert found["bid"].null_count == 1
