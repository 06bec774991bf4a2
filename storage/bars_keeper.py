"""Keeps bars of a minute beside the ticks of the lake, so that a year of them is read at once.

After each part of ticks, every minute that it may have touched is computed again out of all ticks
the lake has of it: late rows, corrections and imports of old days work alike. A symbol, month and
source is one file of the table ``bars``, replaced as a whole; one commit a part takes all of its
files and notes the part's number. So a crash leaves nothing half done, and what is missing is made
up for.

Each source has bars of its own: who speaks for a date is the reader's business.
"""

import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from storage.bar_sessions import MINUTE
from storage.bars_making import BarsTask, MonthTask, make_bars
from storage.lake.files import FileKind, LakeFile
from storage.lake.layout import FilePath
from storage.lake.table import TICKS_PART, LakeTable, PartRecord
from storage.lake.writer import WrittenFile
from storage.ports import Disk
from storage.schemas import TICKS
from storage.speakers import Interval

HERE_ROWS_MAX: Final = 1 << 17
"""Ticks up to which bars are made in this process: to start another one takes longer. Of more it
would be readers who wait, a little with each block."""

_TOKEN_BYTES: Final = 6
_Month = tuple[str, str]
"""A symbol and a month, ``2026-11``."""


class BarsKeeper:
    """Brings the table of bars up to the table of ticks; for one thread.

    Args:
        ticks: The table of ticks, read.
        bars: The table of bars, read.
        disk: Where to.
        make: Makes bars of many ticks; see ``child_process.make_bars``.
        show: Called with the table of bars after a commit.
        stopping: Ends what takes long; what is half done is done again in the next life.
    """

    def __init__(
        self,
        ticks: LakeTable,
        bars: LakeTable,
        disk: Disk,
        make: Callable[[BarsTask, threading.Event], list[WrittenFile]],
        show: Callable[[LakeTable], None],
        stopping: threading.Event,
    ) -> None:
        self._ticks = ticks
        self._bars = bars
        self._disk = disk
        self._make = make
        self._show = show
        self._stopping = stopping
        self._in_doubt = False

    def __repr__(self) -> str:
        return f"<BarsKeeper part {self.part} of {self._ticks.part}>"

    @property
    def part(self) -> int:
        """Number of the newest part of ticks that the bars are made of."""
        return self._bars.counter(TICKS_PART) or 0

    def after_part(self, dataset: str, files: Sequence[WrittenFile]) -> None:  # noqa: ARG002
        """Follow a part that was committed.

        Raises:
            LakeError: It has to be tried again.
            StoreClosedError: The store is shutting down.
        """
        if dataset == TICKS.name:
            self.catch_up()

    def catch_up(self) -> None:
        """Make up for all parts of ticks that the bars don't know yet.

        Raises:
            LakeError: A file can't be read or written; done so far is done.
            StoreClosedError: The store is shutting down.
        """
        if self._in_doubt:
            self._bars.refresh()
        self._in_doubt = True  # until it has come back, nobody knows what was committed
        if self.part < self._ticks.part:
            for record in self._ticks.parts(after=self.part):
                self._follow(record)
        self._in_doubt = False

    def _follow(self, record: PartRecord) -> None:
        task = self._task(record)
        here = task.rows <= HERE_ROWS_MAX
        added = make_bars(task, self._disk) if here else self._make(task, self._stopping)
        removed = [file for month in task.months for file in month.kept]
        self._bars.replace(removed, added, transactions={TICKS_PART: record.part})
        self._show(self._bars)

    def _task(self, record: PartRecord) -> BarsTask:
        return BarsTask(
            lake=str(self._bars.root.parent),
            part=record.part,
            token=secrets.token_hex(_TOKEN_BYTES),
            months=tuple(
                MonthTask(*month, spans, self._ticks_of(month[0], spans), self._kept(month))
                for month, spans in _touched(record.files).items()
            ),
        )

    def _ticks_of(self, symbol: str, spans: Sequence[Interval]) -> tuple[LakeFile, ...]:
        files = (file for span in spans for file in self._ticks.index.of(symbol, *span))
        return tuple(dict.fromkeys(files))

    def _kept(self, month: _Month) -> tuple[LakeFile, ...]:
        symbol, date = month
        files = self._bars.index.of_symbol(symbol)
        return tuple(file for file in files if file.kind is FileKind.BARS and file.date == date)


def _touched(files: Iterable[WrittenFile]) -> dict[_Month, tuple[Interval, ...]]:
    """Return the spans of time that files reach over, in whole minutes, that don't overlap."""
    found: defaultdict[_Month, list[Interval]] = defaultdict(list)
    for file in files:
        path = FilePath.parse(file.path)
        start = file.first // MINUTE * MINUTE
        end = (file.last // MINUTE + 1) * MINUTE
        found[path.symbol or "", path.date[: len("2026-11")]].append((start, end))
    return {month: tuple(_united(spans)) for month, spans in sorted(found.items())}


def _united(spans: Iterable[Interval]) -> list[Interval]:
    united: list[Interval] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united
