"""The write-ahead log of a journal file, looked at before SQLite does.

SQLite takes a log up to the first frame whose checksum is wrong and silently forgets the rest:
right for what a power cut tore, wrong for what a bad disk changed, because everything acknowledged
after that frame would be gone without a word. The two can be told apart. A commit is synced before
the next one is written, so a bad frame with an intact frame of a *later* commit behind it was whole
once, and was changed since.

What can't be told apart is a change to the very last commit of a log: a torn one looks the same.

Layout, all numbers big-endian
    header   magic, version, page size, generation, salt, salt, checksum, checksum: 4 bytes each
    frame    page, size after commit (0: no commit), salt, salt, checksum, checksum; then the page
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from storage.errors import JournalCorruptError, JournalError

Words = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

LOG_SUFFIX: Final = "-wal"
HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
SECTOR_BYTES: Final = 512
"""What a disk writes as a whole or not at all."""
BLOCK_FRAMES: Final = 1024
"""Frames checked at a time, some 8 MB: a log can be far larger than what memory is free."""
_BIG_ENDIAN_SUMS: Final = 0x377F0683
_LITTLE_ENDIAN_SUMS: Final = 0x377F0682
_PAGE_BYTES: Final = frozenset(1 << shift for shift in range(9, 17))
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Log:
    """The frames of one log, each judged by itself.

    Attributes:
        path: Of the log.
        frame_bytes: Length of a frame, its header included.
        linked: Whether a frame continues what the frame before it says, in this generation.
        commits: Whether a frame that can be trusted ends a commit.
    """

    path: Path
    frame_bytes: int
    linked: Flags
    commits: Flags

    def offset(self, frame: int) -> int:
        """Return where a frame begins in the log."""
        return HEADER_BYTES + frame * self.frame_bytes

    @property
    def whole(self) -> int:
        """How many frames from the start on are intact."""
        broken = np.flatnonzero(~self.linked)
        return int(broken[0]) if len(broken) else len(self.linked)

    @property
    def committed(self) -> int:
        """How many frames there are up to the end of the last commit that is whole."""
        ends = np.flatnonzero(self.commits)
        for at in range(len(ends) - 1, -1, -1):
            start = int(ends[at - 1]) + 1 if at else 0
            if self.linked[start : int(ends[at]) + 1].all():
                return int(ends[at]) + 1
        return 0

    @property
    def damaged(self) -> int | None:
        """Return the first frame that was changed after it was synced; None when none was."""
        broken = self.whole
        ends = np.flatnonzero(self.commits[broken:])
        if not len(ends):
            return None
        behind = self.linked[broken + int(ends[0]) + 1 :]
        return broken if behind.any() else None


def require_sound_log(journal: Path) -> None:
    """Refuse a journal file whose log SQLite would cut short.

    Raises:
        JournalCorruptError: A frame was changed after it was synced, or the log's header was.
        JournalError: The log can't be read.
    """
    log = read_log(journal)
    if log is None or log.damaged is None:
        return
    frame = log.damaged
    detail = f"its log {log.path.name} was changed there, in frame {frame + 1}"
    raise JournalCorruptError(journal, None, detail, offset=log.offset(frame))


def read_log(journal: Path) -> Log | None:
    """Read the log of a journal file; None when it has none, or one without a whole frame.

    Raises:
        JournalCorruptError: Its header was changed.
        JournalError: It can't be read.
    """
    path = journal.with_name(journal.name + LOG_SUFFIX)
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            beyond = file.read(FRAME_HEADER_BYTES)
            if not beyond.strip(b"\0"):
                return None  # the header is synced before any frame is written
            file.seek(HEADER_BYTES)
            return _judged(path, _Generation.of(journal, header), _blocks(file, header))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Generation:
    """What the header says: the log is used again and again, with other salts each time."""

    page_bytes: int
    number: int
    salts: tuple[int, int]
    sums: tuple[int, int]
    order: str

    @classmethod
    def of(cls, journal: Path, header: bytes) -> "_Generation":
        magic, _, page_bytes, number, *rest = struct.unpack(">8I", header)
        order = {_LITTLE_ENDIAN_SUMS: "<", _BIG_ENDIAN_SUMS: ">"}.get(magic)
        if order is not None and page_bytes in _PAGE_BYTES:
            words = np.frombuffer(header[:24], f"{order}u4")[np.newaxis]
            sums = _sums(words, np.zeros((1, 2), np.uint32))[0]
            if sums.tolist() == rest[2:]:
                return cls(page_bytes, number, (rest[0], rest[1]), (rest[2], rest[3]), order)
        raise JournalCorruptError(
            journal, None, f"its log {journal.name}{LOG_SUFFIX} was changed in its header"
        )


def _blocks(file: BinaryIO, header: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the whole frames of a log, a row each, some at a time."""
    frame_bytes = FRAME_HEADER_BYTES + struct.unpack(">8I", header)[2]
    while data := file.read(BLOCK_FRAMES * frame_bytes):
        whole = len(data) // frame_bytes
        yield np.frombuffer(data, np.uint8, whole * frame_bytes).reshape(whole, frame_bytes)


