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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.bar_columns import TICK_COLUMNS, BarCodec
from storage.bar_sessions import MINUTE, Grid, parse_interval
from storage.bar_stream import short_bars
from storage.errors import StoreClosedError
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.layout import FileName, FilePath
from storage.lake.table import TICKS_PART, LakeTable, PartRecord
from storage.lake.view import Lake
from storage.lake.writer import WrittenFile, write_file
from storage.ordering import instants_of
from storage.ports import Disk
from storage.runs import Integers, Mask
from storage.schemas import BARS, TICKS
from storage.selection import ALL_SOURCES
from storage.speakers import Span
from storage.streams import merged_streams
from storage.validation import INSTANT_MAX

KEPT: Final = Grid(parse_interval("1m"))
"""The bars that are kept."""

_TOKEN_BYTES: Final = 6
_Month = tuple[str, str]
"""A symbol and a month, ``2026-11``."""


class BarsKeeper:
    """Brings the table of bars up to the table of ticks; for one thread.

    Args:
        ticks: The table of ticks, read.
        bars: The table of bars, read.
        lake: Reads files of both.
        disk: Where to.
        show: Called with the table of bars after a commit.
        stopping: Ends what takes long; what is half done is done again in the next life.
    """

    def __init__(
        self,
        ticks: LakeTable,
        bars: LakeTable,
        lake: Lake,
        disk: Disk,
        show: Callable[[LakeTable], None],
        stopping: threading.Event,
    ) -> None:
        self._ticks = ticks
        self._bars = bars
        self._lake = lake
        self._disk = disk
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
        removed: list[LakeFile] = []
        added: list[WrittenFile] = []
        for month, spans in _touched(record.files).items():
            old = self._kept(month)
            removed += old
            added += self._written(month, self._rows(month, old, spans), record.part)
        transactions = {TICKS_PART: record.part}
        self._bars.replace(removed, added, transactions=transactions)
        self._show(self._bars)

    def _written(self, month: _Month, rows: pa.Table, part: int) -> Iterator[WrittenFile]:
        for source in sorted(rows["source"].unique().to_pylist()):
            name = FileName(FileKind.BARS, 0, part, secrets.token_hex(_TOKEN_BYTES))
            own = rows.filter(pc.equal(rows["source"], source))
            yield write_file(self._bars.root, BARS, *month, own, name, self._disk)

    def _kept(self, month: _Month) -> list[LakeFile]:
        symbol, date = month
        files = self._bars.index.of_symbol(symbol)
        return [file for file in files if file.kind is FileKind.BARS and file.date == date]

    def _rows(
        self, month: _Month, old: Sequence[LakeFile], spans: Sequence[tuple[int, int]]
    ) -> pa.Table:
        """Return all bars of a month, those of some spans computed anew."""
        batches = [
            batch.filter(pa.array(_outside(instants_of(batch), spans)))
            for batch in self._known(month[0], old)
        ]
        for span in spans:
            batches += self._computed(month[0], *span)
        return pa.Table.from_batches(batches, BARS.wire_schema).unify_dictionaries()

    def _known(self, symbol: str, files: Sequence[LakeFile]) -> Iterator[pa.RecordBatch]:
        view = self._lake.view(BARS, FileIndex(self._bars.index.version, files))
        streams = view.streams(symbol, [Span(0, INSTANT_MAX, None)])
        return merged_streams(streams, BARS, tuple(BARS.schema.names))

    def _computed(self, symbol: str, start: int, end: int) -> Iterator[pa.RecordBatch]:
        """Yield the bars of a span, computed out of all of its ticks in the lake."""
        codec = BarCodec(ALL_SOURCES)
        view = self._lake.view(TICKS, self._ticks.index)
        streams = view.streams(symbol, [Span(start, end, None)])
        batches = merged_streams(streams, TICKS, TICK_COLUMNS)
        for bars in short_bars(batches, codec, MINUTE):
            if self._stopping.is_set():
                raise StoreClosedError("the server is shutting down")
            yield codec.batch(bars, KEPT)


def _touched(files: Iterable[WrittenFile]) -> dict[_Month, list[tuple[int, int]]]:
    """Return the spans of time that files reach over, in whole minutes, that don't overlap."""
    found: defaultdict[_Month, list[tuple[int, int]]] = defaultdict(list)
    for file in files:
        path = FilePath.parse(file.path)
        start = file.first // MINUTE * MINUTE
        end = (file.last // MINUTE + 1) * MINUTE
        found[path.symbol or "", path.date[: len("2026-11")]].append((start, end))
    return {month: _united(spans) for month, spans in sorted(found.items())}


def _outside(instants: Integers, spans: Sequence[tuple[int, int]]) -> Mask:
    """Return which instants lie in none of some spans, of at least one."""
    starts, ends = np.array(spans).T
    before = np.searchsorted(starts, instants, side="right") - 1
    outside: Mask = (before < 0) | (instants >= ends[before])
    return outside


def _united(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    united: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united
