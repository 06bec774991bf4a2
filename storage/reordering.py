"""Putting rows that come in one order into another, in bounded memory.

Rows come in total order, that is by ``ts_event``, and leave in the order in which they were
received: by ``ts_recv``, and where that is equal as they came. A row may leave once no row that is
still to come was received before it. What has to wait is kept in sorted runs; beyond a limit these
go to a temporary file, so that a day that was received a week late costs disk and not memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, final

import numpy as np
import pyarrow as pa

from storage.errors import TooLargeError
from storage.merge import BLOCK_ROWS_TARGET
from storage.ports import Disk
from storage.runs import Integers

HELD_BYTES_MAX: Final = 64 << 20
"""Rows that wait in memory, for one reader: minutes of a market in which rows come late."""
HELD_RUNS_MAX: Final = 64
"""Sorted runs in memory; more of them are merged into one, for each is looked at for each block."""
SPILLED_BYTES_MAX: Final = 4 << 30
"""Rows of one reader that wait on disk: some forty million late ticks."""
SPARE_BYTES: Final = 2 << 30
"""Disk that is left to the journal, which must never wait for a reader."""
CHUNK_BYTES: Final = 1 << 20
"""Rows read back at a time from each run on disk."""
BLOCK_BYTES: Final = 8 << 20
"""Largest block that leaves: clients of gRPC commonly take messages of 16 MiB and no more."""
NEVER: Final = 1 << 62
"""Later than any instant."""

_Key = tuple[int, int]
"""When a row was received, and its number in total order."""


@dataclass(frozen=True, slots=True)
class Received:
    """Rows in the order in which they were received; when that was, µs."""

    rows: pa.RecordBatch
    receipts: Integers


@dataclass(frozen=True, slots=True)
class Spill:
    """Where rows may wait that are too many for memory."""

    directory: Path
    disk: Disk


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows sorted by ``_Key``."""

    rows: pa.RecordBatch
    receipts: Integers
    ordinals: Integers

    def __len__(self) -> int:
        return len(self.receipts)

    @property
    def first(self) -> _Key:
        return int(self.receipts[0]), int(self.ordinals[0])

    @property
    def last(self) -> _Key:
        return int(self.receipts[-1]), int(self.ordinals[-1])

    def upto(self, bound: _Key) -> int:
        """Return how many rows lie at or before ``bound``."""
        low = int(self.receipts.searchsorted(bound[0]))
        high = int(self.receipts.searchsorted(bound[0], side="right"))
        return low + int(self.ordinals[low:high].searchsorted(bound[1], side="right"))

    def slice(self, start: int, stop: int) -> "_Chunk":
        return _Chunk(
            self.rows.slice(start, stop - start),
            self.receipts[start:stop],
            self.ordinals[start:stop],
        )

    def copy(self) -> "_Chunk":
        """Return the rows in memory of their own: a slice keeps all it was cut from."""
        rows = self.rows.take(pa.array(np.arange(len(self))))
        return _Chunk(rows, self.receipts.copy(), self.ordinals.copy())


@final
class _Run:
    """Sorted rows, of which one chunk is in memory."""

    __slots__ = ("_chunks", "chunk", "held_bytes")

    def __init__(self, chunks: Iterator[_Chunk]) -> None:
        self._chunks = chunks
        self.chunk = next(chunks)
        self.held_bytes = self.chunk.rows.nbytes

    def take(self, bound: _Key) -> _Chunk:
        """Take the rows in memory that lie at or before ``bound``."""
        stop = self.chunk.upto(bound)
        taken, rest = self.chunk.slice(0, stop), self.chunk.slice(stop, len(self.chunk))
        # What stays behind shall not keep the memory of what has left.
        self.chunk = rest.copy() if 0 < len(rest) <= stop else rest
        self.held_bytes = self.chunk.rows.nbytes
        return taken

    def refill(self) -> bool:
        """See to it that there is a next row in memory; return whether there is one."""
        if not len(self.chunk):
            following = next(self._chunks, None)
            if following is None:
                return False
            self.chunk = following
            self.held_bytes = following.rows.nbytes
        return True


