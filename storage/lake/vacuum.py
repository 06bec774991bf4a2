"""Vacuum: files that no version of a table needs any more leave the disk.

They are what compaction and retention have replaced, what a child process wrote and nobody
committed, and what was being written when its writer died. A file goes when it is not in the table,
was not taken out of it lately, has not changed lately, and no snapshot of this process still names
it. The first two are for readers we know nothing of, which read plain Parquet beside us.

Nothing has to be remembered: a vacuum that is cut short is begun again.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from storage.errors import LakeError
from storage.lake import layout
from storage.lake.log import LOG
from storage.lake.outside import errors_as_ours
from storage.lake.table import LakeTable
from storage.ports import MICROSECONDS, Disk

DELAY_US: Final = 24 * 3_600 * MICROSECONDS
"""How long a file stays after it was replaced: twice as long as a stream may live."""
DELAY_US_MIN: Final = 3_600 * MICROSECONDS
"""Whatever is asked for: a child process may be writing, and other readers may be reading."""


class Leaving(StrEnum):
    """Why a file may go."""

    REPLACED = "replaced"
    """No version that anybody reads has it: joined, dropped for its age, or never committed."""
    UNFINISHED = "unfinished"
    """Its writer died."""
    LOG = "log"
    """Of a commit that failed, or a checkpoint with newer ones after it."""


@dataclass(frozen=True, slots=True)
class LeftOver:
    """One file that nobody needs.

    Attributes:
        dataset: Name of the table's.
        path: Where it lies below the table's root.
        bytes: Size on disk.
        why: Why it may go.
    """

    dataset: str
    path: str
    bytes: int
    why: Leaving


def left_over(table: LakeTable, in_use: Collection[str], before: int) -> list[LeftOver]:
    """Return the files of a table that may leave the disk, sorted by path.

    Args:
        table: Read, and not in the middle of a commit.
        in_use: Paths below its root that a snapshot still names.
        before: µs; what was replaced or written since then stays.

    Raises:
        LakeCorruptError: The log is not what was written: nothing may go.
        LakeError: The disk refuses.
    """
    if not table.root.is_dir():
        return []
    kept = table.removed_since(before) | set(in_use)  # reads the table again if it is in doubt
    kept |= {file.path for file in table.index}
    with errors_as_ours(table.root):
        found = [*_data(table, kept, before), *_log(table, before)]
    return sorted(found, key=lambda file: file.path)


def remove(root: Path, files: Collection[LeftOver], disk: Disk) -> Iterator[LeftOver]:
    """Remove what ``left_over`` has returned; yields each that is gone.

    Args:
        root: The table's directory.
        files: All of that table.
        disk: Where they lie.

    Raises:
        LakeError: The disk refuses; the rest is found again.
    """
    directories = dict.fromkeys((root / file.path).parent for file in files)
    for directory in directories:
        own = [file for file in files if (root / file.path).parent == directory]
        with errors_as_ours(directory):
            for file in own:
                disk.remove(root / file.path)
            disk.sync_directory(directory)
        yield from own


def _data(table: LakeTable, kept: Collection[str], before: int) -> Iterator[LeftOver]:
    for path in table.root.rglob(f"*{layout.SUFFIX}*"):
        place = path.relative_to(table.root)
        if place.parts[0] == LOG or place.as_posix() in kept or not _is_ours(place):
            continue
        why = Leaving.UNFINISHED if path.suffix == layout.TEMPORARY else Leaving.REPLACED
        yield from _if_old(table, path, why, before)


def _log(table: LakeTable, before: int) -> Iterator[LeftOver]:
    for path in table.left_over_of_log():
        yield from _if_old(table, path, Leaving.LOG, before)


def _if_old(table: LakeTable, path: Path, why: Leaving, before: int) -> Iterator[LeftOver]:
    try:
        about = path.stat()
    except FileNotFoundError:
        return  # its writer has just finished it
    if about.st_mtime_ns // 1_000 < before:
        place = path.relative_to(table.root).as_posix()
        yield LeftOver(table.dataset.name, place, about.st_size, why)


def _is_ours(place: Path) -> bool:
    """Whether a file has a name of ours: what others have put here is not ours to remove."""
    name = place.name.removesuffix(layout.TEMPORARY)
    try:
        layout.FilePath.parse(place.with_name(name).as_posix())
    except LakeError:
        return False
    return True
