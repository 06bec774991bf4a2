"""The order of rows in Arrow batches, as readers get them."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import InvalidDataError
from storage.runs import Integers
from storage.schemas import Dataset

KeyValues = tuple[int | str | None, ...]
"""What one row is ordered by, most significant first; instants in µs."""


@lru_cache(maxsize=64)
def reading_order(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that an answer is ordered by, most significant first.

    It is the total order. The symbol, which that leaves open, comes where a lane ends: rows of one
    lane stay together where all before is equal.
    """
    lane = len([name for name in dataset.lane if name != "symbol"]) + 1
    return (*dataset.order[:lane], "symbol", *dataset.order[lane:])


def instants_of(batch: pa.RecordBatch) -> Integers:
    """Return the ``ts_event`` of each row, µs, without copying."""
    column = batch.column(batch.schema.get_field_index("ts_event"))
    return np.asarray(column.view(pa.int64()).to_numpy())


def in_order(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Return rows sorted by columns; ones that are equal in all of them stay as they are.

    Rows are sorted by the first column, and only those that are equal in it by all others: that is
    seldom, and telling strings apart is dear.

    Args:
        batch: Any rows.
        names: What to sort by, most significant first; begins with ``ts_event``.
    """
    first = instants_of(batch)
    if (first[1:] > first[:-1]).all():
        return batch
    order = np.argsort(first, kind="stable")
    ordered = first[order]
    tied = tied_rows(ordered)
    if len(tied):
        rows = order[tied]
        among = batch.take(pa.array(rows))
        keys = [key_of(among.column(name)) for name in reversed(names[1:])]
        order[tied] = rows[np.lexsort([*keys, ordered[tied]])]
    return batch.take(pa.array(order))


def tied_rows(ordered: Integers) -> Integers:
    """Return where sorted numbers equal a neighbour."""
    same = ordered[1:] == ordered[:-1]
    if not same.any():
        return np.empty(0, np.int64)
    return np.flatnonzero(np.append(same, [False]) | np.insert(same, 0, [False]))


def key_of(column: pa.Array) -> Integers:
    """Return numbers in the order of a column's values: strings by UTF-8 bytes, nulls last."""
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.int64())
        return np.asarray(column.to_numpy(zero_copy_only=not column.null_count))
    words = column.dictionary.to_pylist()
    ranks = np.empty(len(words) + 1, np.int64)
    ranks[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
    ranks[-1] = len(words)
    codes = column.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    return np.asarray(ranks[codes])


def key_at(batch: pa.RecordBatch, names: Sequence[str], row: int) -> KeyValues:
    """Return the key of one row, counted from the end where ``row`` is negative."""
    at = row % batch.num_rows
    return tuple(_comparable(batch.column(name).slice(at, 1))[0].as_py() for name in names)


def rows_after(batch: pa.RecordBatch, names: Sequence[str], key: KeyValues) -> pa.BooleanArray:
    """Return which rows come after a key in the order of ``names``; those equal to it don't.

    Args:
        batch: Rows with plain strings.
        names: What rows are ordered by, most significant first.
        key: As ``order_key`` has checked it.
    """
    later = pa.array(np.zeros(batch.num_rows, bool))
    same = pa.array(np.ones(batch.num_rows, bool))
    for name, value in zip(names, key, strict=True):
        column = _comparable(batch.column(name))
        if value is None:  # nulls come last
            same = pc.and_(same, column.is_null())
            continue
        wanted = pa.scalar(value, column.type)
        behind = pc.fill_null(pc.greater(column, wanted), fill_value=True)
        later = pc.or_(later, pc.and_(same, behind))
        same = pc.and_(same, pc.fill_null(pc.equal(column, wanted), fill_value=False))
    return later


def order_key(dataset: Dataset, values: Sequence[object]) -> KeyValues:
    """Return a key that somebody has sent, checked.

    Raises:
        InvalidDataError: It is none of this dataset.
    """
    names = reading_order(dataset)
    fields = [dataset.schema.field(name) for name in names]
    good = len(values) == len(fields) and all(map(_fits, values, fields))
    if not good:
        what = ", ".join(names)
        message = f"after.key must be what the metadata of a batch said: {what}"
        raise InvalidDataError(message, field="after")
    return tuple(values)  # type: ignore[arg-type]  # each was just looked at


def _fits(value: object, field: pa.Field) -> bool:
    if value is None:
        return bool(field.nullable)
    if pa.types.is_string(field.type):
        return isinstance(value, str)
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _comparable(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.int64())
