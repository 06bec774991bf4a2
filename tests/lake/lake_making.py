"""Rows for the lake, files and tables made of them, and a disk that fails when it is told to."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from storage.lake.files import FileKind
from storage.lake.layout import FileName
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile, write_file
from storage.ports import Disk, SystemDisk
from storage.schemas import TICKS, Dataset
from tests.storage.conftest import NOON, ticks

DAY = 86_400_000_000
TODAY = "2026-09-21"


def table_of(*batches: pa.RecordBatch, dataset: Dataset = TICKS) -> pa.Table:
    """Return batches as one table in the dataset's schema."""
    return pa.Table.from_batches([batch.cast(dataset.schema) for batch in batches])


def tick_table(count: int, first: int = 1, /, **columns: Any) -> pa.Table:
    """Return ticks a microsecond apart, with sequences from ``first`` on."""
    instants = [NOON + first + n for n in range(count)]
    filled: dict[str, Any] = {
        "ts_event": instants,
        "sequence": list(range(first, first + count)),
        **columns,
    }
    return table_of(ticks(count, **filled))


def written(
    table: LakeTable,
    rows: pa.Table,
    part: int,
    end: int,
    *,
    symbol: str | None = "MNQ",
    date: str = TODAY,
    kind: FileKind = FileKind.PART,
    disk: Disk | None = None,
) -> WrittenFile:
    """Write one file of a table, not committed."""
    name = FileName(kind, end, part, f"t{part}x{abs(hash(symbol)) % 10**6}")
    where = disk or SystemDisk()
    return write_file(table.root, table.dataset, symbol, date, rows, name, where)


def opened(root: Path, dataset: Dataset = TICKS, disk: Disk | None = None) -> LakeTable:
    """Return a table as the next life finds it."""
    table = LakeTable(root, dataset, disk or SystemDisk())
    table.refresh()
    return table


def with_parts(root: Path, parts: Sequence[pa.Table]) -> LakeTable:
    """Return a table of ticks with some parts of one symbol and date."""
    table = opened(root)
    for rows in parts:
        end = table.position + rows.num_rows
        file = written(table, rows, table.part + 1, end)
        table.commit_part(table.part + 1, table.position, end, 1, [file])
    return table


@dataclass
class FailingDisk(SystemDisk):
    """A disk whose ``failing``-th call fails, counted from 1; 0 is none."""

    failing: int = 0
    code: int = errno.EIO
    calls: int = 0
    made: list[str] = field(default_factory=list)

    def _call(self, name: str) -> None:
        self.calls += 1
        self.made.append(name)
        if self.calls == self.failing:
            raise OSError(self.code, f"call {self.calls} ({name}) was to fail")

    def make_directory(self, path: Path) -> None:
        self._call("make_directory")
        super().make_directory(path)

    def create(self, path: Path) -> BinaryIO:
        self._call("create")
        return super().create(path)

    def sync(self, path: Path) -> None:
        self._call("sync")
        super().sync(path)

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)

    def size(self, path: Path) -> int:
        self._call("size")
        return super().size(path)
