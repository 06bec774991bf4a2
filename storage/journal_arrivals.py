"""Arrivals that have left memory, out of the finished files of the journal."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from storage.arrival_blocks import Block, Wanted, filtered, plain_strings
from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.columnar_view import plain_numbers
from storage.errors import JournalCorruptError
from storage.journal_file import Access, JournalReader, Record
from storage.journal_record import schema_of
from storage.journal_rows import UnreadableRowsError, columns_of, conformed, decode, require_known
from storage.merge import BLOCK_ROWS_TARGET
from storage.schemas import DATASETS, Layout, plain_projection
from storage.segments import Segment


def segment_blocks(segment: Segment, wanted: Wanted, position: int) -> Iterator[Block]:
    """Yield the rows of a finished journal file from a position on, verifying what is read.

    Args:
        segment: The file; it has the position.
        wanted: Which rows.
        position: Of the first one to look at.

    Raises:
        JournalCorruptError: The file is not what was written.
        JournalError: It can't be read.
    """
    reader = JournalReader(segment.path, Access.BESIDE)
    rows = _Rows(reader, wanted, position)
    for record in reader.records():
        if record.dataset == wanted.dataset and (block := rows.add(record)) is not None:
            yield block
    if (block := rows.rest()) is not None:
        yield block


class _Rows:
    """Gathers the records of one dataset until they make a block."""

    def __init__(self, reader: JournalReader, wanted: Wanted, position: int) -> None:
        dataset = DATASETS[wanted.dataset]
        kind = ColumnarStore if dataset.layout is Layout.COLUMNS else BatchedStore
        self._store = kind(dataset)  # which stays empty: it knows how its rows are journaled
        text = reader.header.schemas.get(dataset.name)
        self._schema = self._store.journal_schema if text is None else schema_of(text)
        self._path = reader.path
        self._wanted = wanted
        self._from = position
        self._first = self._next = reader.header.positions.get(dataset.name, 0)
        self._strings: dict[str, list[str]] = {}
        self._bodies: list[Any] = []

    def add(self, record: Record) -> Block | None:
        """Take a record; return a block once there are rows for one."""
        for column, values in record.strings.items():
            self._strings.setdefault(column, []).extend(values)
        if not record.rows:
            return None
        if record.position != self._next:
            detail = f"holds position {record.position} where {self._next} comes next"
            raise JournalCorruptError(self._path, None, detail)
        self._next += record.rows
        if self._next <= self._from:
            self._first = self._next
            return None
        self._bodies.append(record.body)
        return self.rest() if self._next - self._first >= BLOCK_ROWS_TARGET else None

    def rest(self) -> Block | None:
        """Return what was gathered, None where that is nothing."""
        if not self._bodies:
            return None
        try:
            require_known(self._store, self._schema)
            rows = self._decoded()
        except UnreadableRowsError as error:
            raise JournalCorruptError(self._path, None, str(error)) from error
        passed = max(0, self._from - self._first)
        start, self._first, self._bodies = self._first + passed, self._next, []
        return filtered(self._wanted, start, self._next, rows.slice(passed))

    def _decoded(self) -> pa.RecordBatch:
        batches = decode(self._schema, self._bodies)
        names = self._wanted.needed
        store = self._store
        if isinstance(store, BatchedStore):
            return pa.concat_batches([conformed(store, batch) for batch in batches]).select(names)
        values = dict(zip(store.at, columns_of(store, batches, self._strings), strict=True))
        specs = [store.specs[store.at[name]] for name in names]
        arrays = [
            plain_numbers(np.ascontiguousarray(values[spec.field.name]), spec.field)
            if spec.dictionary is None
            else plain_strings(values[spec.field.name], spec.dictionary)
            for spec in specs
        ]
        return pa.RecordBatch.from_arrays(
            arrays, schema=plain_projection(store.dataset.name, names)
        )
