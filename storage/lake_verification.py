"""Verification of the lake, a slice at a time: every file is read whole within a week.

Files come first that were not read for longest; whoever has written one has read it back. Reading
is done by a child process, which also reads the table's log; here it is only remembered.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Final

from storage.lake.files import LakeFile
from storage.lake.log import LOG
from storage.lake.scrub import FileReport, ScrubTask
from storage.lake.table import LakeTable
from storage.lake.verified import Damage, Verified
from storage.ports import Clock, Disk
from storage.upkeep_parts import Verification

SLICES: Final = 168
"""Slices that the lake is verified in: a week of hours."""
SLICE_BYTES_MIN: Final = 64 << 20
"""Bytes of a slice, at least: some ten seconds of a process of the lowest priority."""
SLICE_FILES_MIN: Final = 512
"""Files of a slice, at least: small ones take a millisecond each."""


class LakeVerification:
    """Verifies files of the lake and remembers what was found; one thread at a time works with it.

    Args:
        lake: Directory of all tables.
        tables: Every dataset's table, read.
        scrub: Reads files; see ``child_process.scrub``.
        stopping: Ends what takes long.
        clock: Where time comes from.
        disk: Where the lake lies.
    """

    def __init__(
        self,
        lake: Path,
        tables: Mapping[str, LakeTable],
        scrub: Callable[[Sequence[ScrubTask], threading.Event], list[FileReport]],
        stopping: threading.Event,
        clock: Clock,
        disk: Disk,
    ) -> None:
        self._lake = lake
        self._tables = tables
        self._scrub = scrub
        self._stopping = stopping
        self._clock = clock
        self._verified = Verified(lake, disk)
        self._damage = self._verified.damage
        # Oldest verification of any file, with the versions of the tables it is true of.
        self._oldest: tuple[tuple[int, ...], int | None] | None = None

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What is damaged, as far as that is known."""
        return self._damage

    def is_damaged(self, table: LakeTable, file: LakeFile) -> bool:
        """Whether a file was not what was committed when it was read last."""
        return self._verified.is_damaged(table.dataset.name, file.path)

    def slice(self, before: int | None, tables: Iterable[LakeTable]) -> Verification:
        """Read the files that were not for longest, as many as a slice has.

        Args:
            before: Leave out files that were verified at or after this instant, µs; None is none.
            tables: Whose files.

        Raises:
            LakeError: The disk refuses.
            StoreClosedError: The store is shutting down.
        """
        began = self._clock.now()
        due = [
            (table, file)
            for table, file in self._by_age(tables)
            if before is None or self._verified.read_at(table.dataset.name, file.path) < before
        ]
        count = self._slice_files([file for _, file in due])
        chosen: dict[str, list[str]] = {}
        for table, file in due[:count]:
            chosen.setdefault(table.dataset.name, []).append(file.path)
        return Verification(began, tuple(self.read(chosen)), len(due) - count)

    def read(self, paths: Mapping[str, Sequence[str]]) -> list[FileReport]:
        """Read some files by table and path, and forget all that no table has any more.

        Raises:
            LakeError: The disk refuses.
            StoreClosedError: The store is shutting down.
        """
        lake = str(self._lake)
        tasks = [ScrubTask(lake, name, tuple(some)) for name, some in paths.items()]
        reports = self._scrub(tasks, self._stopping) if tasks else []
        self._verified.note(reports, self._clock.now())
        self._verified.keep_only(
            {
                name: frozenset((LOG, *(file.path for file in table.index)))
                for name, table in self._tables.items()
            }
        )
        self._oldest = None
        self._damage = self._verified.damage
        self._verified.save()
        return reports

    def since(self) -> int | None:
        """Return the instant at or after which every file was read, µs; None without any."""
        versions = tuple(table.index.version for table in self._tables.values())
        known = self._oldest
        if known is None or known[0] != versions:
            ages = (
                self._read_at(table, file)
                for table in self._tables.values()
                for file in table.index
            )
            known = self._oldest = (versions, min(ages, default=None))
        return known[1]

    def _slice_files(self, due: Sequence[LakeFile]) -> int:
        """Return how many of the files make a slice: all slices of a week are the whole lake."""
        live = [file for table in self._tables.values() for file in table.index]
        room = max(SLICE_BYTES_MIN, sum(file.bytes for file in live) // SLICES)
        most = max(SLICE_FILES_MIN, len(live) // SLICES)
        ends = takewhile(lambda end: end < room, accumulate(file.bytes for file in due))
        return min(len(due), most, sum(1 for _ in ends) + 1)

    def _by_age(self, tables: Iterable[LakeTable]) -> list[tuple[LakeTable, LakeFile]]:
        files = [(table, file) for table in tables for file in table.index]
        return sorted(files, key=lambda one: (self._read_at(*one), one[1].first, one[1].path))

    def _read_at(self, table: LakeTable, file: LakeFile) -> int:
        return self._verified.read_at(table.dataset.name, file.path) or table.came(file)
