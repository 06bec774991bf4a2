"""Repair: a damaged file of the lake is made again while what it was made of is still there.

A part's file is written again out of the journal, which keeps its files for a day; a joined file is
joined again out of what it was joined from, which stays on disk for a day. What comes out has to
have the number and hash of rows that were committed with the damaged file; one commit exchanges the
two. The damaged one stays on disk until vacuum removes it.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.errors import LakeError
from storage.lake import layout
from storage.lake.compaction import Join, JoinTask
from storage.lake.files import FileKind, LakeFile
from storage.lake.layout import FileName
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.ports import Disk
from storage.rollover_task import PartTask, RolloverResult, RolloverTask
from storage.segments import Segment

TOKEN_BYTES: Final = 6

Write = Callable[[RolloverTask], RolloverResult]
"""Writes the files of parts: a child process that reads the journal."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """A damaged file that was made again.

    Attributes:
        dataset: Name of the table's.
        path: The damaged file, below the table's root.
        became: What is in its place.
    """

    dataset: str
    path: str
    became: str


class LakeRepair:
    """Makes damaged files again.

    Args:
        lake: Directory of all tables.
        segments: Finished journal files that are still there.
        write: Reads the journal.
        join: Reads the lake.
        disk: Where the lake lies.
    """

    def __init__(
        self, lake: Path, segments: Iterable[Segment], write: Write, join: Join, disk: Disk
    ) -> None:
        self._lake = lake
        self._segments = segments
        self._write = write
        self._join = join
        self._disk = disk

    def repair(self, table: LakeTable, file: LakeFile) -> Repaired:
        """Exchange a file for one with the rows that it had.

        Raises:
            LakeError: What it was made of is gone, or damaged as well.
        """
        facts = table.ledger().get(file.path)
        if facts is None:
            raise LakeError(f"{table.root / file.path}: the log says nothing about it")
        if file.kind is FileKind.PART:
            written = self._from_journal(table, file, facts)
        elif file.kind is FileKind.COMPACT:
            written = self._join(self._task(table, file, facts))
        else:
            raise LakeError(f"{table.root / file.path}: nothing it was made of is kept")
        table.replace([file], [written], metadata={"repaired": file.path}, same_rows=True)
        return Repaired(table.dataset.name, file.path, written.path)

    def _from_journal(self, table: LakeTable, file: LakeFile, facts: WrittenFile) -> WrittenFile:
        segment = self._segment_of(table, file)
        # Rows that were left out as synthetic are so again only if they are this time as well.
        for left_out in ((), () if file.symbol is None else (file.symbol,)):
            part = PartTask(
                table.dataset.name, file.part, *segment.span(table.dataset.name), left_out
            )
            token = secrets.token_hex(TOKEN_BYTES)
            task = RolloverTask(str(segment.path), str(self._lake), token, (part,))
            files = self._write(task).parts[0].files
            found = next((one for one in files if _is_same(one, file, facts)), None)
            for other in files:
                if other is not found:
                    self._disk.remove(table.root / other.path)
            if found is not None:
                return found
        detail = f"{segment.path.name} of the journal has other rows than were committed"
        raise LakeError(f"{table.root / file.path}: {detail}")

    def _segment_of(self, table: LakeTable, file: LakeFile) -> Segment:
        for segment in self._segments:
            first, end = segment.span(table.dataset.name)
            if first < end == file.end:
                return segment
        detail = "the journal has its rows no more: put it back from a backup, under the same name"
        raise LakeError(f"{table.root / file.path}: {detail}")

    def _task(self, table: LakeTable, file: LakeFile, facts: WrittenFile) -> JoinTask:
        inputs = table.replaced_by(file.path)
        if not inputs or not all((table.root / path).exists() for path in inputs):
            detail = "what it was joined from is gone: put it back from a backup"
            raise LakeError(f"{table.root / file.path}: {detail}, under the same name")
        name = FileName(FileKind.COMPACT, file.end, file.part, secrets.token_hex(TOKEN_BYTES))
        return JoinTask(
            lake=str(self._lake),
            dataset=table.dataset.name,
            path=layout.file_path(table.dataset, file.symbol, file.date, name),
            inputs=inputs,
            rows=facts.rows,
            row_hash=facts.row_hash,
        )


def _is_same(written: WrittenFile, file: LakeFile, facts: WrittenFile) -> bool:
    place = layout.FilePath.parse(written.path)
    return (
        (place.symbol, place.date, written.source) == (file.symbol, file.date, file.source)
        and written.rows == facts.rows
        and written.row_hash == facts.row_hash
    )
