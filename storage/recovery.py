"""Reading the journal back: what was acknowledged before a crash is there after it.

What the lake has need not be read back, unless it is recent. Rows in memory begin at the border of
a file, so that each row is on one side: in memory, or in the lake.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.errors import JournalCorruptError
from storage.journal_file import SUFFIX, JournalReader, Record, fold, is_unfinished, remove
from storage.journal_log import require_sound_log
from storage.journal_record import schema_of
from storage.journal_rows import HotStore, UnreadableRowsError, decode, require_known, restore
from storage.ports import Disk
from storage.schemas import DATASETS, Layout
from storage.segments import Segment

LOAD_ROWS: Final = 1 << 18
"""Rows decoded at a time: enough to spread the cost of small records."""
REPAIR_MARK: Final = ".repair"
"""Ends the name of a file beside the journal, there while a repair puts a new one in its place."""


@dataclass(frozen=True, slots=True)
class InLake:
    """What the lake has already.

    Attributes:
        positions: By dataset, the position below which it has all rows.
        joined: By dataset, the position that files were joined up to: they can't be told apart
            any more, so memory must not have rows below it.
        epoch: The newest life of which it has rows.
        hot_since: Rows that arrived since then (µs) belong in memory all the same.
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, int] = field(default_factory=dict)
    epoch: int = 0
    hot_since: int = 0

    def has(self, segment: Segment) -> bool:
        """Whether it has all rows of a segment."""
        return all(
            first == end or end <= self.positions.get(name, 0)
            for name, (first, end) in ((name, segment.span(name)) for name in segment.end)
        )


@dataclass(slots=True)
class Recovered:
    """What the journal held.

    Attributes:
        stores: Every dataset, with its rows.
        marks: Newest durable batch of each producer.
        epoch: Life of the server that wrote last, 0 when there was none.
        number: Number of the last file, 0 when there was none.
        records: Records of the last file.
        arrival: Newest arrival, µs; 0 when nothing came.
        rows: Rows read.
        segments: The files, oldest first, those that were not read included.
        chain: Position of each dataset where the last file read ends.
    """

    stores: Mapping[str, HotStore]
    marks: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    number: int = 0
    records: int = 0
    arrival: int = 0
    rows: int = 0
    segments: list[Segment] = field(default_factory=list)
    chain: dict[str, int] = field(default_factory=dict)

    @property
    def positions(self) -> dict[str, int]:
        """Position of the next row of each dataset."""
        return {name: store.end for name, store in self.stores.items()}


def recover(directory: Path, disk: Disk, lake: InLake | None = None) -> Recovered:
    """Read the journal files of ``directory`` whose rows belong in memory, verifying all of them.

    Of files before them only the headers are checked.

    Args:
        directory: Where the files are.
        disk: The file system.
        lake: What the lake has; None is nothing.

    Raises:
        JournalCorruptError: Something is not as it was written; names the file, the record and
            the byte where they are known.
        JournalError: A file can't be read, or a repair was cut short.
    """
    lake = lake or InLake()
    readers = _readers(directory, disk)
    segments = [_segment(before, after) for before, after in pairwise(readers)]
    first = _first_to_load(segments, lake)
    begins = readers[first].header.positions if readers else {}
    recovered = Recovered(_stores(begins, lake), segments=segments, chain=dict(begins))
    for reader in readers[:first]:
        _check_order(reader, recovered, is_first=reader is readers[0])
        recovered.number, recovered.epoch = reader.header.number, reader.header.epoch
        recovered.records, recovered.arrival = reader.newest()
    for reader in readers[first:]:
        _check_order(reader, recovered, is_first=reader is readers[0])
        _check_positions(reader, recovered, lake)
        _load(reader, recovered)
    if readers:
        segments.append(_last_segment(readers[-1], recovered))
    for name, store in recovered.stores.items():
        # A journal that was deleted or cut short must not give out positions the lake has.
        end = max(recovered.chain.get(name, 0), lake.positions.get(name, 0))
        if store.end != end:
            store.begin_at(end)
    recovered.epoch = max(recovered.epoch, lake.epoch)
    return recovered


def _readers(directory: Path, disk: Disk) -> list[JournalReader]:
    if disk.size(directory.with_name(directory.name + REPAIR_MARK)):
        raise JournalCorruptError(directory, None, "a repair was cut short and has to be run again")
    paths = [path for path in disk.list(directory) if path.name.endswith(SUFFIX)]
    for path in paths:
        require_sound_log(path)  # once SQLite has opened the file, it is too late to ask
        fold(path, disk)
    if paths and is_unfinished(paths[-1]):
        remove(paths.pop(), disk)
    return [JournalReader(path) for path in paths]


