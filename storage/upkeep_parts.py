"""What the upkeep of the lake works with: its seams, its settings, its status."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.lake.compaction import JoinTask
from storage.lake.scrub import FileReport, ScrubTask
from storage.lake.table import LakeTable
from storage.lake.vacuum import DELAY_US
from storage.lake.verified import Damage
from storage.lake.writer import WrittenFile
from storage.lake_repair import Repaired
from storage.own_rows import OwnRows
from storage.rollover_parts import State
from storage.rollover_task import RolloverResult, RolloverTask
from storage.segments import SegmentLine


class Readers(Protocol):
    """What readers see, as the upkeep sees it."""

    def base(self, dataset: str) -> int:
        """Return the position of a dataset's oldest row in memory."""

    def show(self, table: LakeTable) -> None:
        """Publish a table's newest version."""

    def in_use(self, dataset: str) -> set[str]:
        """Return the paths of the files that a snapshot still sees."""


@dataclass(frozen=True, slots=True)
class UpkeepConfig:
    """What the upkeep needs to know.

    Attributes:
        lake: Directory of all tables.
        hot_window_us: How long rows stay in memory after they came, µs.
        retention_us: How long rows are kept, µs; None is for ever.
        vacuum_delay_us: How long files stay on disk after they were replaced, µs.
    """

    lake: Path
    hot_window_us: int
    retention_us: int | None = None
    vacuum_delay_us: int = DELAY_US


@dataclass(frozen=True, slots=True)
class UpkeepParts:
    """What is kept up, and what with.

    Attributes:
        tables: Every dataset's table, read.
        readers: What readers see.
        own_rows: Where troubles are told.
        join: Writes a file; see ``child_process.join``.
        scrub: Reads files; see ``child_process.scrub``.
        write: Writes files out of the journal; see ``child_process.roll_over``.
        segments: Finished journal files.
    """

    tables: Mapping[str, LakeTable]
    readers: Readers
    own_rows: OwnRows
    join: Callable[[JoinTask, threading.Event], WrittenFile]
    scrub: Callable[[Sequence[ScrubTask], threading.Event], list[FileReport]]
    write: Callable[[RolloverTask, threading.Event], RolloverResult]
    segments: SegmentLine


@dataclass(frozen=True, slots=True)
class LakeHealth:
    """How the lake is doing.

    Attributes:
        state: DEGRADED while a file is damaged, or the last attempt at a task failed.
        since: Since when, µs.
        detail: What is wrong; empty when nothing is.
        damaged: Files that are not what was committed.
        verified_since: Every file was read whole at this instant or later, µs; None without any.
        upkept: When the daily tasks were done last in this life, µs; None before the first time.
    """

    state: State = State.RUNNING
    since: int = 0
    detail: str = ""
    damaged: tuple[Damage, ...] = ()
    verified_since: int | None = None
    upkept: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What one slice of a verification found.

    Attributes:
        began: When it began, µs.
        reports: Of each file that was read.
        left: Files that are still to be read.
    """

    began: int
    reports: tuple[FileReport, ...]
    left: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair has done.

    Attributes:
        repaired: Files that were made again.
        left: Those that could not be, and why.
    """

    repaired: tuple[Repaired, ...]
    left: tuple[FileReport, ...]
