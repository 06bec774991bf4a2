"""The hot store of fixed-width datasets: column buffers in arrival order, and lanes over them.

A row's *position* is its number in arrival order, dense within a dataset. A chunk preallocates its
column buffers and is append-only, so the rows below a position once seen never change and readers
need no lock: they take the store's ``state``, read its ``end``, and nothing at or beyond it
afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pyarrow as pa

from storage.columnar_state import CHUNK_ROWS, ColumnarState, Columns, ColumnSpec
from storage.dictionary import Codes, Dictionary, is_reasonable
from storage.lanes import LaneKey
from storage.runs import Integers, Mask, SequenceSet
from storage.schemas import SYMBOL_PATTERN, Dataset
from storage.validation import Column, storage_type

__all__ = ["CHUNK_ROWS", "ColumnarState", "ColumnarStore"]


class ColumnarStore:
    """The rows of one dataset. One thread appends and trims; any thread reads the ``state``.

    Args:
        dataset: What is kept.
        first: Position of the first row that will be appended.
    """

    def __init__(self, dataset: Dataset, first: int = 0) -> None:
        self.dataset = dataset
        self.dictionaries: Mapping[str, Dictionary] = {
            name: Dictionary(_is_symbol if name == "symbol" else is_reasonable)
            for name in dataset.dictionary
        }
        self.specs = tuple(
            ColumnSpec(
                field,
                np.dtype(np.int32 if field.name in self.dictionaries else storage_type(field.type)),
                self.dictionaries.get(field.name),
            )
            for field in dataset.schema
        )
        self.at = {name: i for i, name in enumerate(dataset.schema.names)}
        self.state = ColumnarState(Columns(dataset, self.dictionaries, self.specs, self.at), first)
        self._sequences: dict[tuple[int, int, int], SequenceSet] = {}
        self._journal_schema = pa.schema(
            pa.field(
                spec.field.name, pa.int32() if spec.dictionary is not None else spec.field.type
            )
            for spec in self.specs
        )

    def __repr__(self) -> str:
        return f"<ColumnarStore {self.dataset.name} [{self.base}, {self.end})>"

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
        """Bytes held by rows and indexes."""
        sequences = sum(known.nbytes for known in tuple(self._sequences.values()))
        return self.state.nbytes + sequences

    def append(self, columns: Sequence[Column]) -> int:
        """Append rows, one array a column; return how many were repeats and left out."""
        groups = list(self._groups(columns))
        kept = self._admit(columns, groups)
        if kept is not None:
            columns = [column[kept] for column in columns]
            groups = list(self._groups(columns))
        self.state.append(columns, groups)
        return 0 if kept is None else len(kept) - int(kept.sum())

    def restore(self, columns: Sequence[Column]) -> None:
        """Append rows of the journal. They were admitted once, and that stands.

        How long an identity is remembered depends on how rows were batched, so asking again could
        leave out one that was acknowledged.
        """
        groups = list(self._groups(columns))
        self._admit(columns, groups)
        self.state.append(columns, groups)

    def trim(self, base: int) -> None:
        """Let go of the rows below ``base``, which lies between two appends."""
        self.state = self.state.trimmed(base)

    def begin_at(self, position: int) -> None:
        """Let go of all rows; the next one gets ``position``, which is not below ``end``."""
        self.state = ColumnarState(self.state.columns, position)

    def journal_batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``[start, stop)`` with codes for strings, without copying."""
        return self.state.coded_batches(self._journal_schema, start, stop)

    @property
    def journal_schema(self) -> pa.Schema:
        """Schema of ``journal_batches``: int32 codes for strings, NaN for absent numbers."""
        return self._journal_schema

    def _groups(self, columns: Sequence[Column]) -> Iterator[tuple[LaneKey, Integers]]:
        """Yield the rows of each lane, in arrival order."""
        if not len(columns[0]):
            return
        parts = [columns[self.at[name]] for name in self.dataset.lane]
        order, starts = _group(parts, [len(self.dictionaries[n]) for n in self.dataset.lane])
        for start, stop in zip(starts, (*starts[1:], len(order)), strict=True):
            members = order[start:stop]
            yield LaneKey(*(int(part[members[0]]) for part in parts)), members

    def _admit(
        self, columns: Sequence[Column], groups: Sequence[tuple[LaneKey, Integers]]
    ) -> Mask | None:
        """Return which rows are no repeats, or None when none is."""
        if not self.dataset.identity:
            return None
        sequence, kinds = columns[self.at["sequence"]], columns[self.at["kind"]]
        present = np.unique(kinds).tolist() if kinds.any() else (0,)
        kept: Mask | None = None
        for (key, members), kind in product(groups, present):
            rows = members if len(present) == 1 else members[kinds[members] == kind]
            if not len(rows):
                continue
            known = self._sequences.setdefault((key.source, key.name, kind), SequenceSet())
            new = known.admit(sequence[rows])
            if new is not None:
                kept = np.ones(len(sequence), bool) if kept is None else kept
                kept[rows[~new]] = False
        return kept


def _is_symbol(value: str) -> bool:
    return SYMBOL_PATTERN.fullmatch(value) is not None


def _group(parts: Sequence[Codes], sizes: Sequence[int]) -> tuple[Integers, list[int]]:
    """Return rows ordered by the combination of ``parts``, and where each combination starts."""
    combined = np.zeros(len(parts[0]), np.int64)
    combinations = 1
    for part, size in zip(parts, sizes, strict=True):
        combined = combined * size + part
        combinations *= size
    if combinations < 1 << 15:
        combined = combined.astype(np.int16)  # a radix sort, five times as fast
    order = np.argsort(combined, kind="stable")
    ordered = combined[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, [0, *starts.tolist()]
