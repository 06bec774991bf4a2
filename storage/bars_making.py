"""Making the data files of kept bars: what a child process is asked to write, and how it does.

All ticks of some minutes become bars once more, and take the place of those that were kept.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.bar_columns import TICK_COLUMNS, BarCodec
from storage.bar_sessions import MINUTE, Grid, parse_interval
from storage.bar_stream import short_bars
from storage.lake import layout
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.layout import FileName
from storage.lake.view import Lake
from storage.lake.writer import WrittenFile, write_file
from storage.ordering import instants_of
from storage.ports import Disk
from storage.runs import Integers, Mask
from storage.schemas import BARS, TICKS
from storage.selection import ALL_SOURCES
from storage.speakers import Interval, Span
from storage.streams import merged_streams
from storage.validation import INSTANT_MAX

KEPT: Final = Grid(parse_interval("1m"))
"""The bars that are kept."""


@dataclass(frozen=True, slots=True)
class MonthTask:
    """Bars of one symbol and month to make.

    Attributes:
        symbol: The symbol.
        month: ``2026-11``.
        spans: Whole minutes to make anew, µs; they don't overlap.
        ticks: All files of the lake with ticks of these minutes.
        kept: The files that have the bars of the month so far.
    """

    symbol: str
    month: str
    spans: tuple[Interval, ...]
    ticks: tuple[LakeFile, ...]
    kept: tuple[LakeFile, ...]

    @property
    def rows(self) -> int:
        """Ticks to read, at most."""
        return sum(file.rows for file in self.ticks)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "MonthTask":
        """Read it out of JSON."""
        spans = tuple((start, end) for start, end in content["spans"])
        ticks, kept = (
            tuple(LakeFile(**{**file, "kind": FileKind(file["kind"])}) for file in content[name])
            for name in ("ticks", "kept")
        )
        return cls(content["symbol"], content["month"], spans, ticks, kept)


@dataclass(frozen=True, slots=True)
class BarsTask:
    """What one part of ticks asks for.

    Attributes:
        lake: Directory of all tables.
        part: Number of the part.
        token: Unique for each attempt: lower-case letters and digits. Names of files end with it.
        months: Each symbol and month once.
    """

    lake: str
    part: int
    token: str
    months: tuple[MonthTask, ...]

    @property
    def rows(self) -> int:
        """Ticks to read, at most."""
        return sum(month.rows for month in self.months)

    def to_json(self) -> str:
        """Return it as a child process reads it, in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BarsTask":
        """Read what ``to_json`` has made."""
        content = json.loads(text)
        return cls(**{**content, "months": tuple(map(MonthTask.of, content["months"]))})


def make_bars(task: BarsTask, disk: Disk) -> list[WrittenFile]:
    """Write all bars of some months, a file a symbol, month and source; nothing is committed.

    Raises:
        LakeFullError: There is no room.
        LakeCorruptError: A file of ticks, or of bars that are kept, is missing or damaged.
        LakeError: The disk refuses.
    """
    lake = Path(task.lake)
    root, made = layout.table_root(lake, BARS), Lake(lake)
    written: list[WrittenFile] = []
    for month in task.months:
        rows = _rows(made, month)
        for source in sorted(rows["source"].unique().to_pylist()):
            name = FileName(FileKind.BARS, 0, task.part, f"{task.token}{len(written):05x}")
            own = rows.filter(pc.equal(rows["source"], source))
            written.append(write_file(root, BARS, month.symbol, month.month, own, name, disk))
    return written


def _rows(lake: Lake, month: MonthTask) -> pa.Table:
    """Return all bars of a month, those of some spans computed anew."""
    batches = [
        batch.filter(pa.array(_outside(instants_of(batch), month.spans)))
        for batch in _kept(lake, month)
    ]
    for span in month.spans:
        batches += _computed(lake, month, span)
    return pa.Table.from_batches(batches, BARS.wire_schema).unify_dictionaries()


def _kept(lake: Lake, month: MonthTask) -> Iterator[pa.RecordBatch]:
    view = lake.view(BARS, FileIndex(0, month.kept))
    streams = view.streams(month.symbol, [Span(0, INSTANT_MAX, None)])
    return merged_streams(streams, BARS, tuple(BARS.schema.names))


def _computed(lake: Lake, month: MonthTask, span: Interval) -> Iterator[pa.RecordBatch]:
    """Yield the bars of a span, computed out of all of its ticks in the lake."""
    codec = BarCodec(ALL_SOURCES)
    view = lake.view(TICKS, FileIndex(0, month.ticks))
    streams = view.streams(month.symbol, [Span(*span, None)])
    batches = merged_streams(streams, TICKS, TICK_COLUMNS)
    return (codec.batch(bars, KEPT) for bars in short_bars(batches, codec, MINUTE))


def _outside(instants: Integers, spans: Sequence[Interval]) -> Mask:
    """Return which instants lie in none of some spans, of at least one."""
    starts, ends = np.array(spans).T
    before = np.searchsorted(starts, instants, side="right") - 1
    outside: Mask = (before < 0) | (instants >= ends[before])
    return outside
