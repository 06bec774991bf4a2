"""The hot store of datasets with lists and free text: the batches themselves, in arrival order."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.schemas import SYMBOL_PATTERN, Dataset
from storage.validation import INSTANT_MAX, Rejected, check_schema

COALESCE_BATCHES: Final = 64
"""Small batches kept apart before they are joined: an Arrow batch costs over 1 kB by itself."""
COALESCE_ROWS: Final = 4096
"""Rows from which a batch is large enough to stay as it is."""
IDENTITIES_MAX: Final = 1 << 20
"""Identities remembered: days of gamma snapshots, far more than a source sends again."""


class BatchDecoder:
    """Turns the batches of one DoPut stream into batches of the dataset's own schema."""

    def __init__(self, dataset: Dataset, schema: pa.Schema) -> None:
        check_schema(dataset, schema)
        self._dataset = dataset
        self._at = [schema.get_field_index(name) for name in dataset.schema.names]

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Rejected]]:
        """Return the batch in the dataset's schema, and its impossible rows with reasons."""
        arrays = [
            pa.nulls(batch.num_rows, field.type) if at < 0 else _conformed(batch.column(at), field)
            for at, field in zip(self._at, self._dataset.schema, strict=True)
        ]
        schema = pa.schema(field.with_nullable(nullable=True) for field in self._dataset.schema)
        conformed = pa.RecordBatch.from_arrays(arrays, schema=schema)
        return conformed, list(self._impossible(conformed))

    def _impossible(self, batch: pa.RecordBatch) -> Iterator[Rejected]:
        for field in self._dataset.schema:
            column = batch.column(field.name)
            if column.null_count and not field.nullable:
                yield _rejected(column.is_null(), f"{field.name} is missing")
            if pa.types.is_timestamp(field.type):
                instants = column.cast(pa.int64())
                outside = pc.or_(pc.less(instants, 0), pc.greater_equal(instants, INSTANT_MAX))
                yield from _if_any(outside, f"{field.name} lies outside 1970 to 2200")
            elif pa.types.is_floating(field.type):
                wrong = pc.invert(pc.is_finite(column))
                yield from _if_any(wrong, f"{field.name} is not a finite number")
            elif field.name == "symbol":
                known = pc.match_substring_regex(column, f"^(?:{SYMBOL_PATTERN.pattern})$")
                yield from _if_any(pc.invert(known), "symbol is not a name we can keep")


