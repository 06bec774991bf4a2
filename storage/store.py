"""The store: one door in, one way out, and nothing lost in between."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from storage.adoption import adopt_from_lake
from storage.appender import Appender
from storage.arrivals import Arrivals, Origin
from storage.bars_keeper import BarsKeeper
from storage.batched import BatchedStore
from storage.batched_view import BatchedView
from storage.bulk import BulkConfig, BulkLoader, BulkStream
from storage.child_process import join, make_bars, roll_over, scrub
from storage.columnar import ColumnarStore
from storage.columnar_state import ColumnarState
from storage.columnar_view import ColumnarView
from storage.errors import LakeCorruptError, StorageError, StoreClosedError
from storage.herald import Herald
from storage.hot_memory import HotMemory, row_bytes
from storage.journal import HOUR, Journal, JournalStatus
from storage.journal_expiry import JournalExpiry
from storage.journal_file import Header
from storage.lake.files import FileKind
from storage.lake.layout import table_root
from storage.lake.table import LakeTable
from storage.lake.view import Lake
from storage.lake.writer import WrittenFile
from storage.ledger import CoverageLedger
from storage.own_rows import OwnRows
from storage.ports import Clock, Disk
from storage.producers import AppendStream, ProducerTable
from storage.published import Publication, Published
from storage.recovery import InLake, Recovered, recover
from storage.rollover import HOLD_BACK_RATIO, Rollover
from storage.rollover_parts import Parts, RolloverConfig
from storage.schemas import BARS, DATASETS, GAPS, QUARANTINE, SPOT_CHECKS, TICKS
from storage.segments import SegmentLine
from storage.selection import SourcePolicy
from storage.snapshot import Moment, Snapshot, dataset_named
from storage.upkeep import Upkeep
from storage.upkeep_parts import UpkeepConfig, UpkeepParts

JOURNAL_BYTES_MAX: Final = 16 << 30
"""Journal files, unless told otherwise: a day of a million rows an hour takes a tenth of it."""
MEMORY_POLL_SECONDS: Final = 0.25
"""How often memory is compared with its limit: counting it costs as much as a small batch."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What a store needs to know.

    Attributes:
        directory: Where the journal lives; local disk.
        hot_memory_limit: Bytes of rows beyond which the oldest leave memory before their time.
        sources: Which source speaks for a symbol.
        hot_window_us: How long rows stay in memory after they came, µs.
        journal_limit: Bytes of journal files beyond which those the lake has go before their time.
        lake: Directory of the lake's tables; None is ``lake`` beside the journal.
        retention_us: How long the lake keeps rows, µs; None is for ever.
    """

    directory: Path
    hot_memory_limit: int
    sources: SourcePolicy
    hot_window_us: int = HOUR
    journal_limit: int = JOURNAL_BYTES_MAX
    lake: Path | None = None
    retention_us: int | None = None

    @property
    def lake_directory(self) -> Path:
        """Directory of the lake's tables."""
        return self.lake or self.directory / "lake"


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """Size of one dataset in memory."""

    rows: int
    bytes: int


