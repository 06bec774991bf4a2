"""What the rollover works with: its seams to memory and journal, its settings, its status."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from storage.journal_expiry import JournalExpiry
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.own_rows import OwnRows
from storage.rollover_task import RolloverResult, RolloverTask
from storage.segments import SegmentLine


class AfterPart(Protocol):
    """What has to follow a part before its rows may leave memory."""

    def __call__(self, dataset: str, files: Sequence[WrittenFile]) -> None:
        """Do it, again where it may have been done: a crash may have come in between.

        Raises:
            StorageError: It has to be tried again.
        """


class Memory(Protocol):
    """Rows in memory, as the rollover sees them."""

    @property
    def row_bytes(self) -> int:
        """Bytes that rows take; what is left when all of them have left is near 0."""

    def base(self, dataset: str) -> int:
        """Return the position of a dataset's oldest row in memory."""

    def flip(self, bases: Mapping[str, int]) -> None:
        """Let rows below new bases leave memory for the lake."""

    def show(self, table: LakeTable) -> None:
        """Publish a table's newest version."""


class RollingJournal(Protocol):
    """The journal, as the rollover sees it."""

    @property
    def open_hour(self) -> int:
        """Hour of the file being written, µs."""

    @property
    def open_rows(self) -> int:
        """Rows in the file being written."""

    def roll(self) -> int:
        """End the file being written; return the number of the last ended one."""


class State(Enum):
    """How the rollover is doing, in the words of ``status``."""

    RUNNING = "running"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class RolloverStatus:
    """How the rollover is doing.

    Attributes:
        state: Whether the last attempt went well.
        since: Since when, µs.
        detail: What is wrong; empty when nothing is.
        unrolled: Finished segments that the lake does not have yet.
        unrolled_rows: Rows of them.
        oldest: When the newest row of the oldest of them arrived, µs; None without one.
        through: Number of the newest segment that the lake has.
        rows: Rows of segments that it brought there since the start.
        failures: Attempts that failed since the start.
    """

    state: State = State.RUNNING
    since: int = 0
    detail: str = ""
    unrolled: int = 0
    unrolled_rows: int = 0
    oldest: int | None = None
    through: int = 0
    rows: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class RolloverConfig:
    """What the rollover needs to know.

    Attributes:
        lake: Directory of all tables.
        hot_window_us: How long rows stay in memory after they came, µs.
        memory_limit: Bytes of rows beyond which the oldest leave before their time.
    """

    lake: Path
    hot_window_us: int
    memory_limit: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What rolls over, and what with.

    Attributes:
        tables: Every dataset's table, read.
        segments: Finished journal files.
        journal: The one being written.
        memory: Rows in memory.
        own_rows: Where parts and troubles are told.
        expiry: Removes journal files whose time is over.
        write: Writes files; see ``child_process.roll_over``.
    """

    tables: Mapping[str, LakeTable]
    segments: SegmentLine
    journal: RollingJournal
    memory: Memory
    own_rows: OwnRows
    expiry: JournalExpiry
    write: Callable[[RolloverTask, threading.Event], RolloverResult]
