"""The pages of a journal file, read without SQLite.

SQLite gives up where a page is damaged. We know more than it does: every row vouches for itself by
its checksum. So all leaf pages of tables are searched for rows, in the file and in the part of its
log that was committed, and whoever asks keeps the rows that prove to be right. Nothing read here is
to be trusted otherwise.

Format: https://sqlite.org/fileformat.html, sections 1.6 (pages), 2.1 (records), 4.1 (the log).
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from storage.errors import JournalCorruptError, JournalError
from storage.journal_log import FRAME_HEADER_BYTES, HEADER_BYTES, LOG_SUFFIX, read_log

Value = int | float | str | bytes | None

PAGE_BYTES: Final = 8192
"""As fast as 64 KiB in bulk, and a sixth of the bytes when small batches trickle in."""
PAYLOAD_BYTES_MAX: Final = 1 << 30
"""No record is as long: a length beyond it is damage."""
RECORD_COLUMNS: Final = 10
"""No other table of a journal file has as many."""
_LEAF: Final = 0x0D
_LEAF_HEADER_BYTES: Final = 8
_LOCAL_MAX: Final = PAGE_BYTES - 35
_LOCAL_MIN: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_OVERFLOW_BYTES: Final = PAGE_BYTES - 4
_INTEGER_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row of some table seems to be.

    Attributes:
        path: The file: the database or its log.
        offset: Where it begins there, in bytes.
        number: Its row id.
        columns: How many columns it has.
    """

    path: Path
    offset: int
    number: int
    columns: int


class Pages:
    """All pages of a journal file, each version of them; use it as a context.

    Raises:
        JournalError: The file can't be read.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._log_path = journal.with_name(journal.name + LOG_SUFFIX)
        self._open = ExitStack()
        self._log: BinaryIO | None = None
        self._in_log: dict[int, int] = {}  # page number: offset of its newest version
        try:
            self._file = self._open.enter_context(journal.open("rb"))
            if self._log_path.exists():
                self._log = self._open.enter_context(self._log_path.open("rb"))
                self._in_log = dict(self._frames())
        except OSError as error:
            self._open.close()
            raise JournalError(f"{journal}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def places(self) -> Iterator[Place]:
        """Yield where rows seem to be, in the file and then in its log."""
        offset = 0
        while data := _page(self._file, offset):
            yield from _places(self._journal, offset, data)
            offset += PAGE_BYTES
        if self._log is not None:
            for _, offset in self._frames():
                yield from _places(self._log_path, offset, _page(self._log, offset))

    def rows(self, place: Place) -> Iterator[tuple[Value, ...]]:
        """Yield what the row at a place may be; an integer primary key is None in it.

        More than one: what a row overflows into may lie in the log, or only in the file.
        """
        in_file = place.path == self._journal
        home = self._file if in_file else self._log
        assert home is not None  # noqa: S101 - a place in the log is one of a log that is open
        start = place.offset % PAGE_BYTES if in_file else _in_frame(place.offset)
        data = _page(home, place.offset - start)
        for from_log in (True, False) if self._in_log else (False,):
            try:
                length, at = _varint(data, start)
                _, at = _varint(data, at)
                payload = b"".join(self._payload(data, at, length, from_log=from_log))
                yield _values(payload[:length])
            except (IndexError, struct.error, ValueError):
                continue  # no row after all

    def _frames(self) -> Iterator[tuple[int, int]]:
        """Yield page number and offset of every page that a commit has put into the log."""
        assert self._log is not None  # noqa: S101 - asked only where there is one
        for frame in range(_committed(self._journal, self._log)):
            offset = HEADER_BYTES + frame * (FRAME_HEADER_BYTES + PAGE_BYTES)
            self._log.seek(offset)
            (number,) = struct.unpack(">I", self._log.read(4))
            yield number, offset + FRAME_HEADER_BYTES

    def _payload(self, data: bytes, at: int, length: int, *, from_log: bool) -> Iterator[bytes]:
        local = _local_bytes(length)
        yield data[at : at + local]
        left = length - local
        following = struct.unpack_from(">I", data, at + local)[0] if left else 0
        while left > 0 and following:
            offset = self._in_log.get(following) if from_log else None
            overflow = (
                _page(self._file, (following - 1) * PAGE_BYTES)
                if offset is None or self._log is None
                else _page(self._log, offset)
            )
            (following,) = struct.unpack_from(">I", overflow)
            yield overflow[4 : 4 + min(left, _OVERFLOW_BYTES)]
            left -= _OVERFLOW_BYTES
        if left > 0:
            raise ValueError("the chain of pages ends too early")


def place_of(journal: Path, record: int) -> Place | None:
    """Return where a record lies, its newest version; None where it can't be told."""
    found = None
    try:
        with Pages(journal) as pages:
            for place in pages.places():
                if place.number == record and place.columns == RECORD_COLUMNS:
                    found = place
    except JournalError:
        return None
    return found


