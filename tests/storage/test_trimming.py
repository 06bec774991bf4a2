"""Rows leave memory, and whoever reads does not notice."""

import gc
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.batched import COALESCE_BATCHES, BatchedStore
from storage.columnar import CHUNK_ROWS, ColumnarStore
from storage.runs import BLOCK_ROWS, GrowingArray
from storage.schemas import GEX, TICKS
from storage.selection import Order, Selection
from storage.validation import Decoder
from tests.storage.conftest import NOON, Alone, gamma, ticks
from tests.storage.test_total_order import BATCHES, Row, Shelf, read

ALL = Selection(source="all")
FOREVER = 1 << 62


def numbered(start: int, stop: int) -> pa.RecordBatch:
    """Ticks whose sequence is their position."""
    instants = [NOON + i for i in range(start, stop)]
    sequences = list(range(start, stop))
    return ticks(stop - start, ts_event=instants, ts_recv=instants, sequence=sequences)


def append(store: ColumnarStore, batch: pa.RecordBatch) -> None:
    columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
    store.append(columns)


def sequences(view: Alone) -> list[int]:
    batches = list(view.range(ALL, 0, FOREVER, Order.TIME))
    return [n for batch in batches for n in batch["sequence"].to_pylist()]


def view_of(store: ColumnarStore) -> Alone:
    return Alone(store.state)


class TestColumns:
    @settings(max_examples=100)
    @given(BATCHES, st.data())
    def test_views_see_the_rows_above_the_base_of_their_time(
        self, batches: list[list[Row]], data: st.DataObject
    ) -> None:
        shelf, borders, base = Shelf(), [0], 0
        views: list[tuple[Alone, list[Row]]] = []
        for rows in batches:
            shelf.append(rows)
            borders.append(len(shelf.model))
            if data.draw(st.booleans()):
                base = data.draw(st.sampled_from([b for b in borders if b >= base]))
                shelf.store.trim(base)
            views.append((shelf.view(), sorted(shelf.model[base:])))
        for view, expected in views:
            assert read(view) == expected
            for symbol in ("A", "B"):
                rows = [row for row in expected if row.symbol == symbol]
                extent = view.extent(symbol)
                assert (extent.rows if extent else 0) == len(rows)
                if extent:
                    assert (extent.first, extent.last) == (rows[0].ts, rows[-1].ts)
            newest = view.latest(ALL, 2, NOON)["sequence"].to_pylist()
            kept = [row for s in "AB" for row in [r for r in expected if r.symbol == s][-2:]]
            assert newest == [row.sequence for row in sorted(kept)]

    @pytest.mark.parametrize("batch_rows", [40_000, BLOCK_ROWS, CHUNK_ROWS])
    def test_rows_on_both_sides_of_every_border_survive_a_trim(self, batch_rows: int) -> None:
        store, count = ColumnarStore(TICKS, first=3), 3 * CHUNK_ROWS
        for start in range(0, count, batch_rows):
            append(store, numbered(start, min(start + batch_rows, count)))
            if start:
                store.trim(3 + start)
                assert sequences(view_of(store))[0] == start
        expected = list(range(start, count))
        assert sequences(view_of(store)) == expected
        journaled = pa.Table.from_batches(store.journal_batches(store.base, store.end))
        assert journaled["sequence"].to_pylist() == expected

    def test_a_store_without_a_row_goes_on_where_it_was(self) -> None:
        store = ColumnarStore(TICKS)
        for start in (0, CHUNK_ROWS, CHUNK_ROWS + 5):
            append(store, numbered(start, start + CHUNK_ROWS))
            store.trim(store.end)
            assert sequences(view_of(store)) == []
            assert view_of(store).symbols() == []
        append(store, numbered(9, 9 + 4))
        assert store.end - store.base == 0  # they are known still
        append(store, numbered(FOREVER >> 20, (FOREVER >> 20) + 4))
        assert len(sequences(view_of(store))) == 4

    def test_a_repeat_of_a_row_that_left_is_still_a_repeat(self) -> None:
        store = ColumnarStore(TICKS)
        append(store, numbered(0, 10))
        store.trim(10)
        append(store, numbered(5, 12))
        assert sequences(view_of(store)) == [10, 11]

    def test_memory_is_free_once_the_last_view_is_gone(self) -> None:
        store = ColumnarStore(TICKS)
        append(store, numbered(0, CHUNK_ROWS + 5))
        gone, view = weakref.ref(store.state.chunks[0].columns[0]), view_of(store)
        before = store.nbytes
        gc.disable()  # it must not take the garbage collector
        try:
            store.trim(CHUNK_ROWS + 5)
            assert gone() is not None
            assert len(sequences(view)) == CHUNK_ROWS + 5
            del view
            assert gone() is None
        finally:
            gc.enable()
        assert store.nbytes < before / 5


class TestBatches:
    @given(st.lists(st.integers(1, 3), max_size=3 * COALESCE_BATCHES), st.data())
    def test_views_see_the_rows_above_the_base_of_their_time(
        self, counts: list[int], data: st.DataObject
    ) -> None:
        store, views, base = BatchedStore(GEX, first=7), [], 7
        for count in counts:
            for _ in range(count):
                instant = NOON + store.end
                store.append(gamma(ts_event=[instant], spot=float(store.end)))
            if data.draw(st.integers(0, 9)) == 0:
                base = data.draw(st.integers(base, store.end))
                store.trim(base)
            views.append((Alone(store.state), list(range(base, store.end))))
        for view, expected in views:
            batches = view.range(ALL, 0, FOREVER, Order.TIME)
            assert [int(n) for b in batches for n in b["spot"].to_pylist()] == expected
        journaled = pa.Table.from_batches(store.journal_batches(base, store.end), GEX.schema)
        assert journaled.num_rows == store.end - base

    def test_bytes_are_those_of_the_batches_that_stay(self) -> None:
        store = BatchedStore(GEX)
        for minute in range(3 * COALESCE_BATCHES):
            store.append(gamma(ts_event=[NOON + minute]))
        before = store.nbytes
        store.trim(2 * COALESCE_BATCHES)
        assert 0 < store.nbytes < before / 2
        store.trim(store.end)
        assert store.nbytes == 0


@given(st.integers(0, 3 * BLOCK_ROWS), st.integers(0, BLOCK_ROWS), st.data())
def test_the_rest_of_a_growing_array_grows_by_itself(
    length: int, more: int, data: st.DataObject
) -> None:
    whole = GrowingArray()
    whole.extend(np.arange(length))
    first = data.draw(st.integers(0, length))
    second = data.draw(st.integers(first, length))
    rest = whole.without_first(first).without_first(second - first)
    rest.extend(np.arange(length, length + more))
    expected = np.arange(second, length + more)
    assert (rest.slice(0, rest.length) == expected).all()
    blocks = list(rest.newest_blocks())
    assert sum(len(block) for block in blocks) == rest.length
    if len(expected):
        assert rest[rest.length - 1] == expected[-1]
        assert rest[0] == expected[0]
    assert (whole.slice(0, length) == np.arange(length)).all()
