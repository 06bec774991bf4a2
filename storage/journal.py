"""Group commit: what was appended becomes durable, off the path to visibility.

The journal follows the hot stores: it is told which positions are new, reads those rows straight
from the column buffers, and commits everything that has gathered since its last commit at once.
Disks stall for a second now and then; readers never notice, producers only wait for their acks.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.errors import JournalError, JournalFullError, StoreClosedError
from storage.journal_file import Header, JournalWriter, checkpoint, file_name, remove
from storage.journal_making import Appended, RecordMaker
from storage.journal_record import schema_text
from storage.ports import MICROSECONDS, Clock, Disk
from storage.segments import Segment

HOUR: Final = 3_600 * MICROSECONDS
SEGMENT_ROWS_MAX: Final = 8_000_000
"""Rows a file: a rollover reads a whole one into memory, a gigabyte of ticks at most."""
COMMIT_INTERVAL_SECONDS: Final = 0.005
"""Least time between commits: an fsync a tick would wear the disk out and gain nobody anything."""
COMMIT_ROWS_MAX: Final = 1 << 18
"""Rows a commit, about 25 MB of ticks: keeps an ack from waiting for a huge transaction."""
WAITING_ROWS_MAX: Final = 1 << 21
"""Rows appended but not journaled before appending pauses: what a crash may take back."""
RETRY_SECONDS: Final = 1.0
"""How often a full disk is tried again."""
CHECKPOINT_BYTES: Final = 64 << 20
"""Write-ahead log size at which it is folded into the file, so that it does not grow all hour."""
HOUSEKEEPING_SECONDS: Final = 1.0
ROLL_POLL_SECONDS: Final = 0.5
"""How often who waits for the end of a file looks whether there is a journal still."""


class _Roll:
    """Stands in the queue where the file has to end."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.ended = 0


@dataclass(slots=True)
class JournalStatus:
    """How the journal is doing.

    Attributes:
        commits: Transactions since start.
        records: Records in the file being written.
        hour: Hour of the file being written, µs.
        waiting_rows: Rows not durable yet.
        degraded: What is wrong, in words; None when nothing is.
        degraded_since: When it went wrong, µs.
        commit_seconds: How long recent commits took.
    """

    commits: int = 0
    records: int = 0
    hour: int = 0
    waiting_rows: int = 0
    degraded: str | None = None
    degraded_since: int | None = None
    commit_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