class Store:
    """Everything this server holds. Opening one recovers what the last life acknowledged.

    Args:
        config: Where and how much.
        clock: Where time comes from.
        disk: The file system.
        on_failure: Called once, from any thread, when the store can't go on; the process must end,
            and the next life recovers.

    Raises:
        JournalError: The journal can't be read back or written.
        LakeError: The lake can't be read.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        clock: Clock,
        disk: Disk,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._failed = False
        self._failing = threading.Lock()
        self._memory_checked = 0.0
        directory = config.directory / "journal"
        disk.make_directory(directory)
        self.tables = _tables(config.lake_directory, disk)
        hot_since = clock.now() - config.hot_window_us
        recovered = recover(directory, disk, in_lake(self.tables, hot_since))
        self._stores = recovered.stores
        self.epoch = recovered.epoch + 1
        self.recovered_rows = recovered.rows
        self.producers = ProducerTable(recovered.marks)
        indexes = {name: table.index for name, table in self.tables.items()}
        self._publication = Publication(self._stores, indexes)
        self._lake = Lake(config.lake_directory)
        done = recovered.segments[0].number - 1 if recovered.segments else recovered.number
        self._segments = SegmentLine(done, recovered.segments)
        self._journal = Journal(
            directory,
            self._stores,
            clock=clock,
            disk=disk,
            on_sealed=self._segments.add,
            on_failure=self._fail,
        )
        self._herald = Herald(self._ends, clock)
        self._appender = Appender(
            self._stores,
            self._journal,
            self.producers,
            clock,
            on_failure=self._fail,
            on_appended=self._herald.ring,
        )
        origin = Origin(self.epoch, recovered.positions, self._journal.durable)
        self.arrivals = Arrivals(self._publication, self._segments, origin, self._herald)
        self._ledger = _ledger(self._stores)
        adopt_from_lake(self._ledger, self._lake, self._publication.current)
        self._snapshots = itertools.count(1)
        memory = HotMemory(self._stores, self._publication, self._appender, self._ledger, clock)
        own_rows = OwnRows(self.open_stream, self.close_stream, self.producers.durable, clock.now)
        parts = self._parts(memory, own_rows, disk)
        self.rollover = self._rollover(parts)
        self.bulk = self._bulk(parts, disk)
        self.upkeep = self._upkeep(memory, own_rows, disk)
        self._keep_bars(memory, disk)
        self._start(recovered)

    def __repr__(self) -> str:
        return f"<Store epoch {self.epoch} {self._config.directory}>"

    def open_stream(self, dataset: str, schema: pa.Schema) -> AppendStream:
        """Return a stream into one dataset; the only way in.

        Raises:
            InvalidDataError: There is no such dataset, or the schema is not the dataset's.
            StoreClosedError: The store is shutting down.
        """
        return self._appender.open(dataset_named(dataset).name, schema)

    def close_stream(self, stream: AppendStream) -> None:
        """Forget a stream."""
        self._appender.close(stream)

    def open_bulk(self, dataset: str, job: str, schema: pa.Schema) -> BulkStream:
        """Return a stream of old data into one dataset's table; see ``BulkLoader.open``."""
        return self.bulk.open(dataset_named(dataset), job, schema)

    def snapshot(self) -> Snapshot:
        """Return the state of all datasets at this moment; the only way out."""
        known, published = self._ledger.known(), self._publication.current
        hot = {
            name: ColumnarView(state, self._config.sources)
            if isinstance(state, ColumnarState)
            else BatchedView(state)
            for name, state in published.hot.items()
        }
        moment = Moment(hot, published.lake, known, self._clock.now())
        identity = f"{self.epoch}.{next(self._snapshots)}"
        return Snapshot(identity, moment, self._lake, self._config.sources)

    def wake_readers(self) -> None:
        """Have everybody who waits for arrivals look up, because something else has happened."""
        self._herald.wake_all()

    @property
    def hot_window_us(self) -> int:
        """How long rows stay in memory after they came, µs."""
        return self._config.hot_window_us

    @property
    def published(self) -> Published:
        """Both sides of every dataset as readers see them now."""
        return self._publication.current

    @property
    def lake_directory(self) -> Path:
        """Directory of the lake's tables."""
        return self._config.lake_directory

    def wait_for_memory(self) -> None:
        """Hold a producer back while memory is over its limit.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        now = self._clock.monotonic()
        if now < self._memory_checked + MEMORY_POLL_SECONDS:
            return
        self._memory_checked = now
        while self.row_bytes > self.memory_full:
            if self._stopping.wait(MEMORY_POLL_SECONDS):
                raise StoreClosedError("the server is shutting down; send to it again later")

    @property
    def nbytes(self) -> int:
        """Bytes of rows and indexes in memory."""
        return sum(store.nbytes for store in self._stores.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of rows and their indexes alone: what is left when they have left is near 0."""
        return row_bytes(self._stores)

    @property
    def memory_limit(self) -> int:
        """Bytes of rows beyond which the oldest leave memory before their time."""
        return self._config.hot_memory_limit

    @property
    def memory_full(self) -> int:
        """Bytes of rows beyond which producers are held back."""
        return int(HOLD_BACK_RATIO * self._config.hot_memory_limit)

    @property
    def arrival(self) -> int:
        """Newest instant any row has arrived at, µs; ahead of a wall clock that was set back."""
        return self._appender.arrival

    @property
    def journal_status(self) -> JournalStatus:
        """How the journal is doing."""
        return self._journal.status

    def datasets(self) -> dict[str, DatasetStatus]:
        """Return the size of each dataset in memory."""
        return {
            name: DatasetStatus(store.end - store.base, store.nbytes)
            for name, store in self._stores.items()
        }

    def close(self) -> None:
        """Make everything durable that was appended, and stop."""
        self._stopping.set()
        self._herald.stop()
        self.rollover.stop()
        self.upkeep.stop()
        self._appender.stop()
        self._journal.stop()
        self.rollover.join()
        self.upkeep.join()
        self._appender.fail_streams(StoreClosedError("the server is shutting down"))

    def _parts(self, memory: HotMemory, own_rows: OwnRows, disk: Disk) -> Parts:
        return Parts(
            tables=self.tables,
            segments=self._segments,
            journal=self._journal,
            memory=memory,
            own_rows=own_rows,
            expiry=JournalExpiry(self._segments, self._config.journal_limit, self._clock, disk),
            write=roll_over,
        )

    def _rollover(self, parts: Parts) -> Rollover:
        config = self._config
        return Rollover(
            RolloverConfig(config.lake_directory, config.hot_window_us, config.hot_memory_limit),
            parts,
            self._clock,
            on_failure=self._fail,
        )

    def _bulk(self, parts: Parts, disk: Disk) -> BulkLoader:
        config = self._config
        return BulkLoader(
            BulkConfig(config.directory / "bulk", config.lake_directory),
            parts,
            self.rollover,
            self._ledger,
            clock=self._clock,
            disk=disk,
            stopping=self._stopping,
        )

    def _upkeep(self, memory: HotMemory, own_rows: OwnRows, disk: Disk) -> Upkeep:
        config = self._config
        return Upkeep(
            UpkeepConfig(config.lake_directory, config.hot_window_us, config.retention_us),
            UpkeepParts(self.tables, memory, own_rows, join, scrub, roll_over, self._segments),
            clock=self._clock,
            disk=disk,
            on_failure=self._fail,
        )

    def _keep_bars(self, memory: HotMemory, disk: Disk) -> None:
        """Have bars follow the ticks of the lake, before these leave memory."""
        ticks, bars = self.tables[TICKS.name], self.tables[BARS.name]
        keeper = BarsKeeper(ticks, bars, disk, make_bars, memory.show, self._stopping)

        def follow(dataset: str = TICKS.name, files: Sequence[WrittenFile] = ()) -> None:
            # Bars that are behind cost time and nothing else: ticks stand in for them. So a file
            # that is damaged must not keep rows in memory until somebody has mended it.
            with suppress(LakeCorruptError), self.upkeep.watching("keeping bars of a minute"):
                keeper.after_part(dataset, files)

        self.rollover.first(follow)
        self.rollover.after_part(follow)

    def _start(self, recovered: Recovered) -> None:
        arrival = max(recovered.arrival, self._clock.now())
        self._journal.start(
            Header(
                number=recovered.number + 1,
                epoch=self.epoch,
                hour=arrival // HOUR * HOUR,
                positions=recovered.positions,
                marks=recovered.marks,
                previous_records=recovered.records,
            )
        )
        self._appender.start(arrival)
        self._herald.start()

    def _ends(self) -> dict[str, int]:
        return {name: store.end for name, store in self._stores.items()}

    def _fail(self, error: BaseException) -> None:
        with self._failing:
            if self._failed:
                return
            self._failed = True
        self._stopping.set()
        broken = StoreClosedError("the server has failed and is restarting; send to it again later")
        self._appender.fail_streams(error if isinstance(error, StorageError) else broken)
        self._on_failure(error)


