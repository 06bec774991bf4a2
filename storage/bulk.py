"""Old data on its way into the lake, without a trip through memory.

    batches ─► decoded, validated ─► spool ─► child writes files ─► one commit

A **job** numbers its batches as a producer does, or has them numbered as they come. What has
gathered becomes one part of the table when the stream ends, and whenever it is enough for one. The
commit of a part sets ``tickflight.bulk/<job>`` to the number of its newest batch, so a batch that
is sent again is known, whatever has happened in between: a job that was cut off is sent again, from
its beginning or from where it was. Impossible rows go to ``quarantine`` by the same way, in a
commit before that, with a counter of their own.

Nothing of the spool outlives the server: what was not committed is sent again.
"""

import re
import secrets
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa

from storage.bulk_spool import TOKEN_BYTES, Spooled, SpoolWriter
from storage.errors import InvalidDataError, LakeError, SequenceError
from storage.lake.files import FileKind
from storage.lake.table import LakeTable
from storage.ledger import CoverageLedger
from storage.ports import Clock, Disk
from storage.producers import Ack
from storage.rollover import Rollover
from storage.rollover_parts import Parts
from storage.rollover_task import PartResult, PartTask, RolloverTask
from storage.schemas import QUARANTINE, Dataset
from storage.synthetic import real_symbols

BULK: Final = "tickflight.bulk/"
"""Begins the names of the application transactions that count the batches of jobs."""
JOB_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PART_ROWS: Final = 4_000_000
"""Rows a part: the process that sorts them has all of them in memory, half a gigabyte of ticks."""


@dataclass(frozen=True, slots=True)
class BulkConfig:
    """What bulk loading needs to know.

    Attributes:
        spool: Directory of the rows that are on their way.
        lake: Directory of all tables.
    """

    spool: Path
    lake: Path


class BulkLoader:
    """Takes jobs; safe to share between threads.

    Args:
        config: Where to.
        parts: What rolls over, and what with.
        rollover: Whose thread alone adds parts to tables.
        ledger: Learns what was put aside.
        clock: Where time comes from.
        disk: The file system.
        stopping: Ends what takes long.
    """

    def __init__(
        self,
        config: BulkConfig,
        parts: Parts,
        rollover: Rollover,
        ledger: CoverageLedger,
        *,
        clock: Clock,
        disk: Disk,
        stopping: threading.Event,
    ) -> None:
        self._config = config
        self._parts = parts
        self._rollover = rollover
        self._ledger = ledger
        self._clock = clock
        self._disk = disk
        self._stopping = stopping
        self._lock = threading.Lock()
        self._open: set[tuple[str, str]] = set()
        disk.make_directory(config.spool)
        for path in disk.list(config.spool):
            disk.remove(path)  # of a life that was cut off; its job is sent again

    def open(self, dataset: Dataset, job: str, schema: pa.Schema) -> "BulkStream":
        """Return a stream of one job's batches into one dataset; to be closed.

        Raises:
            InvalidDataError: Dataset, job or schema can't be taken.
            SequenceError: Another stream of the job is open.
            LakeError: The lake can't be read.
        """
        if "symbol" not in dataset.partition_by:
            message = f"{dataset.name} has no bulk path: send its rows to the path of one part"
            raise InvalidDataError(message, field="path")
        if JOB_PATTERN.fullmatch(job) is None:
            message = "the name of a job is 1 to 128 of A-Z a-z 0-9 . _ -, a letter or digit first"
            raise InvalidDataError(message, field="path")
        writer = SpoolWriter(self._config.spool, dataset, schema, self._clock, self._disk)
        with self._lock:
            if (dataset.name, job) in self._open:
                raise SequenceError(f"another stream of job {job!r} is open: wait for its end")
            self._open.add((dataset.name, job))
        try:  # only now: the stream before may just have committed
            counter = _counter(dataset.name, job)
            put_aside = self._parts.tables[QUARANTINE.name].counter(counter) or 0
            return BulkStream(self, writer, job, self.durable(dataset.name, job), put_aside)
        except BaseException:
            self.close(dataset.name, job)
            raise

    def durable(self, dataset: str, job: str) -> int:
        """Return the number of a job's newest batch that the lake has, 0 without one.

        Raises:
            LakeError: The lake can't be read.
        """
        return self._parts.tables[dataset].counter(_counter(dataset, job)) or 0

    def close(self, dataset: str, job: str) -> None:
        """Forget a stream."""
        with self._lock:
            self._open.discard((dataset, job))

    def commit(self, spooled: Spooled) -> PartResult:
        """Bring what was spooled into the lake; durable and visible once this returns.

        Raises:
            LakeFullError: There is no room; nothing of the part is in the lake.
            LakeError: It failed; the job's counter says whether the part is there.
            StoreClosedError: The store is shutting down.
        """
        return self._rollover.between_segments(lambda: self._committed(spooled))

    # In the thread of the rollover

    def _committed(self, spooled: Spooled) -> PartResult:
        tables = [self._parts.tables[name] for name in (QUARANTINE.name, spooled.dataset)]
        due = [table for table in tables if self._is_due(table, spooled)]
        for table in due:
            table.settle()
            self._parts.memory.show(table)
        if (tables[-1].counter(spooled.counter) or 0) != spooled.after:
            raise SequenceError("the job has gone on by another stream: send it again")
        results = self._written(spooled, due)
        for table, result in zip(due, results, strict=True):
            self._commit(table, result, spooled)
        return results[-1]

    def _is_due(self, table: LakeTable, spooled: Spooled) -> bool:
        if table.dataset.name == spooled.dataset:
            return True
        first, end = spooled.spans[table.dataset.name]
        return first < end

    def _written(self, spooled: Spooled, due: list[LakeTable]) -> tuple[PartResult, ...]:
        real = real_symbols(self._parts.tables)
        parts = tuple(
            PartTask(
                table.dataset.name,
                table.part + 1,
                *spooled.spans[table.dataset.name],
                without_synthetic=real.get(table.dataset.name, ()),
                kind=FileKind.BULK,
            )
            for table in due
        )
        token = secrets.token_hex(TOKEN_BYTES)
        task = RolloverTask(str(spooled.path), str(self._config.lake), token, parts)
        results = self._parts.write(task, self._stopping).parts
        if [result.part for result in results] != [part.part for part in parts]:
            raise LakeError(f"{spooled.path}: other parts were written than those asked for")
        return results

    def _commit(self, table: LakeTable, result: PartResult, spooled: Spooled) -> None:
        position, counter = table.position, {spooled.counter: spooled.seq}
        try:
            table.commit_part(result.part, position, position, table.epoch, result.files, counter)
        finally:
            self._parts.memory.show(table)
        if table.dataset is QUARANTINE:
            self._ledger.adopt(QUARANTINE.name, pa.Table.from_batches(spooled.rejects))
        self._rollover.first(partial(self._rollover.follow, table.dataset.name, result.files))


