"""The process that writes and verifies data files of the lake; ``child_process`` starts it.

It reads one task as JSON from stdin, does it, and answers with one line of JSON on stdout.
It commits nothing: files that nobody commits are left-overs, and vacuum removes them. It runs at
the lowest priority, and ends with the thread that started it.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from storage.arrow_alone import forgo_pandas
from storage.bars_making import BarsTask, make_bars
from storage.child_process import (
    CORRUPT,
    DONE,
    FAILED,
    FULL,
    JOIN,
    MAKE_BARS,
    ROLL_OVER,
    SCRUB,
)
from storage.errors import LakeCorruptError, LakeError, LakeFullError, StorageError
from storage.lake import layout
from storage.lake.compaction import JoinTask, join
from storage.lake.files import FileKind
from storage.lake.layout import FileName
from storage.lake.row_hash import MODULUS, combine, row_hash
from storage.lake.scrub import ScrubTask, scrub
from storage.lake.writer import WrittenFile, write_file
from storage.ports import Disk, SystemDisk
from storage.rollover_task import PartResult, PartTask, RolloverResult, RolloverTask
from storage.runs import Integers
from storage.segment_rows import DECODE_ROWS, SegmentRows, read_segment

NICENESS: Final = 19
"""The lowest priority: rolling over may take its time, readers and producers may not."""
RADIX_GROUPS_MAX: Final = 1 << 15
"""Groups that fit an int16, which numpy sorts in linear time."""

_PR_SET_PDEATHSIG: Final = 1  # from <linux/prctl.h>


def roll_over(task: RolloverTask, disk: Disk) -> RolloverResult:
    """Write the data files of some parts; nothing is committed.

    Raises:
        JournalCorruptError: The journal file is not what was written.
        LakeFullError: There is no room.
        LakeError: The disk refuses, or what was written is not what was read.
    """
    spans = {part.dataset: (part.first, part.end) for part in task.parts}
    segment = read_segment(Path(task.journal), spans)
    # Popped, so that a dataset's memory is given back once it is written.
    results = (_Part(task, part, segment.pop(part.dataset), disk).write() for part in task.parts)
    return RolloverResult(tuple(results))


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one data file, in arrival order."""

    symbol: str | None
    date: str
    members: Integers


class _Part:
    """One part being written."""

    def __init__(self, task: RolloverTask, part: PartTask, rows: SegmentRows, disk: Disk) -> None:
        self._task = task
        self._part = part
        self._rows = rows
        self._disk = disk
        self._root = layout.table_root(Path(task.lake), rows.dataset)
        self._skipped = 0
        self._skipped_hash = 0

    def write(self) -> PartResult:
        rows, dataset = self._rows, self._rows.dataset
        came = combine(
            row_hash(rows.take(slice(start, start + DECODE_ROWS)), dataset)
            for start in range(0, rows.rows, DECODE_ROWS)
        )
        files = list(self._files())
        written = combine(file.row_hash for file in files)
        result = PartResult(
            dataset.name,
            self._part.part,
            self._part.first,
            self._part.end,
            tuple(files),
            sum(file.rows for file in files),
            self._skipped,
            written,
        )
        if (
            result.rows + result.skipped != rows.rows
            or came != (written + self._skipped_hash) % MODULUS
        ):
            raise LakeCorruptError(self._root, "what was written is not what the journal holds")
        return result

    def _files(self) -> Iterator[WrittenFile]:
        for number, group in enumerate(_groups(self._rows)):
            members = group.members
            if group.symbol in self._part.without_synthetic:
                members = self._without_synthetic(members)
            if not len(members):
                continue
            token = f"{self._task.token}{number:05x}"
            end = 0 if self._part.kind is FileKind.BULK else self._part.end
            name = FileName(self._part.kind, end, self._part.part, token)
            table = self._rows.take(members)
            yield write_file(
                self._root, self._rows.dataset, group.symbol, group.date, table, name, self._disk
            )

    def _without_synthetic(self, members: Integers) -> Integers:
        synthetic = self._rows.is_synthetic(members)
        left_out = members[synthetic]
        self._skipped += len(left_out)
        hashed = row_hash(self._rows.take(left_out), self._rows.dataset)
        self._skipped_hash = combine((self._skipped_hash, hashed))
        return members[~synthetic]


def _groups(rows: SegmentRows) -> Iterator[_Group]:
    """Yield the rows of each data file: of one symbol, date and source, as the dataset has them."""
    if not rows.rows:
        return
    dataset = rows.dataset
    dates, combined = _partitions(rows)
    words: list[str] = []
    if "symbol" in dataset.partition_by:
        symbols = rows.codes("symbol")
        words = list(symbols.words)
        combined = combined * len(words) + symbols.codes
    sources = 1
    if layout.has_one_source_a_file(dataset):
        source = rows.codes("source")
        sources = len(source.words)
        combined = combined * sources + source.codes
    for group, members in _members(combined, len(dates) * max(len(words), 1) * sources):
        rest = group // sources
        symbol = words[rest % len(words)] if words else None
        yield _Group(symbol, dates[rest // max(len(words), 1)], members)


def _partitions(rows: SegmentRows) -> tuple[list[str], Integers]:
    """Return the dates or months that rows are of, and each row's place among them."""
    days = rows.instants() // layout.DAY_US
    lowest = int(days.min())
    present = np.flatnonzero(np.bincount(days - lowest))
    names = [layout.partition_date(rows.dataset, lowest + int(day)) for day in present]
    dates = sorted(set(names))
    place_of_day = np.zeros(int(present[-1]) + 1, np.int64)
    place_of_day[present] = [dates.index(name) for name in names]
    return dates, place_of_day[days - lowest]


def _members(groups: Integers, count: int) -> Iterator[tuple[int, Integers]]:
    """Yield each group's number and its rows, in the order they came."""
    narrow = groups.astype(np.int16) if count < RADIX_GROUPS_MAX else groups
    order = np.argsort(narrow, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for start, stop in zip([0, *starts], [*starts, len(order)], strict=True):
        yield int(ordered[start]), order[start:stop]


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(os.EX_UNAVAILABLE)


def _answer(text: str) -> str:
    """Do one task."""
    ((kind, content),) = json.loads(text).items()
    task = json.dumps(content)
    if kind == ROLL_OVER:
        return roll_over(RolloverTask.from_json(task), SystemDisk()).to_json()
    if kind == JOIN:
        return json.dumps(join(JoinTask.from_json(task), SystemDisk()).to_json())
    if kind == SCRUB:
        tasks = map(ScrubTask.from_json, content)
        return json.dumps([report.to_json() for each in tasks for report in scrub(each)])
    if kind == MAKE_BARS:
        written = make_bars(BarsTask.from_json(task), SystemDisk())
        return json.dumps([file.to_json() for file in written])
    raise LakeError(f"a child process knows no task {kind!r}")


def main() -> int:
    """Do what stdin asks for; return the exit code."""
    _die_with(int(sys.argv[1]))
    forgo_pandas()
    os.nice(NICENESS)
    try:
        done = _answer(sys.stdin.read())
    except LakeCorruptError as error:
        sys.stdout.write(f"{json.dumps({CORRUPT: (str(error.path), error.detail)})}\n")
        return 1
    except StorageError as error:
        kind = FULL if isinstance(error, LakeFullError) else FAILED
        sys.stdout.write(f"{json.dumps({kind: str(error)})}\n")
        return 1
    sys.stdout.write(f'{{"{DONE}": {done}}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