def _tables(lake: Path, disk: Disk) -> dict[str, LakeTable]:
    tables = {}
    for name, dataset in DATASETS.items():
        table = tables[name] = LakeTable(table_root(lake, dataset), dataset, disk)
        table.refresh()
    return tables


def in_lake(tables: Mapping[str, LakeTable], hot_since: int) -> InLake:
    """Return what the tables of a lake have, for recovery."""
    joined = {
        name: max((file.end for file in table.index if file.kind is FileKind.COMPACT), default=0)
        for name, table in tables.items()
    }
    return InLake(
        positions={name: table.position for name, table in tables.items()},
        joined=joined,
        epoch=max(table.epoch for table in tables.values()),
        hot_since=hot_since,
    )


def _ledger(stores: Mapping[str, ColumnarStore | BatchedStore]) -> CoverageLedger:
    gaps, quarantine, checks = (stores[dataset.name] for dataset in (GAPS, QUARANTINE, SPOT_CHECKS))
    assert isinstance(gaps, BatchedStore)  # noqa: S101 - the registry says so
    assert isinstance(quarantine, BatchedStore)  # noqa: S101 - the registry says so
    assert isinstance(checks, BatchedStore)  # noqa: S101 - the registry says so
    return CoverageLedger(gaps, quarantine, checks)
