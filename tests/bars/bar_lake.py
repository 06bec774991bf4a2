"""A lake of ticks and its bars, in a directory of a test's own."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from storage.bars_keeper import BarsKeeper
from storage.child_process import make_bars
from storage.lake import layout
from storage.lake.files import FileKind
from storage.lake.layout import FileName
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile, write_file
from storage.ports import Disk, SystemDisk
from storage.schemas import BARS, TICKS
from tests.bars.conftest import DAY, Bar, Tick
from tests.storage.conftest import ticks

NAMES = ("symbol", "source", "contract", "sequence", "kind", "price", "size", "side", "flags")


def batch_of(rows: Sequence[Tick]) -> pa.RecordBatch:
    """Build the batch that would be sent."""
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in NAMES}
    instants = [row.ts for row in rows]
    return ticks(len(rows), ts_event=instants, ts_recv=instants, **columns)


@dataclass
class BarLake:
    """Tables of one lake, and who keeps its bars."""

    root: Path
    disk: Disk = field(default_factory=SystemDisk)
    shown: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begin as a new life would."""
        self.ticks = LakeTable(layout.table_root(self.root, TICKS), TICKS, self.disk)
        self.bars = LakeTable(layout.table_root(self.root, BARS), BARS, self.disk)
        for table in (self.ticks, self.bars):
            table.refresh()
        self.keeper = BarsKeeper(
            self.ticks, self.bars, self.disk, make_bars, self._show, threading.Event()
        )

    def _show(self, table: LakeTable) -> None:
        self.shown.append(table.index.version)

    def commit(self, rows: Sequence[Tick], kind: FileKind = FileKind.PART) -> list[WrittenFile]:
        """Commit the next part: a file a symbol, date and source."""
        part = self.ticks.part + 1
        end = self.ticks.position + (len(rows) if kind is FileKind.PART else 0)
        groups: defaultdict[tuple[str, int, str], list[Tick]] = defaultdict(list)
        for row in rows:
            groups[row.symbol, row.ts // DAY, row.source].append(row)
        files = []
        for number, ((symbol, day, _), group) in enumerate(sorted(groups.items())):
            table = pa.Table.from_batches([batch_of(group).cast(TICKS.schema)])
            name = FileName(kind, end if kind is FileKind.PART else 0, part, f"t{number}")
            date = layout.partition_date(TICKS, day)
            files.append(write_file(self.ticks.root, TICKS, symbol, date, table, name, self.disk))
        self.ticks.commit_part(part, self.ticks.position, end, 1, files)
        return files

    def kept(self) -> list[Bar]:
        """Read all bars with somebody else's reader."""
        if not len(self.bars.index):
            return []
        rows = pl.read_delta(str(self.bars.root)).with_columns(pl.col("ts_event").to_physical())
        names = ["ts_event", "symbol", "source", "open", "high", "low", "close", "volume", "vwap"]
        names += ["trades", "buy_volume", "sell_volume", "flags"]
        found = [Bar(*row) for row in rows.select(names).rows()]
        return sorted(found, key=lambda bar: (bar.start, bar.symbol, bar.source))
