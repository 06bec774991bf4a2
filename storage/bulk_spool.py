"""Rows on their way around memory: decoded, validated, and written down until there is a part.

The spool is a journal file of its own: its records carry checksums, and the process that writes
parts of the journal reads it.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.intake import intake_of
from storage.journal_file import Header, JournalWriter, remove
from storage.journal_making import Appended, RecordMaker
from storage.journal_record import schema_text
from storage.ports import Clock, Disk
from storage.quarantine import set_aside
from storage.schemas import QUARANTINE, Dataset, Layout

SPOOL_ROWS: Final = 1 << 18
"""Rows written down at a time, about 25 MB of ticks."""
TOKEN_BYTES: Final = 6

HotStore = ColumnarStore | BatchedStore


@dataclass(frozen=True, slots=True)
class Spooled:
    """Rows of a part, written down and waiting for their commit.

    Attributes:
        path: The finished spool.
        dataset: Name of the rows' dataset.
        counter: Application transaction of the job.
        after: Number of the newest batch that the lake has.
        seq: Number of the newest batch here.
        spans: Positions of the rows in the spool, by dataset.
        rejects: Dataset and symbol of what was put aside, for the ledger.
    """

    path: Path
    dataset: str
    counter: str
    after: int
    seq: int
    spans: dict[str, tuple[int, int]]
    rejects: tuple[pa.RecordBatch, ...]


class SpoolWriter:
    """Decodes and validates batches, and writes their rows down until there is a part of them."""

    def __init__(
        self, directory: Path, dataset: Dataset, schema: pa.Schema, clock: Clock, disk: Disk
    ) -> None:
        self.dataset = dataset
        self._directory = directory
        self._clock = clock
        self._disk = disk
        kind = ColumnarStore if dataset.layout is Layout.COLUMNS else BatchedStore
        self._rows: HotStore = kind(dataset)
        self._rejects = BatchedStore(QUARANTINE)
        self._intake = intake_of(self._rows, None, schema)
        self._file: JournalWriter | None = None
        self.begin()

    @property
    def rows(self) -> int:
        """Rows that have gathered, impossible ones included."""
        return sum(end - first for first, end in self._spans().values())

    def begin(self) -> None:
        """Begin with the next part."""
        self.discard()
        self._first = {store.dataset.name: store.end for store in self._stores}
        self._written = dict(self._first)
        self._told: list[pa.RecordBatch] = []
        self._maker = RecordMaker()

    def add(self, batch: pa.RecordBatch, *, without_rejects: bool) -> tuple[int, int]:
        """Take rows; return how many were impossible, and how many repeats."""
        arrival = self._clock.now()
        taken = self._intake.append(batch, arrival)
        quarantined = 0
        if taken.rejected:
            rejects = set_aside(self.dataset, batch, taken.rejected, arrival)
            quarantined = rejects.num_rows
            if not without_rejects:
                self._rejects.append(rejects)
                self._told.append(rejects.select(["dataset", "symbol"]))
        if (
            sum(store.end - self._written[store.dataset.name] for store in self._stores)
            > SPOOL_ROWS
        ):
            self._flush(arrival)
        return quarantined, taken.duplicates

    def finish(self, counter: str, after: int, seq: int) -> Spooled:
        """Finish the spool of a part: of the batches behind ``after``, up to ``seq``."""
        self._flush(self._clock.now())
        file = self._opened()
        file.seal()
        return Spooled(
            file.path, self.dataset.name, counter, after, seq, self._spans(), tuple(self._told)
        )

    def discard(self) -> None:
        """Remove the spool."""
        if self._file is not None:
            self._file.close()
            remove(self._file.path, self._disk)
            self._file = None

    @property
    def _stores(self) -> tuple[HotStore, HotStore]:
        return self._rows, self._rejects

    def _spans(self) -> dict[str, tuple[int, int]]:
        return {
            store.dataset.name: (self._first[store.dataset.name], store.end)
            for store in self._stores
        }

    def _flush(self, arrival: int) -> None:
        parts = [
            Appended(store, self._written[store.dataset.name], store.end, arrival)
            for store in self._stores
            if store.end > self._written[store.dataset.name]
        ]
        self._opened().commit(self._maker.records(parts))
        self._maker.note_written()
        for part in parts:
            self._written[part.store.dataset.name] = part.stop
            part.store.trim(part.stop)

    def _opened(self) -> JournalWriter:
        if self._file is None:
            path = self._directory / f"{secrets.token_hex(TOKEN_BYTES)}.spool"
            schemas = {s.dataset.name: schema_text(s.journal_schema) for s in self._stores}
            header = Header(1, 0, self._clock.now(), self._first, {}, 0, schemas)
            self._file = JournalWriter(path, header)
        return self._file
