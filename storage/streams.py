"""Merging sorted streams of batches into one, in bounded memory.

A stream is opened when the merge has come as far as its first row, and holds one batch at a time.
Where no other stream has rows between, its batches pass as they are.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.merge import BLOCK_ROWS_TARGET
from storage.ordering import in_order, instants_of, reading_order
from storage.schemas import Dataset, wire_projection

MERGED_ROWS_MAX: Final = 1 << 18
"""Rows held for all streams that are open together: some 25 MB of ticks."""
BATCH_ROWS_MIN: Final = 1 << 10
"""Rows below which reading a batch costs more than its rows do."""

_NEVER: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows in the order of an answer, not read yet.

    Attributes:
        first: No row has an earlier ``ts_event``, µs.
        last: No row has a later one; included.
        open: Returns the rows: columns in the order wanted, in the wire schema; at most so many
            rows a batch.
        rows: How many, None where that is not known.
    """

    first: int
    last: int
    open: Callable[[tuple[str, ...], int], Iterator[pa.RecordBatch]]
    rows: int | None = None


def merged_streams(
    streams: Sequence[Stream], dataset: Dataset, names: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all streams in the order of an answer.

    Rows that are equal in it come in the order of ``streams``.

    Args:
        streams: Any number, in any order of time.
        dataset: Whose rows they are.
        names: Columns to yield.
    """
    for together in _overlapping(streams):
        if len(together) == 1:
            yield from together[0].open(names, BLOCK_ROWS_TARGET)
        else:
            yield from _Merge(together, dataset, names)


def _overlapping(streams: Sequence[Stream]) -> Iterator[list[Stream]]:
    """Yield streams that overlap in time together, and each that doesn't by itself."""
    together: list[Stream] = []
    last = -1
    for stream in sorted(streams, key=lambda stream: stream.first):
        if together and stream.first > last:
            yield _as_given(together, streams)
            together = []
        together.append(stream)
        last = max(last, stream.last)
    if together:
        yield _as_given(together, streams)


def _as_given(chosen: Sequence[Stream], streams: Sequence[Stream]) -> list[Stream]:
    kept = {id(stream) for stream in chosen}
    return [stream for stream in streams if id(stream) in kept]


def _most_at_once(streams: Sequence[Stream]) -> int:
    """Return how many streams overlap at most at any instant."""
    borders = [(stream.first, 1) for stream in streams]
    borders += [(stream.last + 1, -1) for stream in streams]
    most = now = 0
    for _, change in sorted(borders):
        now += change
        most = max(most, now)
    return most


class _Head:
    """An open stream: its rows that were read but not merged yet."""

    __slots__ = ("_batches", "chunks", "is_exhausted", "rank")

    def __init__(self, rank: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.rank = rank
        self.chunks: deque[pa.RecordBatch] = deque()
        self.is_exhausted = False
        self._batches = batches
        self.read()

    @property
    def first(self) -> int:
        """Instant of the next row."""
        return int(instants_of(self.chunks[0])[0])

    @property
    def last(self) -> int:
        """Instant of the newest row read."""
        return int(instants_of(self.chunks[-1])[-1])

    def has_many_before(self, until: int) -> bool:
        """Whether the next rows can pass as they are: a batch, or enough to be one."""
        chunk = self.chunks[0]
        rows = int(instants_of(chunk).searchsorted(until))
        enough = min(BATCH_ROWS_MIN, int(chunk.num_rows))
        return rows >= enough

    def read(self) -> None:
        """Read one batch more."""
        batch = next((batch for batch in self._batches if batch.num_rows), None)
        if batch is None:
            self.is_exhausted = True
        else:
            self.chunks.append(batch)

    def refill(self) -> bool:
        """See to it that there is a next row; return whether there is one."""
        if not self.chunks and not self.is_exhausted:
            self.read()
        return bool(self.chunks)

    def take(self, until: int) -> Iterator[pa.RecordBatch]:
        """Take the rows read with ``ts_event < until``."""
        while self.chunks:
            chunk = self.chunks.popleft()
            rows = int(instants_of(chunk).searchsorted(until))
            if rows:
                yield chunk.slice(0, rows)
            if rows < chunk.num_rows:
                self.chunks.appendleft(chunk.slice(rows))
                return


class _Merge:
    """Streams that overlap. Read once."""

    def __init__(self, streams: Sequence[Stream], dataset: Dataset, names: tuple[str, ...]) -> None:
        self._order = reading_order(dataset)
        self._read = tuple(dict.fromkeys((*names, *self._order)))
        self._schema = wire_projection(dataset.name, names)
        self._names = list(names)
        share = MERGED_ROWS_MAX // _most_at_once(streams)
        self._batch_rows = min(BLOCK_ROWS_TARGET, max(BATCH_ROWS_MIN, share))
        ranked = sorted(enumerate(streams), key=lambda one: one[1].first)
        self._waiting = deque(ranked)
        self._heads: list[_Head] = []

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while self._open_due():
            heads = sorted(self._heads, key=lambda head: head.first)
            others = heads[1].first if len(heads) > 1 else _NEVER
            until = min(others, self._next_stream)
            if heads[0].has_many_before(until):
                yield from self._alone(heads[0], until)
            else:
                yield from self._together()

    @property
    def _next_stream(self) -> int:
        return self._waiting[0][1].first if self._waiting else _NEVER

    def _open_due(self) -> bool:
        """Open the streams that the merge has come to; return whether any rows are left."""
        self._heads = [head for head in self._heads if head.refill()]
        while self._waiting:
            if self._heads and min(head.first for head in self._heads) < self._next_stream:
                break
            rank, stream = self._waiting.popleft()
            head = _Head(rank, stream.open(self._read, self._batch_rows))
            if head.chunks:
                self._heads.append(head)
        return bool(self._heads)

    def _alone(self, head: _Head, until: int) -> Iterator[pa.RecordBatch]:
        """Yield what lies before any row of another stream, as it is."""
        for batch in head.take(until):
            yield batch.select(self._names)

    def _together(self) -> Iterator[pa.RecordBatch]:
        """Yield what lies before the first instant of which not all rows were read."""
        now = min(head.first for head in self._heads)
        while (until := self._read_until()) <= now:
            for head in self._heads:
                if not head.is_exhausted and head.last <= now:
                    head.read()
        self._heads.sort(key=lambda head: head.rank)
        parts = [part for head in self._heads for part in head.take(until)]
        table = pa.Table.from_batches(parts).unify_dictionaries()
        batch = in_order(_one_batch(table), self._order).select(self._names)
        for at in range(0, batch.num_rows, BLOCK_ROWS_TARGET):
            yield batch.slice(at, BLOCK_ROWS_TARGET)

    def _read_until(self) -> int:
        read = (head.last for head in self._heads if not head.is_exhausted)
        return min((*read, self._next_stream))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