def _committed(journal: Path, log: BinaryIO) -> int:
    """Return how many frames of a log to look at: all up to the last commit."""
    try:
        judged = read_log(journal)
    except JournalCorruptError:  # its header: what the frames say of themselves must do
        frame_bytes, committed, frame = FRAME_HEADER_BYTES + PAGE_BYTES, 0, 0
        log.seek(HEADER_BYTES)
        while len(data := log.read(frame_bytes)) == frame_bytes:
            frame += 1
            committed = frame if struct.unpack_from(">I", data, 4)[0] else committed
        return committed
    return 0 if judged is None else judged.committed


def _in_frame(offset: int) -> int:
    """Return where in its page a byte of the log lies."""
    return (offset - HEADER_BYTES) % (FRAME_HEADER_BYTES + PAGE_BYTES) - FRAME_HEADER_BYTES


def _page(file: BinaryIO, offset: int) -> bytes:
    """Return a whole page, or nothing."""
    file.seek(offset)
    data = file.read(PAGE_BYTES)
    return data if len(data) == PAGE_BYTES else b""


def _places(path: Path, offset: int, page: bytes) -> Iterator[Place]:
    if page[:1] != bytes([_LEAF]):
        return
    for start in _starts(page):
        try:
            length, at = _varint(page, start)
            number, at = _varint(page, at)
            columns = len(_kinds(page, at)[0])
        except IndexError:
            continue
        if length <= PAYLOAD_BYTES_MAX:
            yield Place(path, offset + start, number, columns)


def _starts(page: bytes) -> Iterator[int]:
    """Yield where rows of a leaf may begin, whatever the page says their number is."""
    lowest, at = PAGE_BYTES, _LEAF_HEADER_BYTES
    while at + 2 <= lowest:
        (start,) = struct.unpack_from(">H", page, at)
        at += 2
        if at <= start < PAGE_BYTES:
            yield start
            lowest = min(lowest, start)


def _local_bytes(length: int) -> int:
    """Return how much of a payload is in the leaf itself."""
    if length <= _LOCAL_MAX:
        return length
    local = _LOCAL_MIN + (length - _LOCAL_MIN) % _OVERFLOW_BYTES
    return local if local <= _LOCAL_MAX else _LOCAL_MIN


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9


def _kinds(payload: bytes, start: int) -> tuple[list[int], int]:
    """Return the types of a row's columns, and where their values begin."""
    length, at = _varint(payload, start)
    kinds, end = [], start + length
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    return kinds, end


def _values(payload: bytes) -> tuple[Value, ...]:
    kinds, at = _kinds(payload, 0)
    values = []
    for kind in kinds:
        values.append(_value(payload, kind, at))
        at += _length(kind)
    return tuple(values)


def _length(kind: int) -> int:
    if kind < len(_INTEGER_BYTES):
        return _INTEGER_BYTES[kind]
    return {7: 8, 8: 0, 9: 0}[kind] if kind < 12 else (kind - 12) // 2


def _value(payload: bytes, kind: int, start: int) -> Value:
    part = payload[start : start + _length(kind)]
    if len(part) < _length(kind):
        raise ValueError("the row is cut short")
    if kind in (8, 9):
        return kind - 8
    if kind < len(_INTEGER_BYTES):
        return int.from_bytes(part, "big", signed=True) if kind else None
    if kind == 7:
        return float(struct.unpack(">d", part)[0])
    return part.decode() if kind % 2 else part
