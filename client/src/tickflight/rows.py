"""Rows as callers have them, as the record batches that travel."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tickflight.errors import InvalidRequestError

MAX_BATCH_ROWS: Final = 65_536
"""Rows of a batch on the wire: a few MB, below every gRPC peer's limit."""
_CHEAP_BYTES: Final = 1 << 20
"""Below this, counting whole buffers is near enough, and 30 times as fast as counting exactly."""

SchemaSource: TypeAlias = pa.Schema | Callable[[], pa.Schema]
"""The types for rows that have none of their own, or where to ask for them."""


class ArrowStream(Protocol):
    """What exports an Arrow C stream: frames of Polars and pandas, DuckDB relations."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Rows: TypeAlias = pa.Table | pa.RecordBatch | Sequence[Mapping[str, object]] | ArrowStream
"""Rows as callers have them; times in dicts are aware datetimes or epoch µs."""


class RowReader:
    """Turns what callers write into record batches, without a copy where it is Arrow already."""

    def __init__(self, schema: SchemaSource) -> None:
        """Take the types for rows that have none of their own, or where to ask for them."""
        self._schema = schema
        self._clean: pa.Schema | None = None  # the last one seen that travels as it is

    def batches(self, data: Rows) -> list[pa.RecordBatch]:
        """Read a table, a record batch, a list of dicts or anything that exports an Arrow stream.

        Raises:
            InvalidRequestError: it is none of these, or a value does not fit its column.
        """
        if isinstance(data, pa.RecordBatch):
            whole = [data]
        elif isinstance(data, pa.Table):
            whole = data.to_batches()
        elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
            whole = [self._from_dicts(data)]
        elif hasattr(data, "__arrow_c_stream__"):
            whole = pa.table(data).to_batches()
        else:
            raise InvalidRequestError(
                f"{type(data).__name__} can't be written: give a table, a record batch or dicts"
            )
        return [piece for batch in whole for piece in _pieces(self._tidied(batch))]

    def _tidied(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch without other libraries' notes, in the one kind of text the wire knows."""
        if batch.schema.metadata:
            batch = batch.replace_schema_metadata(None)
        if self._clean is None or not batch.schema.equals(self._clean):
            for index, data_type in enumerate(batch.schema.types):
                if _is_foreign_text(data_type):
                    field = batch.schema.field(index).with_type(pa.string())
                    batch = batch.set_column(index, field, batch.column(index).cast(pa.string()))
            self._clean = batch.schema
        return batch

    def _from_dicts(self, rows: Sequence[Mapping[str, object]]) -> pa.RecordBatch:
        schema = self._types()
        known = set(schema.names)
        used: set[str] = set()
        for row in rows:
            if not isinstance(row, Mapping):
                raise InvalidRequestError(f"a row is a dict, not {type(row).__name__}")
            used |= row.keys()
            for name, value in row.items():
                if name not in known:
                    raise InvalidRequestError(f"there is no column {name!r}", field=name)
                if isinstance(value, datetime) and value.tzinfo is None:
                    raise InvalidRequestError(f"{name} has a datetime without a zone", field=name)
        columns = pa.schema([one for one in schema if one.name in used or not one.nullable])
        try:
            batch = pa.RecordBatch.from_pylist(list(rows), schema=columns)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise InvalidRequestError(f"a value does not fit its column: {error}") from None
        for field, column in zip(columns, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                raise InvalidRequestError(f"{field.name} is missing in a row", field=field.name)
        return batch

    def _types(self) -> pa.Schema:
        if not isinstance(self._schema, pa.Schema):
            self._schema = self._schema()
        return self._schema


def size_of(batch: pa.RecordBatch) -> int:
    """Bytes a batch holds in memory, near enough for a bound."""
    size = int(batch.get_total_buffer_size())
    # Slices share their parent's buffers, which this counts in full: count exactly.
    return size if size <= _CHEAP_BYTES else int(batch.nbytes)


def joined(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of one schema as one; dictionaries are merged."""
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def pack(batch: pa.RecordBatch) -> memoryview:
    """A batch as a self-contained Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return memoryview(sink.getvalue())


def unpack(body: memoryview) -> pa.RecordBatch:
    """The batch of ``pack``."""
    with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
        return stream.read_next_batch()


def described(batches: Sequence[pa.RecordBatch]) -> tuple[tuple[str, ...], int | None, int | None]:
    """Symbols, first and last ``ts_event`` in µs, as far as the columns are there."""
    table = pa.Table.from_batches(batches)
    symbols: tuple[str, ...] = ()
    first = last = None
    if "symbol" in table.schema.names:
        column = table.column("symbol").cast(pa.string())
        symbols = tuple(sorted(filter(None, pc.unique(column).to_pylist())))
    if "ts_event" in table.schema.names:
        times = table.column("ts_event").cast(pa.timestamp("us", "UTC"), safe=False)
        extremes = pc.min_max(times.cast(pa.int64())).as_py()
        first, last = extremes["min"], extremes["max"]
    return symbols, first, last


def _is_foreign_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return bool(pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type))


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, MAX_BATCH_ROWS):
        yield batch if batch.num_rows <= MAX_BATCH_ROWS else batch.slice(start, MAX_BATCH_ROWS)