def _judged(path: Path, generation: _Generation, blocks: Iterator[npt.NDArray[np.uint8]]) -> Log:
    linked, commits, frames = [], [], 0
    before = np.array([generation.sums], np.uint32)
    for block in blocks:
        fields = block[:, :FRAME_HEADER_BYTES].copy().view(">u4").astype(np.uint32)
        stored = fields[:, 4:6]
        covered = np.hstack([block[:, :8], block[:, FRAME_HEADER_BYTES:]]).view(
            f"{generation.order}u4"
        )
        summed = _sums(covered, np.vstack([before, stored[:-1]]))
        right = (summed == stored).all(axis=1)
        ours = (fields[:, 2:4] == np.array(generation.salts, np.uint32)).all(axis=1)
        # A header that lies in two sectors may be half of this generation, half of another.
        starts = (
            HEADER_BYTES + np.arange(frames, frames + len(block)) * block.shape[1]
        ) % SECTOR_BYTES
        at_once = (starts <= SECTOR_BYTES - FRAME_HEADER_BYTES) | (generation.number == 0)
        linked.append(right & ours)
        commits.append((fields[:, 1] != 0) & (right | (ours & at_once)))
        before, frames = stored[-1:], frames + len(block)
    nothing = np.zeros(0, np.bool_)
    return Log(
        path,
        FRAME_HEADER_BYTES + generation.page_bytes,
        np.concatenate([*linked, nothing]),
        np.concatenate([*commits, nothing]),
    )


def _sums(words: Words, before: Words) -> Words:
    """Return SQLite's checksum of each row of ``words``, continued from ``before``.

    It takes two words x, y at a time: ``a += x + b; b += y + a``, modulo 2^32. That is linear, so
    the sum of a whole row is one product with weights.
    """
    power, weights = _weights(words.shape[1] // 2)
    words = words.astype(np.uint32, copy=False)
    # Not a matrix product of all: numpy multiplies integer matrices several times slower.
    columns = [(words * column).sum(axis=1, dtype=np.uint32) for column in weights.T]
    result: Words = before @ power + np.column_stack(columns)
    return result


@cache
def _weights(steps: int) -> tuple[Words, Words]:
    """Return what becomes of the sum before a row, and of each word in it, after ``steps``."""
    power, weights = ((1, 0), (0, 1)), []
    for _ in range(steps):
        (a, b), (c, d) = power  # rows: what becomes of a one in the first sum, in the second
        weights.append((c, d))
        weights.append(((a + c) & _MASK, (b + d) & _MASK))
        power = (((a + c) & _MASK, (b + d) & _MASK), ((a + 2 * c) & _MASK, (b + 2 * d) & _MASK))
    return np.array(power, np.uint32), np.ascontiguousarray(weights[::-1], np.uint32)
