"""The history that a live stream begins with, and how it goes on where it was cut off.

The place within a history is the *key* of the last row that was sent: what rows are ordered by.
So no two batches share a key, and whoever was cut off gets the rows behind his key out of a new
snapshot. What came meanwhile and belongs before it, the new snapshot has, too, but he has passed
it: these rows come first, as arrivals do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import pyarrow as pa
import pyarrow.compute as pc

from storage.ordering import KeyValues, key_at, rows_after


@final
@dataclass(frozen=True, slots=True)
class LiveHistory:
    """The first part of a stream that has a ``start``.

    Attributes:
        schema: Columns to send, with the coverage as metadata.
        names: Columns read: those to send, and those that rows are ordered by.
        order: Those that rows are ordered by.
        position: Where it ends, and the arrivals begin.
        passed: Key of the last row that the client has; None where he has none.
        rows: All rows, in total order; read once.
    """

    schema: pa.Schema
    names: tuple[str, ...]
    order: tuple[str, ...]
    position: int
    passed: KeyValues | None
    rows: Iterator[pa.RecordBatch]

    def batches(self) -> Iterator[tuple[pa.RecordBatch, KeyValues]]:
        """Yield the rows the client does not have, and the key of each batch's last one."""
        for batch in _without_shared_keys(self._left(), self.order):
            yield batch, key_at(batch, self.order, -1)

    def late(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return those arrivals that belong before the key that the client has come to."""
        assert self.passed is not None  # noqa: S101 - or nobody would ask
        return rows.filter(pc.invert(rows_after(rows, self.order, self.passed)))

    def _left(self) -> Iterator[pa.RecordBatch]:
        passed = self.passed
        for batch in map(_plain, self.rows):
            if passed is None:
                yield batch
                continue
            left = batch.filter(rows_after(batch, self.order, passed))
            if left.num_rows:
                passed = None  # and so are all rows behind these
                yield left


def _without_shared_keys(
    batches: Iterator[pa.RecordBatch], order: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield rows so that those of one key are in one batch."""
    held: pa.RecordBatch | None = None
    for batch in batches:
        if held is None:
            held = batch
            continue
        last = key_at(held, order, -1)
        if key_at(batch, order, 0) != last:
            yield held
            held = batch
            continue
        behind = rows_after(batch, order, last)
        shared = batch.num_rows - int(behind.true_count)
        held = pa.concat_batches([held, batch.slice(0, shared)])
        if shared < batch.num_rows:
            yield held
            held = batch.slice(shared)
    if held is not None:
        yield held


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
