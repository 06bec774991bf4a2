"""Rows spread over memory and files of a lake, beside a model of them in a plain list."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.columnar import ColumnarStore
from storage.columnar_view import ColumnarView
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.layout import FileName, has_one_source_a_file, partition_date
from storage.lake.view import Lake
from storage.lake.writer import write_file
from storage.ledger import Gap, GapLane, Known
from storage.ports import SystemDisk
from storage.schemas import DATASETS, TICKS, Dataset
from storage.selection import SourcePolicy
from storage.snapshot import HotView, Moment, Snapshot
from storage.speakers import DAY
from storage.validation import Decoder
from tests.storage.conftest import HOUR, NOON, ticks_of

PRIORITY = ("best", "good")
POLICY = SourcePolicy(PRIORITY, fresh_us=HOUR)


class UnsyncedDisk(SystemDisk):
    """A disk that may lose everything: power cuts are other tests' business."""

    def sync_directory(self, path: Path) -> None:
        pass


@dataclass(frozen=True, order=True)
class Row:
    """A tick; its fields in the order of an answer."""

    ts: int
    source: str
    contract: str
    sequence: int
    kind: int = 0

    @property
    def symbol(self) -> str:
        return self.contract[:1]

    @property
    def price(self) -> float:
        return float(self.sequence)


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    return ticks_of(rows, price=[row.price for row in rows])


def rows_in(batches: Iterable[pa.RecordBatch]) -> list[Row]:
    """Read the rows of an answer back."""
    names = ("ts_event", "source", "contract", "sequence", "kind")
    table = pa.Table.from_batches(list(batches), schema=TICKS.wire_schema)
    columns = [table[name] for name in names]
    columns[0] = columns[0].cast(pa.int64())
    return [Row(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]


@dataclass
class Pool:
    """A lake in a directory, and what is in memory beside it."""

    root: Path
    dataset: Dataset = TICKS
    files: list[LakeFile] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    retained_from: int = 0
    hot: Callable[[], HotView] | None = None
    _parts: Any = field(default_factory=lambda: count(1))

    def remember(self, rows: Sequence[Row]) -> None:
        """Have rows in memory, in the order they came."""
        store = ColumnarStore(TICKS)
        for row in rows:
            batch = batch_of([row])
            columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
            store.append(columns)
        self.hot = lambda: ColumnarView(store.state, POLICY)

    def roll(self, batch: pa.RecordBatch, kind: FileKind = FileKind.PART) -> None:
        """Write rows as one part: a file a symbol, date and source."""
        part = next(self._parts)
        table = pa.Table.from_batches([batch])
        instants = table["ts_event"].cast(pa.int64()).to_pylist()
        symbols = table["symbol"].to_pylist()
        sources = table["source"].to_pylist() if "source" in table.schema.names else symbols
        groups: dict[tuple[Any, ...], list[int]] = {}
        for at, (instant, symbol, source) in enumerate(
            zip(instants, symbols, sources, strict=True)
        ):
            key = (
                symbol if "symbol" in self.dataset.partition_by else None,
                partition_date(self.dataset, instant // DAY),
                source if has_one_source_a_file(self.dataset) else None,
            )
            groups.setdefault(key, []).append(at)
        for number, ((symbol, date, _), rows) in enumerate(groups.items()):
            end = 0 if kind is FileKind.BULK else part
            name = FileName(kind, end, part, f"t{number}")
            written = write_file(
                self.root / self.dataset.name,
                self.dataset,
                symbol,
                date,
                table.take(rows),
                name,
                UnsyncedDisk(),
            )
            told = (written.source, written.rows, written.bytes, written.first, written.last)
            self.files.append(LakeFile(written.path, kind, symbol, date, *told, part, end))

    def snapshot(self, now: int = NOON) -> Snapshot:
        assert self.hot is not None
        index = FileIndex(1, self.files, retained_from=self.retained_from)
        known = Known(lanes={(self.dataset.name, None): GapLane(self.gaps)})
        files = {name: FileIndex(-1) for name in DATASETS} | {self.dataset.name: index}
        moment = Moment({self.dataset.name: self.hot()}, files, known, now)
        return Snapshot("1.1", moment, Lake(self.root), POLICY)


def gap(source: str, start: int, end: int | None, state: str = "open") -> Gap:
    return Gap(
        gap_id=f"{source}{start}",
        revision=1,
        dataset="ticks",
        source=source,
        symbol=None,
        start=start,
        end=end,
        reason="disconnect",
        state=state,
        rows_recovered=0,
    )
