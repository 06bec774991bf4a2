"""A window that rolls over a stream of rows: the newest ones, for a model to look at."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from tickflight.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

MERGED_ROWS: Final = 4_096
"""Small batches are joined up to so many rows: a table of thousands of chunks is slow to read."""
_MICROSECONDS: Final = 1_000_000


class RollingWindow:
    """The newest rows of a stream, by time or by number.

    With ``seconds``, the rows whose ``by`` lies less than so many seconds before the newest one
    that was added, however late each came. With ``rows``, the last ones that were added; with both,
    those that are both. Rows keep the order in which they were added, and what has left the window
    leaves memory.

    Args:
        seconds: how long the window is.
        rows: how many rows it has at most; one of the two is needed, and both may be given.
        by: the column of instants that ``seconds`` is about.
    """

    def __init__(
        self, *, seconds: float | None = None, rows: int | None = None, by: str = "ts_event"
    ) -> None:
        if seconds is None and rows is None:
            raise InvalidRequestError("say how large the window is: seconds or rows")
        if (seconds is not None and seconds <= 0) or (rows is not None and rows < 1):
            raise InvalidRequestError("a window has more than 0 seconds and at least one row")
        self._span = None if seconds is None else round(seconds * _MICROSECONDS)
        self._limit = rows
        self._by = by
        # The mutable state: batches as they were added, and the newest instant among all of them.
        self._batches: deque[pa.RecordBatch] = deque()
        self._schema: pa.Schema | None = None
        self._count = 0
        self._newest: int | None = None

    def __repr__(self) -> str:
        return f"<RollingWindow {len(self):,} rows>"

    def __len__(self) -> int:
        return int(self.table().num_rows)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows behind all others.

        Raises:
            InvalidRequestError: they lack the column that the window goes by, or are of another
                kind than those before.
        """
        if self._schema is None:
            self._schema = batch.schema
        elif not batch.schema.equals(self._schema):
            raise InvalidRequestError("a window takes rows of one schema; make one for each stream")
        if self._span is not None and self._by not in batch.schema.names:
            raise InvalidRequestError(f"the rows have no column {self._by!r} to go by", field="by")
        if not batch.num_rows:
            return
        self._append(batch)
        if self._span is not None:
            newest = pc.max(self._instants(batch)).as_py()
            if newest is not None and (self._newest is None or newest > self._newest):
                self._newest = newest
        self._leave()

    def table(self) -> pa.Table:
        """The rows in the window, in the order in which they were added.

        Raises:
            InvalidRequestError: nothing was added yet, so nobody knows which columns there are.
        """
        if self._schema is None:
            raise InvalidRequestError("the window is empty: add a batch first")
        table = pa.Table.from_batches(list(self._batches), self._schema)
        if self._limit is not None:
            table = table.slice(max(0, table.num_rows - self._limit))
        if self._span is not None and self._newest is not None:
            instants = table[self._by].cast(pa.int64())
            inside = pc.greater(instants, self._newest - self._span)
            if not pc.all(inside).as_py():
                table = table.filter(inside)
        return table

    def polars(self) -> pl.DataFrame:
        """The rows as a Polars frame (``pip install tickflight[polars]``)."""
        try:
            import polars as pl  # noqa: PLC0415 - optional
        except ImportError:
            raise ConfigurationError(
                "polars is missing: pip install 'tickflight[polars]'"
            ) from None
        frame = pl.from_arrow(self.table())
        assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table is never a Series
        return frame

    def pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame (``pip install tickflight[pandas]``)."""
        try:
            import pandas  # noqa: F401, ICN001, PLC0415 - optional, and pyarrow only says ModuleNotFound
        except ImportError:
            raise ConfigurationError(
                "pandas is missing: pip install 'tickflight[pandas]'"
            ) from None
        frame: pd.DataFrame = self.table().to_pandas()
        return frame

    def _append(self, batch: pa.RecordBatch) -> None:
        """Keep rows; small batches in a row become one."""
        self._count += batch.num_rows
        if self._batches and self._batches[-1].num_rows + batch.num_rows <= MERGED_ROWS:
            batch = pa.concat_batches([self._batches.pop(), batch])
        self._batches.append(batch)

    def _leave(self) -> None:
        """Drop the oldest batches of which no row is in the window any more."""
        while len(self._batches) > 1 and self._has_left(self._batches[0]):
            self._count -= self._batches.popleft().num_rows

    def _has_left(self, batch: pa.RecordBatch) -> bool:
        if self._limit is not None and self._count - batch.num_rows >= self._limit:
            return True
        if self._span is None or self._newest is None:
            return False
        newest = pc.max(self._instants(batch)).as_py()
        return newest is None or bool(newest <= self._newest - self._span)

    def _instants(self, batch: pa.RecordBatch) -> pa.Array:
        return batch.column(self._by).cast(pa.int64())