class BatchedState:
    """The rows of one dataset in memory. One thread appends; any thread reads below ``end``.

    Readers read ``end`` first, and nothing at or beyond it afterwards.

    Attributes:
        dataset: What is kept.
        base: Position of the oldest row that belongs to this state.
        end: Position after the newest row.
        nbytes: Bytes held.
        held: Where each batch begins, and the batches; the first may begin below ``base``.
    """

    __slots__ = ("_small", "base", "dataset", "end", "held", "nbytes")

    def __init__(self, dataset: Dataset, base: int) -> None:
        self.dataset = dataset
        self.base = self.end = base
        self.nbytes = 0
        self.held: tuple[list[int], list[pa.RecordBatch]] = ([], [])
        self._small = 0

    def __repr__(self) -> str:
        return f"<BatchedState {self.dataset.name} [{self.base}, {self.end})>"

    def append(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        if not batch.num_rows:
            return
        starts, batches = self.held
        batches.append(pa.RecordBatch.from_arrays(batch.columns, schema=self.dataset.schema))
        starts.append(self.end)
        self.nbytes += batch.nbytes
        self.end += batch.num_rows  # publishes the rows
        self._coalesce()

    def trimmed(self, base: int) -> "BatchedState":
        """Return a state without the rows below ``base``, sharing the memory of all others.

        The store must append to the new state from then on: this one is complete as it is.
        """
        state = BatchedState(self.dataset, base)
        starts, batches = self.held
        first = max(bisect_right(starts, base) - 1, 0) if base < self.end else len(starts)
        state.end = self.end
        state.held = (starts[first:], batches[first:])
        state.nbytes = sum(batch.nbytes for batch in state.held[1])
        return state

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``[start, stop)`` without copying."""
        starts, batches = self.held
        at = bisect_right(starts, start) - 1
        while start < stop:
            offset = start - starts[at]
            rows = min(batches[at].num_rows - offset, stop - start)
            yield batches[at].slice(offset, rows)
            start += rows
            at += 1

    def table(self, stop: int, start: int = 0) -> pa.Table:
        """Return the rows of ``[start, stop)`` in arrival order, without copying."""
        first = min(max(start, self.base), stop)
        return pa.Table.from_batches(self.batches(first, stop), self.dataset.schema)

    def _coalesce(self) -> None:
        """Join the small batches at the end; readers keep the lists they hold."""
        starts, batches = self.held
        self._small = self._small + 1 if batches[-1].num_rows < COALESCE_ROWS else 0
        if self._small < COALESCE_BATCHES:
            return
        joined = pa.concat_batches(batches[-COALESCE_BATCHES:])
        at = len(batches) - COALESCE_BATCHES
        self.held = ([*starts[:at], starts[at]], [*batches[:at], joined])
        self._small = 0


class BatchedStore:
    """The rows of one dataset. One thread appends and trims; any thread reads the ``state``.

    Args:
        dataset: What is kept.
        first: Position of the first row that will be appended.
    """

    def __init__(self, dataset: Dataset, first: int = 0) -> None:
        self.dataset = dataset
        self.state = BatchedState(dataset, first)
        self._identities: dict[tuple[object, ...], None] = {}

    def __repr__(self) -> str:
        return f"<BatchedStore {self.dataset.name} [{self.base}, {self.end})>"

    @property
    def base(self) -> int:
        """Position of the oldest row in memory."""
        return self.state.base

    @property
    def end(self) -> int:
        """Position after the newest row."""
        return self.state.end

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.state.nbytes

    @property
    def journal_schema(self) -> pa.Schema:
        """Schema of ``journal_batches``."""
        return self.dataset.schema

    def append(self, batch: pa.RecordBatch) -> int:
        """Append rows; return how many were repeats and left out."""
        kept = self._without_repeats(batch)
        self.state.append(kept)
        return int(batch.num_rows - kept.num_rows)

    def restore(self, batch: pa.RecordBatch) -> None:
        """Append rows of the journal. They were admitted once, and that stands."""
        self._without_repeats(batch)
        self.state.append(batch)

    def trim(self, base: int) -> None:
        """Let go of the rows below ``base``."""
        self.state = self.state.trimmed(base)

    def begin_at(self, position: int) -> None:
        """Let go of all rows; the next one gets ``position``, which is not below ``end``."""
        self.state = BatchedState(self.dataset, position)

    def journal_batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``[start, stop)`` without copying."""
        return self.state.batches(start, stop)

    def _without_repeats(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self.dataset.identity:
            return batch
        columns = [batch.column(name).to_pylist() for name in self.dataset.identity]
        new = np.zeros(batch.num_rows, bool)
        for row, identity in enumerate(zip(*columns, strict=True)):
            new[row] = identity not in self._identities
            self._identities[identity] = None
        while len(self._identities) > IDENTITIES_MAX:
            del self._identities[next(iter(self._identities))]
        return batch if new.all() else batch.filter(pa.array(new))


def _conformed(array: pa.Array, field: pa.Field) -> pa.Array:
    array = array.cast(field.type)
    if field.nullable and pa.types.is_floating(field.type):
        # NaN is how data frames say "absent", in every dataset.
        return pc.if_else(pc.is_nan(array), pa.scalar(None, field.type), array)
    return array


def _rejected(mask: pa.Array, reason: str) -> Rejected:
    return Rejected(np.flatnonzero(pc.fill_null(mask, fill_value=False)), reason)


def _if_any(mask: pa.Array, reason: str) -> Iterator[Rejected]:
    found = _rejected(mask, reason)
    if len(found.rows):
        yield found
