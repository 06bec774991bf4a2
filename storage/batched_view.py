"""Reading a dataset of batches as it was at one position."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from storage.batched import BatchedState
from storage.merge import BLOCK_ROWS_TARGET
from storage.schemas import wire_projection
from storage.selection import ALL_SOURCES, Order, Selection, SymbolExtent


class BatchedView:
    """The rows of a ``BatchedState`` below one position; what it answers never changes."""

    def __init__(self, state: BatchedState) -> None:
        self._state = state
        self.end = state.end

    def symbols(self) -> list[str]:
        """Return the symbols that have rows, sorted; rows without a symbol don't count."""
        return sorted(name for name in self._table()["symbol"].unique().to_pylist() if name)

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        table = self._table()
        instants = table.filter(pc.field("symbol") == symbol)["ts_event"].cast(pa.int64())
        if not len(instants):
            return None
        bounds = pc.min_max(instants).as_py()
        return SymbolExtent(len(instants), bounds["min"], bounds["max"], sources=1)

    def latest(self, selection: Selection, limit: int, now: int) -> pa.RecordBatch:  # noqa: ARG002
        """Return the newest ``limit`` rows of each symbol by total order, oldest first."""
        table = self._selected(self._table(), selection)
        symbols: Sequence[str | None] = table["symbol"].unique().to_pylist()
        newest = [
            self._sorted(table.filter(_equals(table["symbol"], symbol)))[-limit:]
            for symbol in symbols
        ]
        found = self._sorted(pa.concat_tables(newest)) if newest else table
        return self._wire(found, selection)

    def range(
        self, selection: Selection, start: int, end: int, order: Order
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows with ``start <= ts_event < end`` in total order."""
        table = self._selected(self._table(), selection)
        instants = table["ts_event"].cast(pa.int64())
        inside = pc.and_(pc.greater_equal(instants, start), pc.less(instants, end))
        first = ("symbol",) if order is Order.SYMBOL else ()
        table = self._sorted(table.filter(inside), first=first)
        for at in range(0, table.num_rows, BLOCK_ROWS_TARGET):
            yield self._wire(table.slice(at, BLOCK_ROWS_TARGET), selection)

    def _table(self) -> pa.Table:
        return self._state.table(self.end)

    def _selected(self, table: pa.Table, selection: Selection) -> pa.Table:
        if selection.symbols is not None:
            wanted = pa.array(selection.symbols, pa.string())
            table = table.filter(pc.is_in(table["symbol"], wanted))
        named = selection.source not in (None, ALL_SOURCES)
        if named and "source" in self._state.dataset.schema.names:
            table = table.filter(pc.field("source") == selection.source)
        return table

    def _sorted(self, table: pa.Table, *, first: tuple[str, ...] = ()) -> pa.Table:
        names = [*first, *self._state.dataset.order]
        order = pc.sort_indices(table.select(names), [(name, "ascending") for name in names])
        return table.take(order)

    def _wire(self, table: pa.Table, selection: Selection) -> pa.RecordBatch:
        dataset = self._state.dataset
        names = selection.columns_of(dataset)
        schema = wire_projection(dataset.name, names)
        chosen = table.select(list(names)).combine_chunks()
        arrays = []
        for field in schema:
            column = chosen[field.name]
            array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
            encode = pa.types.is_dictionary(field.type)
            arrays.append(array.dictionary_encode() if encode else array)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _equals(column: pa.ChunkedArray, symbol: str | None) -> pa.ChunkedArray:
    return pc.is_null(column) if symbol is None else pc.equal(column, symbol)
