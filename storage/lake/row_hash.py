"""A hash of rows that no reordering, batching, encoding or joining of files changes.

Each value is mixed with its column's name, the values of a row are added up and mixed again, and
the rows are added up, modulo 2**64. So one changed bit always changes the hash, as do values that
changed places in a row or between rows, but for a chance of 2**-64; the hash of some files is the
sum of theirs. A missing value counts nothing: rows keep their hash when a dataset gains a column.

Canonical values: integers, dates and instants (µs) as int64, floats as the bits of a double with
NaN as missing, text as a hash of its UTF-8, lists and structs by what they hold. The hash is part
of the ledger, so it must never change: not with a version, nor with a machine.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.schemas import Dataset

Hashes = npt.NDArray[np.uint64]

BLOCK_ROWS: Final = 1 << 13
"""Rows hashed at a time: what is mixed stays in the second-level cache."""
MODULUS: Final = 1 << 64
_MULTIPLIERS: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
"""Of the finalizer of MurmurHash3, which lets every bit of its input change half of its output."""
_SHIFT: Final = np.uint64(33)
_TEXT_BYTES: Final = 8


def row_hash(rows: pa.Table | pa.RecordBatch, dataset: Dataset, symbol: str | None = None) -> int:
    """Return the hash of some rows of a dataset, at least 0 and below 2**64.

    Args:
        rows: Some columns of the dataset, in its types or in those of the lake, strings plain or as
            a dictionary. What is not a column of the dataset is left out.
        dataset: Whose rows they are.
        symbol: The symbol of all rows, where they have no such column.
    """
    sums = (block.sum(dtype=np.uint64) for block in _blocks(rows, dataset, symbol))
    return sum(map(int, sums)) % MODULUS


def hashes(rows: pa.Table | pa.RecordBatch, dataset: Dataset, symbol: str | None = None) -> Hashes:
    """Return the hash of each of some rows; see ``row_hash``."""
    return np.concatenate([np.empty(0, np.uint64), *_blocks(rows, dataset, symbol)])


def combine(hashes: Iterable[int]) -> int:
    """Return the hash of all the rows that some hashes are of."""
    return sum(hashes) % MODULUS


def as_text(value: int) -> str:
    """Return a hash as ledgers hold it: 16 hexadecimal digits."""
    return f"{value:016x}"


def from_text(text: str) -> int:
    """Return the hash that ``as_text`` made the text of.

    Raises:
        ValueError: It is no such text.
    """
    return int(text, 16)


def _blocks(
    rows: pa.Table | pa.RecordBatch, dataset: Dataset, symbol: str | None
) -> Iterator[Hashes]:
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
        shared = 0
        if symbol is not None and "symbol" not in batch.schema.names:
            shared = int(_column("symbol", pa.array([symbol]))[0])
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            yield _of_rows(batch.slice(start, BLOCK_ROWS), dataset, np.uint64(shared))


def _of_rows(batch: pa.RecordBatch, dataset: Dataset, shared: np.uint64) -> Hashes:
    values = np.full(batch.num_rows, shared, np.uint64)
    for name in dataset.schema.names:
        at = batch.schema.get_field_index(name)
        if at >= 0:
            values += _column(name, batch.column(at))
    return _mixed(values)


def _column(name: str, array: pa.Array) -> Hashes:
    """Return the hash of each value of a column, 0 where there is none."""
    values, missing = _values(array)
    values = _mixed(values ^ _seed(name))
    if missing is not None:
        values[missing] = 0
    return values


def _values(array: pa.Array) -> tuple[Hashes, npt.NDArray[np.bool_] | None]:
    """Return each value in 64 bits, and where there is none; None where all are there."""
    kind = array.type
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_dictionary(kind):
        return _coded(array, missing)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(array), missing
    if pa.types.is_struct(kind):
        return _structs(array), missing
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _coded(array.dictionary_encode(), missing)
    if pa.types.is_floating(kind):
        floats = _plain(array, pa.float64()).view(np.float64)
        unknown = np.isnan(floats)
        if unknown.any():
            missing = unknown if missing is None else missing | unknown
        return floats.view(np.uint64), missing
    return _plain(array, pa.int64()).view(np.uint64), missing


def _plain(array: pa.Array, data_type: pa.DataType) -> npt.NDArray[np.generic]:
    """Return the values of a fixed-width column; missing ones are anything."""
    if pa.types.is_timestamp(array.type) or pa.types.is_date64(array.type):
        array = array.view(pa.int64())
    elif pa.types.is_date32(array.type):
        array = array.view(pa.int32())
    array = array.cast(data_type)
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), np.int64)
    return np.frombuffer(buffer, np.int64, len(array), array.offset * 8)


def _coded(
    array: pa.DictionaryArray, missing: npt.NDArray[np.bool_] | None
) -> tuple[Hashes, npt.NDArray[np.bool_] | None]:
    if len(array.dictionary) > len(array):  # only what these rows need
        array = array.dictionary_decode().dictionary_encode()
    texts = array.dictionary.to_pylist()
    if not texts:
        return np.zeros(len(array), np.uint64), missing
    words = np.array([0 if text is None else _text(text) for text in texts], np.uint64)
    codes = _plain(array.indices, pa.int64()).view(np.int64)
    if missing is not None:
        codes = np.where(missing, 0, codes)
    if array.dictionary.null_count:  # where Arrow does not count them
        unknown = array.dictionary.is_null().to_numpy(zero_copy_only=False)[codes]
        missing = unknown if missing is None else missing | unknown
    return words[codes], missing


def _text(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=_TEXT_BYTES).digest()
    return int.from_bytes(digest, "little")


def _structs(array: pa.StructArray) -> Hashes:
    values = np.zeros(len(array), np.uint64)
    for at, field in enumerate(array.type):
        child = array.field(at)
        values += _column(field.name, child)
    return _mixed(values)


def _lists(array: pa.ListArray) -> Hashes:
    """Return for each list the sum of its elements, each mixed with its place, and its length."""
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    elements, missing = _values(array.flatten())  # without what lies below a missing list
    ends = np.cumsum(lengths)
    places = np.arange(len(elements), dtype=np.int64) - np.repeat(ends - lengths, lengths)
    mixed = _mixed(elements ^ _mixed(places.view(np.uint64) + np.uint64(1)))
    if missing is not None:
        mixed[missing] = 0
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)))
    return _mixed(sums[ends] - sums[ends - lengths] + _mixed(lengths.view(np.uint64)))


def _mixed(values: Hashes) -> Hashes:
    """Return values with every bit spread over all 64; never the same for two of them."""
    mixed = values ^ (values >> _SHIFT)
    for multiplier in _MULTIPLIERS:
        mixed *= multiplier
        mixed ^= mixed >> _SHIFT
    return mixed


@lru_cache(maxsize=1024)
def _seed(name: str) -> np.uint64:
    return np.uint64(_text(name))
