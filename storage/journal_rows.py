"""The rows of journal records, decoded: as the hot stores take them, whatever version wrote them.

Schemas only ever gain nullable columns. A file says in its header what its records look like; the
columns they lack are null.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.dictionary import NULL
from storage.validation import Column, fixed_width_values

HotStore = ColumnarStore | BatchedStore

_END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class UnreadableRowsError(ValueError):
    """Bytes are no rows of the schema they should have; never leaves this package."""


def decode(schema: pa.Schema, bodies: Sequence[Any]) -> list[pa.RecordBatch]:
    """Decode the bodies of some records.

    Raises:
        UnreadableRowsError: They are no rows of this schema.
    """
    stream = b"".join((schema.serialize(), *bodies, _END_OF_STREAM))
    try:
        return list(pa.ipc.open_stream(stream))
    except (pa.ArrowException, OSError) as error:
        raise UnreadableRowsError(f"the rows can't be decoded ({error})") from error


def require_known(store: HotStore, schema: pa.Schema) -> None:
    """Check that rows of ``schema`` can be taken into a store of today.

    Raises:
        UnreadableRowsError: A column is unknown, of another type, or missing and not nullable.
    """
    for field in schema:
        at = store.journal_schema.get_field_index(field.name)
        if at < 0 or not store.journal_schema.field(at).type.equals(field.type):
            known = f"column {field.name!r} ({field.type}) is unknown to this version"
            raise UnreadableRowsError(f"{store.dataset.name}: {known}, a later one wrote it")
    for field in store.dataset.schema:
        if not field.nullable and field.name not in schema.names:
            raise UnreadableRowsError(f"{store.dataset.name}: column {field.name!r} is missing")


def restore(
    store: HotStore, batches: Sequence[pa.RecordBatch], strings: dict[str, list[str]]
) -> None:
    """Append decoded rows to a store.

    Args:
        store: Where they belong.
        batches: The rows, of a schema that is ``known``.
        strings: What the codes mean in each column, in the order of the codes.
    """
    if isinstance(store, ColumnarStore):
        store.restore(columns_of(store, batches, strings))
    else:
        store.restore(conformed(store, pa.concat_batches(batches)))


def columns_of(
    store: ColumnarStore, batches: Sequence[pa.RecordBatch], strings: dict[str, list[str]]
) -> list[Column]:
    """Return decoded rows as a store's columns; see ``restore``."""
    rows = sum(batch.num_rows for batch in batches)
    columns = []
    for spec in store.specs:
        name = spec.field.name
        if name not in batches[0].schema.names:
            absent = np.nan if spec.dictionary is None else NULL
            columns.append(np.full(rows, absent, spec.width))
            continue
        parts = [fixed_width_values(batch.column(name), spec.width) for batch in batches]
        column = np.concatenate(parts)
        if spec.dictionary is not None:
            values = pa.array(strings.get(name, []), pa.string())
            column = spec.dictionary.encode(values)[column]
        columns.append(column)
    return columns


def conformed(store: BatchedStore, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return decoded rows in the schema that a store has today."""
    schema = store.dataset.schema
    arrays = [
        batch.column(field.name)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
