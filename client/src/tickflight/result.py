"""The answer to a query: rows that are read when they are asked for, and how complete they are."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tickflight.coverage import Coverage
from tickflight.errors import ConfigurationError, InvalidRequestError, map_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import polars as pl
    from pyarrow import flight

_REPR_SYMBOLS: Final = 6  # as many as fit on a line


class Result:
    """Rows on their way from the server.

    Nothing is kept twice: take the whole (``arrow``, ``polars``, ``pandas``, as often as you like)
    or stream it once in bounded memory (``reader``, or iterate for record batches). Strings are
    plain strings unless ``categorical=True`` asks for the dictionaries they travelled as. Anything
    that speaks the Arrow C stream protocol takes a result as it is: ``polars.DataFrame(result)``.

    All methods raise errors of ``tickflight.errors``. A result may be handed to another thread;
    reading it from two at once is safe for the whole, and pointless for a stream.
    """

    def __init__(self, stream: flight.FlightStreamReader) -> None:
        with map_errors():
            wire_schema = stream.schema
        self.coverage = Coverage.from_metadata(wire_schema.metadata)
        """How complete the rows are, known before the first one is read."""
        self.schema = plain_schema(wire_schema)
        """The Arrow schema of what ``arrow()`` and ``reader()`` give."""
        # The mutable state: a stream not yet touched, then either a table or nothing left.
        self._stream: flight.FlightStreamReader | None = stream
        self._table: pa.Table | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        if self._table is not None:
            rows = f"{self._table.num_rows:,} rows"
        else:
            rows = "unread" if self._stream is not None else "streamed"
        symbols = list(self.coverage.symbols)
        shown = " ".join(symbols[:_REPR_SYMBOLS]) + (" …" if len(symbols) > _REPR_SYMBOLS else "")
        of = f" of {shown}" if shown else ""
        return f"<Result {rows} x {len(self.schema)} columns{of}, {self.coverage.state}>"

    def __len__(self) -> int:
        return int(self._read().num_rows)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield from self.reader()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.reader().__arrow_c_stream__(requested_schema)

    def arrow(self, *, categorical: bool = False) -> pa.Table:
        """All rows as a table."""
        table = self._read()
        return table.unify_dictionaries() if categorical else plain(table)

    def polars(self, *, categorical: bool = False) -> pl.DataFrame:
        """All rows as a Polars frame (``pip install tickflight[polars]``)."""
        try:
            import polars as pl  # noqa: PLC0415 - optional
        except ImportError:
            raise ConfigurationError(
                "polars is missing: pip install 'tickflight[polars]'"
            ) from None
        frame = pl.from_arrow(self.arrow(categorical=categorical))
        assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table is never a Series
        return frame

    def pandas(self, *, categorical: bool = False) -> pd.DataFrame:
        """All rows as a pandas frame (``pip install tickflight[pandas]``)."""
        try:
            import pandas  # noqa: F401, ICN001, PLC0415 - optional, and pyarrow only says ModuleNotFound
        except ImportError:
            raise ConfigurationError(
                "pandas is missing: pip install 'tickflight[pandas]'"
            ) from None
        frame: pd.DataFrame = self.arrow(categorical=categorical).to_pandas()
        return frame

    def reader(self, *, categorical: bool = False) -> pa.RecordBatchReader:
        """The rows as a stream of record batches, in memory one at a time.

        Raises:
            InvalidRequestError: the stream was already taken.
        """
        with self._lock:
            if self._table is not None:
                table = self._table if categorical else plain(self._table)
                return table.to_reader()
            stream = self._take()
        if categorical:
            return pa.RecordBatchReader.from_batches(stream.schema, _batches(stream))
        batches = (plain(batch) for batch in _batches(stream))
        return pa.RecordBatchReader.from_batches(self.schema, batches)

    def close(self) -> None:
        """Tell the server that the rest is not wanted; what was read stays readable."""
        with self._lock:
            if self._stream is not None:
                with map_errors():
                    self._stream.cancel()
                self._stream = None

    def _read(self) -> pa.Table:
        with self._lock:
            if self._table is None:
                stream = self._take()
                with map_errors():
                    self._table = stream.read_all()
            return self._table

    def _take(self) -> flight.FlightStreamReader:
        stream, self._stream = self._stream, None
        if stream is None:
            raise InvalidRequestError(
                "this result was already streamed; ask again, or use arrow() to keep all rows"
            )
        return stream


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionaries as what they stand for."""
    return pa.schema(
        [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in schema
        ],
        metadata=schema.metadata,
    )


def plain(rows: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """A table or record batch with dictionaries as what they stand for."""
    schema = plain_schema(rows.schema)
    return rows if schema.equals(rows.schema) else rows.cast(schema)


def _batches(stream: flight.FlightStreamReader) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            with map_errors():
                chunk = stream.read_chunk()
        except StopIteration:
            return
        if chunk.data is not None:  # a message may carry metadata alone
            yield chunk.data