def _stores(begins: Mapping[str, int], lake: InLake) -> dict[str, HotStore]:
    stores: dict[str, HotStore] = {}
    for name, dataset in DATASETS.items():
        base = max(begins.get(name, 0), lake.joined.get(name, 0))
        kind = ColumnarStore if dataset.layout is Layout.COLUMNS else BatchedStore
        stores[name] = kind(dataset, base)
    return stores


def _segment(before: JournalReader, after: JournalReader) -> Segment:
    header = before.header
    return Segment(
        path=before.path,
        number=header.number,
        epoch=header.epoch,
        first=header.positions,
        end=after.header.positions,
        arrival=before.newest()[1] or header.hour,
    )


def _last_segment(reader: JournalReader, recovered: Recovered) -> Segment:
    header, end = reader.header, dict(recovered.chain)
    arrival = reader.newest()[1] or header.hour
    return Segment(reader.path, header.number, header.epoch, header.positions, end, arrival)


def _first_to_load(segments: Sequence[Segment], lake: InLake) -> int:
    """Return the place of the first file whose rows belong in memory; the last one's always do."""
    for place, segment in enumerate(segments):
        if not lake.has(segment) or segment.arrival >= lake.hot_since:
            return place
    return len(segments)


def _check_order(reader: JournalReader, recovered: Recovered, *, is_first: bool) -> None:
    """Check that a file continues the one before it: a lost file or a lost tail shows here."""
    header = reader.header
    recovered.marks.update(header.marks)
    if is_first:
        return
    if header.number != recovered.number + 1:
        detail = f"follows file {recovered.number}, so a file between them is missing"
        raise JournalCorruptError(reader.path, None, detail)
    if header.previous_records != recovered.records:
        detail = (
            f"the file before it ended with record {header.previous_records}, "
            f"but now holds {recovered.records}"
        )
        raise JournalCorruptError(reader.path, None, detail)


def _check_positions(reader: JournalReader, recovered: Recovered, lake: InLake) -> None:
    """Check that each dataset goes on where it was, or where the lake had gone on without us."""
    header = reader.header
    for name, end in recovered.chain.items():
        begins = header.positions.get(name, end)
        is_skip = header.epoch > recovered.epoch and end < begins <= lake.positions.get(name, 0)
        if begins != end and not is_skip:
            detail = f"{name} goes on at position {begins}, not at {end}"
            raise JournalCorruptError(reader.path, None, detail)
        if is_skip and begins > recovered.stores[name].end:
            recovered.stores[name].begin_at(begins)
        recovered.chain[name] = begins
    for name, begins in header.positions.items():
        recovered.chain.setdefault(name, begins)


def _load(reader: JournalReader, recovered: Recovered) -> None:
    loaders: dict[str, _Loader] = {}
    recovered.records = 0
    for record in reader.records():
        recovered.records += 1
        loader = loaders.get(record.dataset)
        if loader is None:
            store = recovered.stores.get(record.dataset)
            if store is None:
                detail = f"dataset {record.dataset!r} is unknown to this version"
                raise JournalCorruptError(reader.path, recovered.records, detail)
            end = recovered.chain.get(record.dataset, 0)
            loader = loaders[record.dataset] = _Loader(store, reader, end)
        if record.position != loader.end:
            detail = f"holds position {record.position} where {loader.end} comes next"
            raise JournalCorruptError(reader.path, recovered.records, detail)
        loader.add(record)
        recovered.marks.update(record.marks)
        recovered.arrival = max(recovered.arrival, record.arrival)
        recovered.rows += record.rows
    for name, loader in loaders.items():
        loader.flush()
        recovered.chain[name] = loader.end
    recovered.epoch, recovered.number = reader.header.epoch, reader.header.number


class _Loader:
    """Gathers the records of one dataset and file, and appends them many at a time."""

    def __init__(self, store: HotStore, reader: JournalReader, end: int) -> None:
        self.end = end
        self._store = store
        self._path = reader.path
        self._bodies: list[Any] = []
        self._waiting = 0
        self._strings: dict[str, list[str]] = {}
        text = reader.header.schemas.get(store.dataset.name)
        self._schema = store.journal_schema if text is None else schema_of(text)
        with self._named_errors():
            require_known(store, self._schema)

    def add(self, record: Record) -> None:
        for column, values in record.strings.items():
            self._strings.setdefault(column, []).extend(values)
        if not record.rows:
            return
        self.end += record.rows
        if self.end <= self._store.base:
            return  # the lake has it, in a file with others
        self._bodies.append(record.body)
        self._waiting += record.rows
        if self._waiting >= LOAD_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        with self._named_errors():
            batches = decode(self._schema, self._bodies)
        self._bodies, self._waiting = [], 0
        restore(self._store, batches, self._strings)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except UnreadableRowsError as error:
            raise JournalCorruptError(self._path, None, str(error)) from error
