"""What readers need of a columnar dataset: its chunks and lanes, in one object.

The store appends to its current state and shows new rows by moving ``end``. Rows leave memory by
way of a new state that takes the old one's place: whoever holds the old one goes on reading it,
and its memory is free once nobody does.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage.dictionary import Dictionary
from storage.lanes import Keys, Lane, LaneKey
from storage.runs import Integers
from storage.schemas import Dataset
from storage.validation import Column

CHUNK_ROWS: Final = 1 << 17
"""Rows a chunk: 13 MB of ticks, touched as they fill; seldom more than two for ``latest``."""
_OWN_MEMORY: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """How one column is kept."""

    field: pa.Field
    width: np.dtype[Any]
    dictionary: Dictionary | None


class Chunk:
    """``CHUNK_ROWS`` rows of preallocated columns.

    They are one mapping of their own, which goes back to the system when the chunk is gone; what
    ``malloc`` gives for arrays of this size may stay with the process for ever.
    """

    __slots__ = ("buffers", "columns")

    def __init__(self, specs: Sequence[ColumnSpec]) -> None:
        widths = [spec.width.itemsize for spec in specs]
        memory = mmap.mmap(-1, CHUNK_ROWS * sum(widths), flags=_OWN_MEMORY)
        starts = accumulate((CHUNK_ROWS * width for width in widths), initial=0)
        self.columns: list[Column] = [
            np.frombuffer(memory, spec.width, CHUNK_ROWS, start)
            for spec, start in zip(specs, starts, strict=False)
        ]
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


@dataclass(frozen=True, slots=True)
class Columns:
    """What never changes of a store: its columns, and the strings behind their codes.

    Attributes:
        dataset: What is kept.
        dictionaries: Strings of each low-cardinality column; grow, and outlive every state.
        specs: How each column is kept, in the order of the schema.
        at: Where in ``specs`` a column is.
    """

    dataset: Dataset
    dictionaries: Mapping[str, Dictionary]
    specs: tuple[ColumnSpec, ...]
    at: Mapping[str, int]


class ColumnarState:
    """The rows of one dataset in memory. One thread appends; any thread reads below ``end``.

    Readers read ``end`` first, and nothing at or beyond it afterwards.

    Attributes:
        columns: What is kept, and how.
        base: Position of the oldest row that belongs to this state.
        first: Position of the first row of ``chunks``, at or below ``base``.
        end: Position after the newest row.
        lanes: Rows at or above ``base`` in total order, by feed and contract.
        lanes_of_symbol: The same by the code of the symbol.
        chunks: The rows, ``CHUNK_ROWS`` in each.
    """

    __slots__ = ("base", "chunks", "columns", "end", "first", "lanes", "lanes_of_symbol")

    def __init__(self, columns: Columns, base: int) -> None:
        self.columns = columns
        self.base = self.first = self.end = base
        self.lanes: dict[LaneKey, Lane] = {}
        self.lanes_of_symbol: dict[int, tuple[Lane, ...]] = {}
        self.chunks: list[Chunk] = []

    def __repr__(self) -> str:
        return f"<ColumnarState {self.columns.dataset.name} [{self.base}, {self.end})>"

    @property
    def nbytes(self) -> int:
        """Bytes held by rows and indexes."""
        row = sum(spec.width.itemsize for spec in self.columns.specs)
        indexes = sum(lane.nbytes for lane in tuple(self.lanes.values()))
        return (self.end - self.first) * row + indexes

    # Writing

    def append(self, columns: Sequence[Column], groups: Sequence[tuple[LaneKey, Integers]]) -> None:
        """Append rows, one array a column; ``groups`` are the rows of each lane."""
        self._write(columns)
        keys = self._keys_of(columns)
        for lane_key, members in groups:
            lane = self._lane(lane_key)
            lane.append(self.end + members, keys.take(members), self._fetch_keys)
        self.end += len(columns[0])  # publishes the rows

    def trimmed(self, base: int) -> "ColumnarState":
        """Return a state without the rows below ``base``, sharing the memory of all others.

        ``base`` lies between two appends. The store must append to the new state from then on:
        this one is complete as it is.
        """
        state = ColumnarState(self.columns, base)
        dropped = (base - self.first) // CHUNK_ROWS
        state.first = self.first + dropped * CHUNK_ROWS
        state.end = self.end
        state.chunks = self.chunks[dropped:]
        for lane in self.lanes.values():
            kept = lane.trimmed(base)
            if kept is not None:
                state._index(kept)
        return state

    def _write(self, columns: Sequence[Column]) -> None:
        written, rows = 0, len(columns[0])
        while written < rows:
            offset = (self.end + written - self.first) % CHUNK_ROWS
            if offset == 0:
                self.chunks.append(Chunk(self.columns.specs))
            part = min(CHUNK_ROWS - offset, rows - written)
            for kept, column in zip(self.chunks[-1].columns, columns, strict=True):
                kept[offset : offset + part] = column[written : written + part]
            written += part

    def _lane(self, key: LaneKey) -> Lane:
        lane = self.lanes.get(key)
        if lane is None:
            lane = Lane(key)
            self._index(lane)
        return lane

    def _index(self, lane: Lane) -> None:
        self.lanes[lane.key] = lane
        others = self.lanes_of_symbol.get(lane.key.symbol, ())
        self.lanes_of_symbol[lane.key.symbol] = (*others, lane)

    def _keys_of(self, columns: Sequence[Column]) -> Keys:
        ts_event = columns[0]
        at = self.columns.at
        sequence = columns[at["sequence"]] if "sequence" in at else ts_event
        kind = columns[at["kind"]] if "kind" in at else ts_event
        return Keys(ts_event, sequence, kind)

    # Reading

    def instant(self, position: int) -> int:
        """Return the ``ts_event`` of one row."""
        chunk, row = divmod(position - self.first, CHUNK_ROWS)
        return int(self.chunks[chunk].columns[0][row])

    def locate(self, positions: Integers) -> Located:
        """Find the chunks that hold ``positions``, once for all columns."""
        rows = positions - self.first
        if not len(rows):
            return Located(0, ())
        first, last = int(rows.min()) // CHUNK_ROWS, int(rows.max()) // CHUNK_ROWS
        if first == last:
            inside = rows - first * CHUNK_ROWS
            piece = Piece(self.chunks[first], _slice_if_adjacent(inside), slice(None))
            return Located(len(rows), (piece,))
        chunk_of = rows // CHUNK_ROWS
        pieces = []
        for chunk in range(first, last + 1):
            targets = np.flatnonzero(chunk_of == chunk)
            if len(targets):
                inside = rows[targets] - chunk * CHUNK_ROWS
                pieces.append(Piece(self.chunks[chunk], inside, targets))
        return Located(len(rows), tuple(pieces))

    def gather(self, positions: Integers, column: int) -> Column:
        """Return one column's values at ``positions``."""
        return self.locate(positions).values(column, self.columns.specs[column].width)

    def coded_batches(self, schema: pa.Schema, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``[start, stop)`` with codes for strings, without copying."""
        while start < stop:
            chunk, offset = divmod(start - self.first, CHUNK_ROWS)
            rows = min(CHUNK_ROWS - offset, stop - start)
            arrays = [
                pa.Array.from_buffers(field.type, rows, [None, buffer], offset=offset)
                for field, buffer in zip(schema, self.chunks[chunk].buffers, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            start += rows

    def _fetch_keys(self, positions: Integers) -> Keys:
        names = ("ts_event", "sequence", "kind")
        ats = [self.columns.at.get(name, 0) for name in names]
        return Keys(*(self.gather(positions, at) for at in ats))


def _slice_if_adjacent(rows: Integers) -> Integers | slice:
    start, count = int(rows[0]), len(rows)
    if rows[-1] - start == count - 1 and (rows[1:] - rows[:-1] == 1).all():
        return slice(start, start + count)
    return rows
