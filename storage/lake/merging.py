"""Joining sorted rows of several files into one, a bounded piece of each in memory."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from storage.lake.total_order import order_of_file, sorted_rows
from storage.schemas import Dataset


def merged(sources: Sequence[Iterator[pa.Table]], dataset: Dataset) -> Iterator[pa.Table]:
    """Yield the rows of all sources in the order of a file.

    Args:
        sources: Each in that order. Rows that are equal in it come in the order of the sources.
        dataset: Whose rows they are.
    """
    if order_of_file(dataset)[0] != "ts_event":  # small tables, of many symbols a file
        rows = [piece for source in sources for piece in source]
        if rows:
            yield sorted_rows(pa.concat_tables(rows), dataset)
        return
    cursors = [_Cursor(source) for source in sources]
    while cursors := [cursor for cursor in cursors if cursor.fill()]:
        # Below the newest instant that every source has been read up to, nothing more can come.
        limits = [cursor.newest for cursor in cursors if not cursor.ended]
        limit = min(limits) if limits else None
        pieces = [piece for cursor in cursors if (piece := cursor.take(limit)).num_rows]
        if pieces:
            yield sorted_rows(pa.concat_tables(pieces), dataset)
            continue
        for cursor in cursors:
            if cursor.newest == limit:  # a whole piece of one instant: the next decides
                cursor.grow()


class _Cursor:
    """What was read of a source, and not taken yet."""

    def __init__(self, source: Iterator[pa.Table]) -> None:
        self._source = source
        self._rows: pa.Table | None = None
        self.ended = False
        self.newest = 0

    def fill(self) -> bool:
        """Read on if there is nothing left; return whether there is something."""
        if self._rows is None or not self._rows.num_rows:
            self._rows = None
            self.grow()
        return self._rows is not None

    def grow(self) -> None:
        """Read the next piece."""
        piece = next((piece for piece in self._source if piece.num_rows), None)
        if piece is None:
            self.ended = True
            return
        self._rows = piece if self._rows is None else pa.concat_tables([self._rows, piece])
        self.newest = _instants(piece)[-1].as_py()

    def take(self, limit: int | None) -> pa.Table:
        """Return the rows before an instant, µs, and keep the rest; all where it is None."""
        rows = self._rows
        if rows is None:
            return pa.table({})
        if limit is None:
            self._rows = None
            return rows
        count = pc.sum(pc.less(_instants(rows), limit)).as_py()
        self._rows = rows.slice(count)
        return rows.slice(0, count)


def _instants(rows: pa.Table) -> pa.ChunkedArray:
    return rows["ts_event"].cast(pa.int64())