class BulkStream:
    """The batches of one stream of a job; for one thread.

    Args:
        loader: Where parts go.
        writer: Where rows gather.
        job: Name of the job.
        durable: Number of the newest batch that the lake has.
        put_aside: Likewise, of those whose impossible rows are in ``quarantine``.
    """

    def __init__(
        self, loader: BulkLoader, writer: SpoolWriter, job: str, durable: int, put_aside: int
    ) -> None:
        self._loader = loader
        self._writer = writer
        self._job = job
        self._durable = self._taken = durable
        self._put_aside = put_aside
        self._came = 0
        self._quarantined = self._duplicates = 0

    def __repr__(self) -> str:
        return f"<BulkStream {self._job} durable {self._durable} taken {self._taken}>"

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a part: then ``commit`` is due."""
        return self._writer.rows >= PART_ROWS

    def push(self, batch: pa.RecordBatch, seq: int | None = None) -> None:
        """Take one batch.

        Args:
            batch: Rows of the stream's schema.
            seq: Its number; None numbers the batches of the stream from 1.

        Raises:
            InvalidDataError: The batch's own buffers contradict each other.
            SequenceError: The number jumps.
            JournalError: The spool can't be written.
        """
        self._came += 1
        number = self._came if seq is None else seq
        expected = self._taken + 1
        if not 1 <= number <= expected:
            message = f"job {self._job!r} sent batch {number} where {expected} comes next"
            raise SequenceError(message, expected=expected)
        if number < expected:
            return
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidDataError(f"the batch is not valid Arrow data: {error}") from error
        is_known = number <= self._put_aside
        quarantined, duplicates = self._writer.add(batch, without_rejects=is_known)
        self._taken = number
        self._quarantined += quarantined
        self._duplicates += duplicates

    def commit(self) -> Ack:
        """Bring what has gathered into the lake; durable and visible once this returns.

        Raises:
            StorageError: It is not, and the stream is at its end: the job has to be sent again.
        """
        rows = 0
        if self._taken > self._durable:
            counter = _counter(self._writer.dataset.name, self._job)
            spooled = self._writer.finish(counter, self._durable, self._taken)
            rows = self._loader.commit(spooled).rows
            self._writer.begin()
            self._durable = self._taken
        ack = Ack(self._durable, rows, self._quarantined, self._duplicates)
        self._quarantined = self._duplicates = 0
        return ack

    def close(self) -> None:
        """Forget what was not committed."""
        self._writer.discard()
        self._loader.close(self._writer.dataset.name, self._job)


def _counter(dataset: str, job: str) -> str:
    return f"{BULK}{dataset}/{job}"
