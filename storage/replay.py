"""Rows of a span of time in the order in which they were received, as they were known then.

The rows of a ``range`` are read twice. The first time only ``ts_recv`` is: then it is known how far
back what is still to come reaches, whatever the clocks of venues and sources did, and the second
time each row can be let go as soon as its turn has come.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np
import pyarrow as pa

from storage.reordering import NEVER, Received, Reordering, Spill
from storage.runs import Integers
from storage.schemas import DATASETS, plain_projection
from storage.selection import ALL_SOURCES, Selection
from storage.snapshot import Answer, Snapshot

RECEIVED: Final = "ts_recv"


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay that can begin.

    Attributes:
        schema: Of every block, with plain strings and the coverage as metadata.
        blocks: The rows, read once; None now and then where reading takes long, so that whoever
            waits can see to other things.
    """

    schema: pa.Schema
    blocks: Generator[Received | None, None, None]


def replay(
    snapshot: Snapshot, dataset: str, selection: Selection, span: tuple[int, int], spill: Spill
) -> Replay:
    """Return the rows of all sources with ``start <= ts_event < end``, in order of ``ts_recv``.

    Rows that were received at one instant come in total order.

    Args:
        snapshot: What there is.
        dataset: Whose rows.
        selection: Which columns of which symbols; its source does not count.
        span: Start and end, µs.
        spill: Where rows may wait.

    Raises:
        InvalidDataError: A column is unknown, or the span ends before it starts.
        RetentionError: It starts where rows were dropped for their age.
        LakeCorruptError: While the rows are read: a file is missing or damaged.
        TooLargeError: While the rows are read: too many were received much later than others.
    """
    everybody = replace(selection, source=ALL_SOURCES)
    names = selection.columns_of(DATASETS[dataset])
    needed = tuple(dict.fromkeys((*names, RECEIVED)))
    receipts = snapshot.range(dataset, replace(everybody, columns=(RECEIVED,)), *span)
    rows = snapshot.range(dataset, replace(everybody, columns=needed), *span)
    plain = plain_projection(dataset, names)
    blocks = _reordered(receipts, rows, plain, spill)
    return Replay(plain.with_metadata(rows.schema.metadata), blocks)


def _reordered(
    receipts: Answer, rows: Answer, schema: pa.Schema, spill: Spill
) -> Generator[Received | None, None, None]:
    floors = _Floors()
    for batch in receipts.batches:
        floors.note(_receipts_of(batch))
        yield None
    floors.settle()
    read = 0
    with closing(Reordering(spill)) as waiting:
        for batch in rows.batches:
            read += batch.num_rows
            plain = batch.select(schema.names).cast(schema)
            yield from waiting.add(plain, _receipts_of(batch), floors.after(read))
            yield None


def _receipts_of(batch: pa.RecordBatch) -> Integers:
    column = batch.column(batch.schema.get_field_index(RECEIVED))
    return np.asarray(column.view(pa.int64()).to_numpy())


@final
class _Floors:
    """When the first of all rows was received that lie behind a place in total order."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._earliest: list[int] = []
        self._rows = 0
        self._from_there = np.empty(0, np.int64)

    def note(self, receipts: Integers) -> None:
        """Note when the next rows were received."""
        if len(receipts):
            self._begins.append(self._rows)
            self._earliest.append(int(receipts.min()))
            self._rows += len(receipts)

    def settle(self) -> None:
        """Say that these were all."""
        backwards = np.array(self._earliest[::-1], np.int64)
        self._from_there = np.minimum.accumulate(backwards)[::-1]

    def after(self, read: int) -> int:
        """Return an instant before which no row was received that follows the first ``read``."""
        if read >= self._rows:
            return NEVER
        # Batches were cut elsewhere the first time: the one that the place lies in counts whole.
        part = int(np.searchsorted(self._begins, read, side="right")) - 1
        return int(self._from_there[part])
