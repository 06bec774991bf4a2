"""The hot store of fixed-width datasets: column buffers in arrival order, and lanes over them.

A row's *position* is its number in arrival order, dense within a dataset. A chunk preallocates its
column buffers and is append-only, so the rows below a position once seen never change and readers
need no lock: they read ``end`` first, and nothing at or beyond it afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage.dictionary import Codes, Dictionary, is_reasonable
from storage.lanes import Keys, Lane, LaneKey
from storage.runs import Integers, Mask, SequenceSet
from storage.schemas import SYMBOL_PATTERN, Dataset
from storage.validation import Column, storage_type

CHUNK_ROWS: Final = 1 << 17
"""Rows a chunk: 13 MB of ticks, touched as they fill; seldom more than two for ``latest``."""


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """How one column is kept."""

    field: pa.Field
    width: np.dtype[Any]
    dictionary: Dictionary | None


class Chunk:
    """``CHUNK_ROWS`` rows of preallocated columns."""

    __slots__ = ("buffers", "columns")

    def __init__(self, specs: Sequence[ColumnSpec]) -> None:
        self.columns: list[Column] = [np.empty(CHUNK_ROWS, spec.width) for spec in specs]
        self.buffers = [pa.py_buffer(column) for column in self.columns]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one chunk, and where in the answer they belong."""

    chunk: Chunk
    rows: Integers | slice
    targets: Integers | slice


@dataclass(frozen=True, slots=True)
class Located:
    """Some rows of a store, found."""

    count: int
    pieces: tuple[Piece, ...]

    def values(self, column: int, width: np.dtype[Any]) -> Column:
        """Return one column's values, without copying where the rows are adjacent."""
        if len(self.pieces) == 1:
            (piece,) = self.pieces
            return piece.chunk.columns[column][piece.rows]
        gathered = np.empty(self.count, width)
        for piece in self.pieces:
            gathered[piece.targets] = piece.chunk.columns[column][piece.rows]
        return gathered


class ColumnarStore:
    """The rows of one dataset. One thread appends; any thread reads below an ``end`` it has read.

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
        self.first = first
        self.end = first
        self.lanes: dict[LaneKey, Lane] = {}
        self.lanes_of_symbol: dict[int, tuple[Lane, ...]] = {}
        self._chunks: list[Chunk] = []
        self._sequences: dict[tuple[int, int, int], SequenceSet] = {}
        self._journal_schema = pa.schema(
            pa.field(
                spec.field.name, pa.int32() if spec.dictionary is not None else spec.field.type
            )
            for spec in self.specs
        )

    def __repr__(self) -> str:
        return f"<ColumnarStore {self.dataset.name} [{self.first}, {self.end})>"

    @property
    def nbytes(self) -> int:
        """Bytes held by rows and indexes."""
        row = sum(spec.width.itemsize for spec in self.specs)
        indexes = sum(lane.nbytes for lane in tuple(self.lanes.values()))
        sequences = sum(known.nbytes for known in tuple(self._sequences.values()))
        return (self.end - self.first) * row + indexes + sequences

    # Writing

    def append(self, columns: Sequence[Column]) -> int:
        """Append rows, one array a column; return how many were repeats and left out."""
        groups = list(self._groups(columns))
        kept = self._admit(columns, groups)
        if kept is not None:
            columns = [column[kept] for column in columns]
            groups = list(self._groups(columns))
        self._keep(columns, groups)
        return 0 if kept is None else len(kept) - int(kept.sum())

    def restore(self, columns: Sequence[Column]) -> None:
        """Append rows of the journal. They were admitted once, and that stands.

        How long an identity is remembered depends on how rows were batched, so asking again could
        leave out one that was acknowledged.
        """
        groups = list(self._groups(columns))
        self._admit(columns, groups)
        self._keep(columns, groups)

    def _keep(self, columns: Sequence[Column], groups: Sequence[tuple[LaneKey, Integers]]) -> None:
        self._write(columns)
        keys = self._keys_of(columns)
        for lane_key, members in groups:
            self._lane(lane_key).append(self.end + members, keys.take(members))
        self.end += len(columns[0])  # publishes the rows

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

    def _write(self, columns: Sequence[Column]) -> None:
        written, rows = 0, len(columns[0])
        while written < rows:
            offset = (self.end + written - self.first) % CHUNK_ROWS
            if offset == 0:
                self._chunks.append(Chunk(self.specs))
            part = min(CHUNK_ROWS - offset, rows - written)
            for kept, column in zip(self._chunks[-1].columns, columns, strict=True):
                kept[offset : offset + part] = column[written : written + part]
            written += part

    def _lane(self, key: LaneKey) -> Lane:
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, self._fetch_keys)
            others = self.lanes_of_symbol.get(key.symbol, ())
            self.lanes_of_symbol[key.symbol] = (*others, lane)
        return lane

    def _keys_of(self, columns: Sequence[Column]) -> Keys:
        ts_event = columns[0]
        at = self.at
        sequence = columns[at["sequence"]] if "sequence" in at else ts_event
        kind = columns[at["kind"]] if "kind" in at else ts_event
        return Keys(ts_event, sequence, kind)

    # Reading

    def instant(self, position: int) -> int:
        """Return the ``ts_event`` of one row."""
        chunk, row = divmod(position - self.first, CHUNK_ROWS)
        return int(self._chunks[chunk].columns[0][row])

    def locate(self, positions: Integers) -> "Located":
        """Find the chunks that hold ``positions``, once for all columns."""
        rows = positions - self.first
        if not len(rows):
            return Located(0, ())
        first, last = int(rows.min()) // CHUNK_ROWS, int(rows.max()) // CHUNK_ROWS
        if first == last:
            inside = rows - first * CHUNK_ROWS
            piece = Piece(self._chunks[first], _slice_if_adjacent(inside), slice(None))
            return Located(len(rows), (piece,))
        chunk_of = rows // CHUNK_ROWS
        pieces = []
        for chunk in range(first, last + 1):
            targets = np.flatnonzero(chunk_of == chunk)
            if len(targets):
                inside = rows[targets] - chunk * CHUNK_ROWS
                pieces.append(Piece(self._chunks[chunk], inside, targets))
        return Located(len(rows), tuple(pieces))

    def gather(self, positions: Integers, column: int) -> Column:
        """Return one column's values at ``positions``."""
        return self.locate(positions).values(column, self.specs[column].width)

    def journal_batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``[start, stop)`` with codes for strings, without copying."""
        while start < stop:
            chunk, offset = divmod(start - self.first, CHUNK_ROWS)
            rows = min(CHUNK_ROWS - offset, stop - start)
            arrays = [
                pa.Array.from_buffers(field.type, rows, [None, buffer], offset=offset)
                for field, buffer in zip(
                    self._journal_schema, self._chunks[chunk].buffers, strict=True
                )
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=self._journal_schema)
            start += rows

    @property
    def journal_schema(self) -> pa.Schema:
        """Schema of ``journal_batches``: int32 codes for strings, NaN for absent numbers."""
        return self._journal_schema

    def _fetch_keys(self, positions: Integers) -> Keys:
        names = ("ts_event", "sequence", "kind")
        ats = [self.at.get(name, 0) for name in names]
        return Keys(*(self.gather(positions, at) for at in ats))


def _is_symbol(value: str) -> bool:
    return SYMBOL_PATTERN.fullmatch(value) is not None


def _slice_if_adjacent(rows: Integers) -> Integers | slice:
    start, count = int(rows[0]), len(rows)
    if rows[-1] - start == count - 1 and (rows[1:] - rows[:-1] == 1).all():
        return slice(start, start + count)
    return rows


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