class Journal:
    """Writes what was appended, in order, to one file an hour.

    Args:
        directory: Where the files are.
        stores: Where the rows are.
        clock: Where time comes from.
        disk: The file system.
        on_sealed: Called with each file that is finished, in order.
        on_failure: Called when the journal can't go on.
    """

    def __init__(
        self,
        directory: Path,
        stores: Mapping[str, ColumnarStore | BatchedStore],
        *,
        clock: Clock,
        disk: Disk,
        on_sealed: Callable[[Segment], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.status = JournalStatus()
        self._directory = directory
        self._stores = stores
        self._clock = clock
        self._disk = disk
        self._on_sealed = on_sealed
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._groups: deque[Sequence[Appended] | _Roll] = deque()
        self._stopping = threading.Event()
        self._writer: JournalWriter | None = None
        self._sealing: deque[tuple[JournalWriter, Segment]] = deque()
        self._rows = self._arrival = 0  # of the file being written
        self._behind = threading.Event()  # the housekeeper has folded all but the newest commits
        self._to_tidy = threading.Event()
        self._maker = RecordMaker()  # for the file being written
        self._positions: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._schemas = {name: schema_text(store.journal_schema) for name, store in stores.items()}
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._housekeeper = threading.Thread(target=self._keep_house, daemon=True)

    def start(self, header: Header) -> None:
        """Create the first file of this life and begin to write.

        Raises:
            JournalError: The file can't be created.
        """
        self._positions = dict(header.positions)
        self._marks = dict(header.marks)
        self._open(header)
        self._thread.start()
        self._housekeeper.start()

    def submit(self, group: Sequence[Appended]) -> None:
        """Queue rows that must become durable together; waits while the disk is far behind."""
        rows = sum(part.stop - part.start for part in group)
        with self._changed:
            while self.status.waiting_rows > WAITING_ROWS_MAX and not self._stopping.is_set():
                self._changed.wait()
            self._groups.append(group)
            self.status.waiting_rows += rows
            self._changed.notify_all()

    def roll(self) -> int:
        """End the file after all that was submitted; return the number of the last ended file.

        A file without rows goes on: the number is that of the file before it, which may be 0.
        """
        roll = _Roll()
        with self._changed:
            self._groups.append(roll)
            self._changed.notify_all()
        while not roll.done.wait(ROLL_POLL_SECONDS):
            if not self._thread.is_alive():
                raise StoreClosedError("the server is shutting down")
        return roll.ended

    def durable(self, dataset: str) -> int:
        """Return the position below which all rows of a dataset are durable."""
        return self._positions.get(dataset, 0)

    @property
    def open_hour(self) -> int:
        """Hour of the file being written, µs."""
        return self.status.hour

    @property
    def open_rows(self) -> int:
        """Rows in the file being written."""
        return self._rows

    def stop(self) -> None:
        """Write what is queued, seal the file and stop."""
        self._stopping.set()
        self._to_tidy.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()
        self._housekeeper.join()

    def _run(self) -> None:
        try:
            while groups := self._next_groups():
                if isinstance(groups, _Roll):
                    self._end_file(groups)
                    continue
                began = self._clock.monotonic()
                self._commit(groups)
                self._fold_the_rest()
                self.status.commit_seconds.append(self._clock.monotonic() - began)
                # Not when stopping: whoever waits for the last acks waits for nothing else.
                self._stopping.wait(COMMIT_INTERVAL_SECONDS - (self._clock.monotonic() - began))
            self._seal()
        except BaseException as error:  # noqa: BLE001 - the process can't go on half alive
            self._on_failure(error)

    def _next_groups(self) -> list[Sequence[Appended]] | _Roll:
        """Wait for groups; return those of one hour, and at most ``COMMIT_ROWS_MAX`` rows."""
        with self._changed:
            while not self._groups:
                if self._stopping.is_set():
                    return []
                self._changed.wait()
            first = self._groups[0]
            if isinstance(first, _Roll):
                self._groups.popleft()
                return first
            hour = first[0].arrival // HOUR
            groups: list[Sequence[Appended]] = []
            rows = 0
            while self._groups and rows < COMMIT_ROWS_MAX:
                group = self._groups[0]
                if isinstance(group, _Roll) or group[0].arrival // HOUR != hour:
                    break
                groups.append(group)
                self._groups.popleft()
                rows += sum(part.stop - part.start for part in group)
            return groups

    def _commit(self, groups: Sequence[Sequence[Appended]]) -> None:
        hour = groups[0][0].arrival // HOUR * HOUR
        writer = self._writer_of(hour)
        parts = [part for group in groups for part in group]
        marks = [mark for part in parts for mark in part.marks]
        records = self._maker.records(parts)
        self._when_there_is_room(lambda: writer.commit(records))
        self._maker.note_written()
        for record in records:
            self._positions[record.dataset] = record.position + record.rows
            self._marks.update(record.marks)
            self._rows += record.rows
        self._arrival = parts[-1].arrival
        for mark in marks:
            mark.stream.settle(mark)
        with self._changed:
            self.status.waiting_rows -= sum(part.stop - part.start for part in parts)
            self.status.commits += 1
            self.status.records = writer.records
            self._changed.notify_all()

    def _when_there_is_room(self, write: Callable[[], None]) -> None:
        """Write, waiting as long as the disk is full."""
        while True:
            try:
                write()
            except JournalFullError as error:
                if self._stopping.is_set():
                    raise
                self._degrade(str(error))
                self._stopping.wait(RETRY_SECONDS)
            else:
                self.status.degraded = self.status.degraded_since = None
                return

    def _degrade(self, why: str) -> None:
        if self.status.degraded is None:
            self.status.degraded_since = self._clock.now()
        self.status.degraded = why

    def _writer_of(self, hour: int) -> JournalWriter:
        """Return the writer of an hour, a new file when the hour is new or the file is full."""
        current = self._writer
        if current is None:
            raise JournalError("the journal is not open")
        if current.header.hour >= hour and self._rows < SEGMENT_ROWS_MAX:
            return current
        return self._succeed(current, max(hour, current.header.hour))

    def _end_file(self, roll: _Roll) -> None:
        """End the file being written, unless it holds nothing."""
        current = self._writer
        if current is None:
            raise JournalError("the journal is not open")
        if current.records:
            self._succeed(current, max(self._clock.now() // HOUR * HOUR, current.header.hour))
            roll.ended = current.header.number
        else:
            roll.ended = current.header.number - 1
        roll.done.set()

    def _succeed(self, current: JournalWriter, hour: int) -> JournalWriter:
        """Begin the file after the current one, and leave that to the housekeeper to seal."""
        positions = dict(self._positions)
        header = Header(
            number=current.header.number + 1,
            epoch=current.header.epoch,
            hour=hour,
            positions=positions,
            marks=self._marks,
            previous_records=current.records,
        )
        segment = Segment(
            path=current.path,
            number=current.header.number,
            epoch=current.header.epoch,
            first=current.header.positions,
            end=positions,
            arrival=self._arrival,
        )
        self._when_there_is_room(lambda: self._open(header))
        self._sealing.append((current, segment))
        self._to_tidy.set()
        assert self._writer is not None  # noqa: S101 - just opened
        return self._writer

    def _open(self, header: Header) -> None:
        path = self._directory / file_name(header.number, header.hour)
        try:
            self._writer = JournalWriter(path, replace(header, schemas=self._schemas))
        except JournalFullError:
            remove(path, self._disk)
            raise
        self._disk.sync_directory(self._directory)
        self._maker = RecordMaker()
        self._rows, self._arrival = 0, header.hour
        self.status.hour, self.status.records = header.hour, 0

    def _fold_the_rest(self) -> None:
        """Fold the commits that came while the housekeeper folded those before them.

        SQLite begins a log anew only once all of it is folded, which beside steady commits never
        is; between two of them little is left to do.
        """
        if self._behind.is_set() and self._writer is not None:
            self._behind.clear()
            checkpoint(self._writer.path)

    def _seal(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.seal()
        except JournalFullError:
            return  # the next life reads it as it is
        self._disk.sync_directory(self._directory)

    def _keep_house(self) -> None:
        """Seal files and fold write-ahead logs into them, beside the commits."""
        try:
            while not self._stopping.is_set():
                self._to_tidy.wait(HOUSEKEEPING_SECONDS)
                self._to_tidy.clear()
                self._tidy()
            self._tidy()
        except BaseException as error:  # noqa: BLE001 - the process can't go on half alive
            self._on_failure(error)

    def _tidy(self) -> None:
        while self._sealing:
            writer, segment = self._sealing[0]
            try:
                writer.seal()
            except JournalFullError:
                return  # it can wait: its log has everything
            self._sealing.popleft()
            self._on_sealed(segment)
        current = self._writer
        if current is None:
            return
        log = current.path.with_name(current.path.name + "-wal")
        if self._disk.size(log) > CHECKPOINT_BYTES:
            checkpoint(current.path)
            self._behind.set()
