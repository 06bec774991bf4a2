"""Reading a dataset of batches as it was at one position."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from storage.batched import BatchedState
from storage.merge import BLOCK_ROWS_TARGET
from storage.ordering import reading_order
from storage.schemas import wire_projection
from storage.selection import ALL_SOURCES, Selection, SymbolExtent
from storage.speakers import DAY
from storage.streams import Stream


class BatchedView:
    """The rows of a ``BatchedState`` below one position; what it answers never changes."""

    def __init__(self, state: BatchedState) -> None:
        self._state = state
        self._dataset = state.dataset
        self.end = state.end

    def symbols(self) -> list[str]:
        """Return the symbols that have rows, sorted; rows without a symbol don't count."""
        return sorted(name for name in self._table()["symbol"].unique().to_pylist() if name)

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        table = self._table()
        # By a mask: an expression would run through an engine that grumbles at Flight's buffers.
        instants = table["ts_event"].filter(pc.equal(table["symbol"], symbol)).cast(pa.int64())
        if not len(instants):
            return None
        bounds = pc.min_max(instants).as_py()
        return SymbolExtent(len(instants), bounds["min"], bounds["max"])

    def newest(self, selection: Selection, limit: int) -> dict[str | None, pa.RecordBatch]:
        """Return the newest ``limit`` rows of each symbol, in order; None is rows without one."""
        table = self._selected(self._table(), selection.symbols, _named(selection.source))
        symbols: Sequence[str | None] = table["symbol"].unique().to_pylist()
        names = tuple(self._dataset.schema.names)
        return {
            symbol: self._wire(
                self._sorted(table.filter(_equals(table["symbol"], symbol)))[-limit:], names
            )
            for symbol in symbols
        }

    def stream(
        self, symbols: Sequence[str | None] | None, source: str | None, start: int, end: int
    ) -> Stream | None:
        """Return the rows with ``start <= ts_event < end`` as one stream, None without any.

        Args:
            symbols: Symbols wanted, None among them for rows without one; None is all rows.
            source: The source wanted; None is all of them.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        table = self._selected(self._table(), symbols, source)
        instants = table["ts_event"].cast(pa.int64())
        inside = pc.and_(pc.greater_equal(instants, start), pc.less(instants, end))
        table = self._sorted(table.filter(inside))
        if not table.num_rows:
            return None

        def read(names: tuple[str, ...], _: int) -> Iterator[pa.RecordBatch]:
            for at in range(0, table.num_rows, BLOCK_ROWS_TARGET):
                yield self._wire(table.slice(at, BLOCK_ROWS_TARGET), names)

        bounds = pc.min_max(table["ts_event"].cast(pa.int64())).as_py()
        return Stream(bounds["min"], bounds["max"], read, table.num_rows)

    def dates(
        self, symbols: Sequence[str | None] | None, source: str | None, start: int, end: int
    ) -> set[int]:
        """Return the UTC dates (days since 1970) of the rows of a stream; see ``stream``."""
        table = self._selected(self._table(), symbols, source)
        instants = table["ts_event"].cast(pa.int64())
        inside = pc.and_(pc.greater_equal(instants, start), pc.less(instants, end))
        days = pc.divide(instants.filter(inside), DAY)
        return set(days.unique().to_pylist())

    def _table(self) -> pa.Table:
        return self._state.table(self.end)

    def _selected(
        self, table: pa.Table, symbols: Sequence[str | None] | None, source: str | None
    ) -> pa.Table:
        if symbols is not None:
            table = table.filter(pc.is_in(table["symbol"], pa.array(symbols, pa.string())))
        if source is not None and "source" in self._dataset.schema.names:
            table = table.filter(pc.equal(table["source"], source))
        return table

    def _sorted(self, table: pa.Table) -> pa.Table:
        names = reading_order(self._dataset)
        order = pc.sort_indices(table.select(names), [(name, "ascending") for name in names])
        return table.take(order)

    def _wire(self, table: pa.Table, names: tuple[str, ...]) -> pa.RecordBatch:
        schema = wire_projection(self._dataset.name, names)
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


def _named(source: str | None) -> str | None:
    return None if source == ALL_SOURCES else source
