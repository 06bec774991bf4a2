"""The rows of one finished journal file, dataset by dataset, to be taken apart and written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.errors import JournalCorruptError, JournalError
from storage.journal_file import JournalReader, Record
from storage.journal_record import schema_of
from storage.journal_rows import UnreadableRowsError, columns_of, conformed, decode, require_known
from storage.runs import Integers, Mask
from storage.schemas import DATASETS, Dataset, Flag, Layout
from storage.validation import Column

DECODE_ROWS: Final = 1 << 18
"""Rows decoded at a time: enough to spread the cost of small records."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A column of strings: the code of each row's in ``words``, -1 where there is none."""

    codes: Integers
    words: Sequence[str]


class SegmentRows(Protocol):
    """Rows of one dataset in arrival order; only ever read."""

    dataset: Dataset

    @property
    def rows(self) -> int:
        """How many."""

    def instants(self) -> Integers:
        """Return each row's ``ts_event``, µs."""

    def codes(self, name: str) -> Codes:
        """Return a column of strings."""

    def is_synthetic(self, members: Integers) -> Mask:
        """Return which of some rows are SYNTHETIC."""

    def take(self, members: Integers | slice) -> pa.Table:
        """Return some rows, strings in dictionaries where the dataset has them so."""


def read_segment(path: Path, spans: Mapping[str, tuple[int, int]]) -> dict[str, SegmentRows]:
    """Read rows of a journal file, verifying all of it.

    Args:
        path: A finished file.
        spans: First position of each dataset to read, and that after its last.

    Raises:
        JournalCorruptError: It is not what was written, or does not have all of these rows.
        JournalError: It can't be read.
    """
    if not path.is_file():
        raise JournalError(f"{path} is not there")  # SQLite would make it
    reader = JournalReader(path)
    loaders = {name: _Loader(reader, DATASETS[name], *span) for name, span in spans.items()}
    for record in reader.records():
        loader = loaders.get(record.dataset)
        if loader is not None:
            loader.add(record)
    return {name: loader.finish() for name, loader in loaders.items()}


def record_rows(reader: JournalReader, record: Record) -> pa.Table:
    """Return the rows of one record that ``JournalReader.record`` has returned.

    Raises:
        JournalCorruptError: They are no rows of its dataset.
    """
    end = record.position + record.rows
    loader = _Loader(reader, DATASETS[record.dataset], record.position, end)
    loader.add(record)
    return loader.finish().take(slice(None))


class _Loader:
    """Gathers one dataset's rows."""

    def __init__(self, reader: JournalReader, dataset: Dataset, first: int, end: int) -> None:
        self._path = reader.path
        self._next = first
        self._end = end
        kind = ColumnarStore if dataset.layout is Layout.COLUMNS else BatchedStore
        store = kind(dataset)  # which stays empty: it knows how its rows are journaled
        text = reader.header.schemas.get(dataset.name)
        self._schema = store.journal_schema if text is None else schema_of(text)
        self._strings: dict[str, list[str]] = {}
        self._bodies: list[Any] = []
        self._waiting = 0
        self._held = (
            _ColumnarRows(store, end - first)
            if isinstance(store, ColumnarStore)
            else _BatchedRows(store)
        )
        self._or_corrupt(lambda: require_known(store, self._schema))

    def add(self, record: Record) -> None:
        for column, values in record.strings.items():
            self._strings.setdefault(column, []).extend(values)
        if not record.rows:
            return
        if record.position != self._next or record.position + record.rows > self._end:
            detail = f"holds position {record.position} where {self._next} comes next"
            raise JournalCorruptError(self._path, None, detail)
        self._next += record.rows
        self._bodies.append(record.body)
        self._waiting += record.rows
        if self._waiting >= DECODE_ROWS:
            self._flush()

    def finish(self) -> SegmentRows:
        self._flush()
        if self._next != self._end:
            detail = f"ends at position {self._next}, not at {self._end}"
            raise JournalCorruptError(self._path, None, detail)
        return self._held

    def _flush(self) -> None:
        if self._waiting:
            bodies, self._bodies, self._waiting = self._bodies, [], 0
            self._or_corrupt(lambda: self._held.append(decode(self._schema, bodies), self._strings))

    def _or_corrupt(self, read: Callable[[], None]) -> None:
        try:
            read()
        except UnreadableRowsError as error:
            raise JournalCorruptError(self._path, None, str(error)) from error


class _ColumnarRows:
    """Rows as column buffers, allocated once."""

    def __init__(self, store: ColumnarStore, rows: int) -> None:
        self.dataset = store.dataset
        self._store = store
        self._columns: list[Column] = [np.empty(rows, spec.width) for spec in store.specs]
        self._filled = 0

    @property
    def rows(self) -> int:
        return self._filled

    def append(self, batches: Sequence[pa.RecordBatch], strings: dict[str, list[str]]) -> None:
        values = columns_of(self._store, batches, strings)
        stop = self._filled + len(values[0])
        for column, part in zip(self._columns, values, strict=True):
            column[self._filled : stop] = part
        self._filled = stop

    def instants(self) -> Integers:
        return self._columns[0]

    def codes(self, name: str) -> Codes:
        words = self._store.dictionaries[name].values()
        return Codes(self._columns[self._store.at[name]], words)

    def is_synthetic(self, members: Integers) -> Mask:
        flags = self._columns[self._store.at["flags"]][members]
        return np.asarray((flags & Flag.SYNTHETIC) != 0)

    def take(self, members: Integers | slice) -> pa.Table:
        arrays = list(self._arrays(members))
        return pa.Table.from_arrays(arrays, names=self.dataset.schema.names)

    def _arrays(self, members: Integers | slice) -> Iterator[pa.Array]:
        for spec, column in zip(self._store.specs, self._columns, strict=True):
            values = column[members]
            if spec.dictionary is not None:
                yield spec.dictionary.subset(values)
                continue
            validity = _validity(values) if spec.field.nullable else None
            buffers = [validity, pa.py_buffer(np.ascontiguousarray(values))]
            yield pa.Array.from_buffers(spec.field.type, len(values), buffers)


class _BatchedRows:
    """Rows as the batches they came in."""

    def __init__(self, store: BatchedStore) -> None:
        self.dataset = store.dataset
        self._store = store
        self._batches: list[pa.RecordBatch] = []

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def append(self, batches: Sequence[pa.RecordBatch], strings: dict[str, list[str]]) -> None:  # noqa: ARG002
        self._batches.extend(conformed(self._store, batch) for batch in batches)

    def instants(self) -> Integers:
        return np.asarray(self._table()["ts_event"].cast(pa.int64()).to_numpy(), np.int64)

    def codes(self, name: str) -> Codes:
        coded = self._table()[name].combine_chunks().dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Codes(codes, coded.dictionary.to_pylist())

    def is_synthetic(self, members: Integers) -> Mask:
        return np.zeros(len(members), bool)

    def take(self, members: Integers | slice) -> pa.Table:
        table = self._table()
        if isinstance(members, slice):
            start, stop, _ = members.indices(table.num_rows)
            return table.slice(start, stop - start)
        return table.take(pa.array(members))

    def _table(self) -> pa.Table:
        return pa.Table.from_batches(self._batches, self.dataset.schema)


def _validity(values: Column) -> pa.Buffer | None:
    """Return the bitmap of the numbers that are there; None where all are."""
    absent = np.isnan(values)
    return pa.py_buffer(np.packbits(~absent, bitorder="little")) if absent.any() else None
