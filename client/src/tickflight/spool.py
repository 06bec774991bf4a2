"""The disk behind a writer: batches that the server could not take yet, kept through crashes.

A spool directory holds numbered files ``0000000001.spool`` in the order they were begun, each with
the batches of one producer (``records`` tells how they are written), and a lock file. A batch
counts once ``sync`` has returned. A file goes when all its batches are durable on the server.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from tickflight import records
from tickflight.errors import (
    ConfigurationError,
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    SpoolLockedError,
    TickflightError,
)
from tickflight.records import CorruptError, Kind, Title

FILE_BYTES: Final = 16 * 2**20
"""A file that has reached this gets no more: space comes back in such steps."""
_SUFFIX: Final = ".spool"
_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch lies."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SpooledBatch:
    """A batch found on disk."""

    seq: int
    rows: int
    place: Place


@dataclass(frozen=True, slots=True)
class Leftover:
    """What an earlier life left: batches of one producer without a hole, oldest first."""

    title: Title
    batches: tuple[SpooledBatch, ...]


@dataclass(slots=True)
class _File:
    path: Path
    title: Title
    size: int = 0
    last_seq: int = -1
    synced_size: int = 0
    synced_seq: int = -1


class Spool:
    """One spool directory, held by one process; only ``read`` is safe from any thread."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        """Lock the directory, check every record in it and cut a torn tail off.

        Raises:
            SpoolLockedError: another writer has it.
            SpoolCorruptError: a record does not check, or one is missing between others.
            SpoolError: the directory can't be used.
        """
        self.path = path
        self._limit_bytes = limit_bytes
        self._output: BinaryIO | None = None
        self._files: list[_File] = []
        self._ordinal = 0
        with _disk_errors(path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(path / _LOCK)
            try:
                self.leftovers: tuple[Leftover, ...] = self._recover()
                """What earlier lives left, oldest first."""
            except BaseException:
                self._lock.close()
                raise

    def __repr__(self) -> str:
        return f"<Spool {self.path}: {self.size} of {self._limit_bytes} bytes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self._files)

    def close(self) -> None:
        """Give the directory to others; what is in it stays for the next life."""
        with _disk_errors(self.path):
            self._end_file()
            self._lock.close()

    def append(self, title: Title, *, seq: int, rows: int, body: bytes | memoryview) -> Place:
        """Write a batch behind the others; it counts after ``sync``.

        Raises:
            SpoolFullError: the limit would be passed; nothing was written.
            SpoolError: the disk is full or failing; nothing of this batch stays in the file.
        """
        record = records.encode(Kind.BATCH, body, seq=seq, rows=rows)
        if self.size + len(record) > self._limit_bytes:
            raise SpoolFullError(
                f"{self.path} has reached its limit of {self._limit_bytes} bytes:"
                " raise spool_bytes, or find out why the server takes nothing"
            )
        with _disk_errors(self.path):
            output = self._output_for(title)
            file = self._files[-1]
            place = Place(file.path, file.size, len(record))
            self._write(output, file, record)
        file.last_seq = seq
        return place

    def sync(self) -> None:
        """Make what was appended survive a power cut.

        Raises:
            SpoolError: the disk did not do it. What was appended since the last ``sync`` is taken
                back, and the file gets no more: what a failed fsync leaves behind is unknown, and
                a second one that succeeds proves nothing.
        """
        if self._output is None:
            return
        file = self._files[-1]
        try:
            with _disk_errors(self.path):
                os.fsync(self._output.fileno())
        except SpoolError:
            self._give_up(file)
            raise
        file.synced_size, file.synced_seq = file.size, file.last_seq

    def has_done(self, title: Title, durable: int) -> bool:
        """Whether ``release`` would delete a file."""
        return any(one.title == title and one.last_seq <= durable for one in self._files)

    def release(self, title: Title, durable: int) -> None:
        """Delete files whose batches are all durable on the server.

        Batches that a crash brings back with a file deleted too late are harmless: the server knows
        their numbers.
        """
        done = [one for one in self._files if one.title == title and one.last_seq <= durable]
        with _disk_errors(self.path):
            for file in done:
                if file is self._files[-1]:
                    self._end_file()
                file.path.unlink(missing_ok=True)
                self._files.remove(file)

    @staticmethod
    def read(place: Place) -> memoryview:
        """The body of a batch.

        Raises:
            SpoolCorruptError: it is not what was written.
            SpoolError: it can't be read.
        """
        with _disk_errors(place.path), place.path.open("rb") as file:
            file.seek(place.offset)
            data = memoryview(file.read(place.length))
        try:
            record = records.decode(data, 0, len(data))
        except CorruptError as error:
            raise SpoolCorruptError(place.path, place.offset, error.detail) from None
        if record is None:
            raise SpoolCorruptError(place.path, place.offset, "the file has become shorter")
        return record.body

    def _output_for(self, title: Title) -> BinaryIO:
        if self._output is not None and self._files:
            file = self._files[-1]
            if file.title == title and file.size < FILE_BYTES:
                return self._output
        self._end_file()
        self._ordinal += 1
        path = self.path / f"{self._ordinal:010d}{_SUFFIX}"
        self._output = path.open("xb", buffering=0)
        self._files.append(_File(path, title))
        # The name first, and with it every deletion before: a file that came back between this one
        # and its successor would look like a hole.
        _sync_directory(self.path)
        self._write(self._output, self._files[-1], records.encode_title(title))
        return self._output

    def _write(self, output: BinaryIO, file: _File, record: bytes) -> None:
        """Append all of it or, as far as the disk lets us, none."""
        view = memoryview(record)
        try:
            while view:
                view = view[output.write(view) :]
        except OSError:
            try:
                output.truncate(file.size)
                output.seek(file.size)
            except OSError:
                self._output = None  # torn: its next reader cuts it, we begin another
            raise
        file.size += len(record)

    def _give_up(self, file: _File) -> None:
        output, self._output = self._output, None
        file.size, file.last_seq = file.synced_size, file.synced_seq
        if output is not None:
            with output, _disk_errors(self.path):
                output.truncate(file.size)

    def _end_file(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None

    def _recover(self) -> tuple[Leftover, ...]:
        paths = sorted(self.path.glob(f"*{_SUFFIX}"))
        leftovers: list[Leftover] = []
        for path in paths:
            found = _recover_file(path, is_last=path is paths[-1])
            self._ordinal = _ordinal(path)
            if found is None:
                continue
            batches = found.batches
            size, last_seq = path.stat().st_size, batches[-1].seq
            self._files.append(_File(path, found.title, size, last_seq, size, last_seq))
            if leftovers and leftovers[-1].title == found.title:
                batches = leftovers.pop().batches + batches
            _check_sequence(batches)
            leftovers.append(Leftover(found.title, batches))
        return tuple(leftovers)


def _recover_file(path: Path, *, is_last: bool) -> Leftover | None:
    """The batches of a file, None when it holds none; a torn tail is cut off."""
    data = memoryview(path.read_bytes())
    end = 0
    title: Title | None = None
    batches: list[SpooledBatch] = []
    try:
        for record in records.scan(data):
            if title is None:
                title = records.decode_title(record)
            else:
                place = Place(path, record.offset, record.length)
                batches.append(SpooledBatch(record.seq, record.rows, place))
            end = record.offset + record.length
    except CorruptError as error:
        raise SpoolCorruptError(path, error.offset, error.detail) from None
    if end < len(data) and not is_last:
        # Later files are only begun when this one is whole.
        raise SpoolCorruptError(path, end, "the file is cut short, and others follow it")
    if title is None or not batches:
        path.unlink()
        return None
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return Leftover(title, tuple(batches))


def _check_sequence(batches: tuple[SpooledBatch, ...]) -> None:
    for index, batch in enumerate(batches):
        expected = batches[0].seq + index
        if batch.seq != expected:
            detail = f"batch {expected} is missing before batch {batch.seq}"
            raise SpoolCorruptError(batch.place.path, batch.place.offset, detail)


def _ordinal(path: Path) -> int:
    try:
        return int(path.stem)
    except ValueError:
        raise SpoolError(f"{path} is no file of ours: move it out of the spool directory") from None


def _lock(path: Path) -> BinaryIO:
    try:
        import fcntl  # noqa: PLC0415 - the rest of the package runs where this does not exist
    except ImportError:
        raise ConfigurationError("a spool needs a POSIX system; write without one") from None
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SpoolLockedError(
            f"{path.parent} is in use by another writer: give each its own directory"
        ) from None
    return file


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, TickflightError):
            raise
        raise SpoolError(f"{path}: {error.strerror or type(error).__name__}") from None
