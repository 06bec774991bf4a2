"""A year of sessions in the lake, as an import of old data leaves them: a file a day, and bars."""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq

from bench.sessions import SYMBOL, Numbering, session, session_days
from storage.bars_keeper import BarsKeeper
from storage.child_process import make_bars
from storage.lake import layout
from storage.lake.files import FileKind
from storage.lake.layout import FileName
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile, write_file
from storage.ports import SystemDisk
from storage.schemas import BARS, TICKS


@dataclass(frozen=True, slots=True)
class Year:
    """What was written, and what that took.

    Attributes:
        lake: Directory of all tables.
        files: Of ticks, a day each, below the table's root.
        bars: Rows of kept bars.
        writing_seconds: To make up the ticks, write them and read them back.
        keeping_seconds: To make the bars of them.
        peak_mib: The most memory that a process writing ticks has had.
    """

    lake: Path
    files: tuple[WrittenFile, ...]
    bars: int
    writing_seconds: float
    keeping_seconds: float
    peak_mib: float

    @property
    def ticks(self) -> int:
        """Rows."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Of the files of ticks."""
        return sum(file.bytes for file in self.files)

    def path(self, file: WrittenFile) -> Path:
        """Return where a file of ticks lies."""
        return layout.table_root(self.lake, TICKS) / file.path


def write_year(lake: Path, ticks_a_day: int) -> Year:
    """Write ticks as an import does, a process a core, and the bars as the rollover does."""
    disk = SystemDisk()
    tables = []
    for dataset in (TICKS, BARS):
        disk.make_directory(layout.table_root(lake, dataset))
        tables.append(LakeTable(layout.table_root(lake, dataset), dataset, disk))
        tables[-1].refresh()
    table, bars = tables
    began = time.perf_counter()
    # Not forked: the threads of pyarrow would be missing in the copies.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        write = partial(write_day, table.root, ticks_a_day)
        files = tuple(processes.map(write, session_days()))
    written = time.perf_counter()
    table.commit_part(1, 0, 0, 0, files)
    BarsKeeper(table, bars, disk, make_bars, lambda _: None, Event()).catch_up()
    return Year(
        lake=lake,
        files=files,
        bars=sum(file.rows for file in bars.index),
        writing_seconds=written - began,
        keeping_seconds=time.perf_counter() - written,
        peak_mib=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    )


def write_day(
    root: Path, ticks: int, day: int, numbering: Numbering = Numbering.FILE
) -> WrittenFile:
    """Write one session as a data file of the table at ``root``."""
    # One core each: the other one has a day of its own.
    pa.set_cpu_count(1)
    date = layout.partition_date(TICKS, day)
    file = FileName(FileKind.BULK, 0, 1, f"d{day}")
    return write_file(root, TICKS, SYMBOL, date, session(day, ticks, numbering), file, SystemDisk())


def plain_bytes(place: Path, ticks: int, day: int, numbering: Numbering) -> int:
    """Return what one session takes as pyarrow writes it when it is told nothing but zstd."""
    pq.write_table(session(day, ticks, numbering), place, compression="zstd")
    return place.stat().st_size