@final
class Reordering:
    """Takes rows in total order, and gives them in the order in which they were received.

    Args:
        spill: Where rows may wait.
    """

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._files: set[IO[bytes]] = set()
        self._in_memory: list[_Run] = []
        self._on_disk: list[_Run] = []
        self._ordinal = 0
        self._spilled_bytes = 0

    def add(self, rows: pa.RecordBatch, receipts: Integers, floor: int) -> Iterator[Received]:
        """Add rows, and yield those that nothing to come precedes.

        Args:
            rows: What comes next in total order.
            receipts: When each was received, µs.
            floor: No row still to come was received before.

        Raises:
            TooLargeError: Too many rows have to wait.
        """
        if len(receipts):
            ordinals = np.arange(self._ordinal, self._ordinal + len(receipts))
            self._ordinal += len(receipts)
            chunk = _in_order([_Chunk(rows, receipts, ordinals)])
            self._in_memory.append(_Run(iter([chunk])))
        # One received at the floor was also sooner in total order than all that is to come.
        yield from self._leaving((floor, NEVER))
        self._make_room()

    def close(self) -> None:
        """Forget the rows that wait."""
        for file in self._files:
            file.close()

    def _leaving(self, bound: _Key) -> Iterator[Received]:
        while True:
            self._in_memory = [run for run in self._in_memory if run.refill()]
            self._on_disk = [run for run in self._on_disk if run.refill()]
            due = [r for r in (*self._in_memory, *self._on_disk) if r.chunk.first <= bound]
            if not due:
                return
            # Beyond the last row in memory of a run, what it has next is not known yet.
            until = min(bound, *(run.chunk.last for run in due))
            yield from _blocks(_in_order([run.take(until) for run in due]))

    def _make_room(self) -> None:
        held = sum(run.held_bytes for run in self._in_memory)
        if held <= HELD_BYTES_MAX and len(self._in_memory) <= HELD_RUNS_MAX:
            return
        merged = _in_order([run.chunk for run in self._in_memory])
        self._in_memory = []
        if held <= HELD_BYTES_MAX:
            self._in_memory.append(_Run(iter([merged])))
        else:
            self._on_disk.append(_Run(self._written(merged)))

    def _written(self, chunk: _Chunk) -> Iterator[_Chunk]:
        """Write rows to a file that nobody else sees, and return them as they are read back."""
        size = chunk.rows.nbytes
        self._spilled_bytes += size
        free = self._spill.disk.free(self._spill.directory)
        if self._spilled_bytes > SPILLED_BYTES_MAX or size + SPARE_BYTES > free:
            raise TooLargeError(
                "too many rows were received much later than they happened: ask for a shorter span"
                " or fewer symbols, or for the range, which is in order of ts_event"
            )
        with _naming_the_disk():
            file = tempfile.TemporaryFile(dir=self._spill.directory)  # noqa: SIM115 - see below
            self._files.add(file)
            rows_a_chunk = max(1, len(chunk) * CHUNK_BYTES // size)
            table = _with_keys(chunk)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_file(
                pa.PythonFile(file, mode="w"), table.schema, options=options
            ) as sink:
                sink.write_table(table, max_chunksize=rows_a_chunk)
            file.seek(0)
        return self._read_back(file, size)

    def _read_back(self, file: IO[bytes], size: int) -> Iterator[_Chunk]:
        """Yield what was written to a file, which makes room once all of it was read."""
        with pa.ipc.open_file(pa.PythonFile(file, mode="r")) as reader:
            for at in range(reader.num_record_batches):
                yield _without_keys(reader.get_batch(at))
        self._files.remove(file)
        file.close()
        self._spilled_bytes -= size


def _in_order(chunks: Sequence[_Chunk]) -> _Chunk:
    """Return the rows of all chunks as one, sorted."""
    if len(chunks) > 1:
        rows = pa.concat_batches([chunk.rows for chunk in chunks])
        receipts = np.concatenate([chunk.receipts for chunk in chunks])
        ordinals = np.concatenate([chunk.ordinals for chunk in chunks])
        order = np.lexsort((ordinals, receipts))
    else:
        rows, receipts, ordinals = chunks[0].rows, chunks[0].receipts, chunks[0].ordinals
        if (receipts[1:] >= receipts[:-1]).all():
            return chunks[0]
        order = np.argsort(receipts, kind="stable")
    return _Chunk(rows.take(pa.array(order)), receipts[order], ordinals[order])


def _blocks(chunk: _Chunk) -> Iterator[Received]:
    """Cut rows into what a message holds."""
    weight = max(1, chunk.rows.nbytes // max(1, len(chunk)))
    size = max(1, min(BLOCK_ROWS_TARGET, BLOCK_BYTES // weight))
    for at in range(0, len(chunk), size):
        part = chunk.slice(at, min(at + size, len(chunk)))
        yield Received(part.rows, part.receipts)


_KEYS: Final = ("", " ")
"""Names that no column of a dataset has."""


def _with_keys(chunk: _Chunk) -> pa.Table:
    table = pa.Table.from_batches([chunk.rows])
    for name, values in zip(_KEYS, (chunk.receipts, chunk.ordinals), strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def _without_keys(batch: pa.RecordBatch) -> _Chunk:
    receipts, ordinals = (np.asarray(batch.column(name).to_numpy()) for name in _KEYS)
    return _Chunk(batch.select(batch.schema.names[: -len(_KEYS)]), receipts, ordinals)


@contextmanager
def _naming_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TooLargeError(
            "rows that were received late find no room to wait on the server's disk"
            f" ({error.strerror or error}): ask for a shorter span or fewer symbols"
        ) from error
