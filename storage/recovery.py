"""Reading the journal back: what was acknowledged before a crash is there after it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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

LOAD_ROWS: Final = 1 << 18
"""Rows decoded at a time: enough to spread the cost of small records."""
REPAIR_MARK: Final = ".repair"
"""Ends the name of a file beside the journal, there while a repair puts a new one in its place."""


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
    """

    stores: Mapping[str, HotStore]
    marks: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    number: int = 0
    records: int = 0
    arrival: int = 0
    rows: int = 0

    @property
    def positions(self) -> dict[str, int]:
        """Position of the next row of each dataset."""
        return {name: store.end for name, store in self.stores.items()}


def recover(directory: Path, disk: Disk) -> Recovered:
    """Read every journal file of ``directory``, verifying all of it.

    Raises:
        JournalCorruptError: Something is not as it was written; names the file, the record and
            the byte where they are known.
        JournalError: A file can't be read, or a repair was cut short.
    """
    if disk.size(directory.with_name(directory.name + REPAIR_MARK)):
        raise JournalCorruptError(directory, None, "a repair was cut short and has to be run again")
    paths = [path for path in disk.list(directory) if path.name.endswith(SUFFIX)]
    for path in paths:
        require_sound_log(path)  # once SQLite has opened the file, it is too late to ask
        fold(path, disk)
    if paths and is_unfinished(paths[-1]):
        remove(paths.pop(), disk)
    readers = [JournalReader(path) for path in paths]
    first = readers[0].header.positions if readers else {}
    recovered = Recovered(
        {
            name: (ColumnarStore if dataset.layout is Layout.COLUMNS else BatchedStore)(
                dataset, first.get(name, 0)
            )
            for name, dataset in DATASETS.items()
        }
    )
    for reader in readers:
        _check_chain(reader, recovered, is_first=reader is readers[0])
        _load(reader, recovered)
    return recovered


def _check_chain(reader: JournalReader, recovered: Recovered, *, is_first: bool) -> None:
    """Check that a file continues the one before it: a lost file or a lost tail shows here."""
    header = reader.header
    if is_first:
        recovered.marks.update(header.marks)
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
    for name, end in recovered.positions.items():
        if header.positions.get(name, end) != end:
            detail = f"{name} goes on at position {header.positions[name]}, not at {end}"
            raise JournalCorruptError(reader.path, None, detail)
    recovered.marks.update(header.marks)


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
            loader = loaders[record.dataset] = _Loader(store, reader)
        if record.position != loader.end:
            detail = f"holds position {record.position} where {loader.end} comes next"
            raise JournalCorruptError(reader.path, recovered.records, detail)
        loader.add(record)
        recovered.marks.update(record.marks)
        recovered.arrival = max(recovered.arrival, record.arrival)
        recovered.rows += record.rows
    for loader in loaders.values():
        loader.flush()
    recovered.epoch, recovered.number = reader.header.epoch, reader.header.number


class _Loader:
    """Gathers the records of one dataset and file, and appends them many at a time."""

    def __init__(self, store: HotStore, reader: JournalReader) -> None:
        self.end = store.end
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
        self._bodies.append(record.body)
        self._waiting += record.rows
        self.end += record.rows
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
