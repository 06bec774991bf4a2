"""The total order of the rows of a data file."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.schemas import Dataset

Key = npt.NDArray[np.int64]


def order_of_file(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that the rows of a file are ordered by, most significant first.

    A file of several symbols has them one after another; rows without one come last.
    """
    first = () if "symbol" in dataset.partition_by else ("symbol",)
    return (*first, *dataset.order)


def sorted_rows(rows: pa.Table, dataset: Dataset) -> pa.Table:
    """Return rows in the order of a file; those that are equal in it stay as they are."""
    keys = [key for name in order_of_file(dataset) if (key := _key(rows, name)) is not None]
    if not keys or _is_sorted(keys):
        return rows
    return rows.take(pa.array(np.lexsort(keys[::-1])))


def _key(rows: pa.Table, name: str) -> Key | None:
    """Return numbers in the order of a column's values; None where that decides nothing."""
    at = rows.schema.get_field_index(name)
    if at < 0 or not rows.num_rows:
        return None
    column = rows.column(at)
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        key = _ranks(column)
    else:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        key = column.to_numpy().astype(np.int64, copy=False)
    return key if (key != key[0]).any() else None


def _ranks(column: pa.ChunkedArray) -> Key:
    """Return each string's place among all of the column by UTF-8 bytes, nulls last."""
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    words = array.dictionary.to_pylist()
    ranks = np.empty(len(words) + 1, np.int64)
    in_order = sorted(range(len(words)), key=lambda at: (words[at] is None, words[at] or ""))
    ranks[in_order] = np.arange(len(words))
    ranks[-1] = len(words)
    codes = array.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    key: Key = ranks[codes]
    return key


def _is_sorted(keys: list[Key]) -> bool:
    undecided = np.ones(len(keys[0]) - 1, bool)
    for key in keys:
        if (undecided & (key[1:] < key[:-1])).any():
            return False
        undecided &= key[1:] == key[:-1]
    return True
