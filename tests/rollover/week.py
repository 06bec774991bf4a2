"""A market of six symbols and two sources, a disk that fails when told, and what must show."""

import datetime as dt
import errno
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from storage import rollover_child
from storage.errors import StorageError
from storage.lake import compaction
from storage.lake.compaction import JoinTask
from storage.lake.writer import WrittenFile
from storage.ports import SystemDisk
from storage.rollover_task import RolloverResult, RolloverTask
from storage.selection import Selection, SourcePolicy
from storage.snapshot import Snapshot
from storage.store import Store, StoreConfig
from tests.storage.conftest import FOREVER, HOUR, TurnedClock, send, ticks_of, until
from tests.upkeep.conftest import this_morning

SYMBOLS = ("MES", "MNQ", "NQ", "QQQ", "SPY", "VIX")
SOURCES = ("tastytrade", "sierra")
DAY = 24 * HOUR
KEPT = 5 * DAY
"""How long rows are kept."""
LAKE = "lake"


EVERYBODY = Selection(source="all")


class PowerCutError(BaseException):
    """The process ends here; nothing it would have done after this happens."""


class Row(NamedTuple):
    """What identifies a tick, in the order of an answer."""

    ts: int
    source: str
    contract: str
    symbol: str
    sequence: int
    kind: int


@dataclass
class Trap:
    """What happens at the n-th call from now that changes the lake.

    Attributes:
        calls: Calls until then.
        error: What is raised.
        after: Whether the call is carried out first.
    """

    calls: int
    error: Callable[[], BaseException]
    after: bool = False


class LakeDisk(SystemDisk):
    """A disk on which changes of the lake can be made to fail; the journal's never do."""

    def __init__(self) -> None:
        self.trap: Trap | None = None
        self.calls = 0

    @contextmanager
    def _change(self, path: Path) -> Iterator[None]:
        if LAKE not in path.parts:
            yield
            return
        self.calls += 1
        trap = self.trap
        if trap is not None:
            trap.calls -= 1
        due = trap is not None and trap.calls == 0
        if due and trap is not None and not trap.after:
            self.trap = None
            raise trap.error()
        yield
        if due and trap is not None:
            self.trap = None
            raise trap.error()

    def make_directory(self, path: Path) -> None:
        with self._change(path):
            super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        with self._change(path):
            super().sync_directory(path)

    def create(self, path: Path) -> BinaryIO:
        with ExitStack() as undo:
            with self._change(path):
                file = super().create(path)
                undo.callback(file.close)
            undo.pop_all()
            return file

    def sync(self, path: Path) -> None:
        with self._change(path):
            super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        with self._change(target):
            super().rename(source, target)

    def remove(self, path: Path) -> None:
        with self._change(path):
            super().remove(path)


def no_space() -> BaseException:
    return OSError(errno.ENOSPC, "No space left on device")


def broken() -> BaseException:
    return OSError(errno.EIO, "Input/output error")


@dataclass
class Market:
    """A store, what was sent to it, and a clock that only we turn."""

    directory: Path
    seed: int = 0
    disk: LakeDisk = field(default_factory=LakeDisk)
    clock: TurnedClock = field(default_factory=this_morning)
    failures: list[BaseException] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    kept: list[tuple[Snapshot, list[Row]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.sequences = dict.fromkeys(SOURCES, 0)
        self.batches = dict.fromkeys(SOURCES, 0)
        self.store = self._open()

    def _open(self) -> Store:
        policy = SourcePolicy(SOURCES, HOUR)
        config = StoreConfig(self.directory, 1 << 40, policy, retention_us=KEPT)
        store = Store(config, clock=self.clock, disk=self.disk, on_failure=self.failures.append)
        _work_here(store, self.disk)
        return store

    def close(self) -> None:
        self.disk.trap = None
        self.kept.clear()
        self.store.close()
        assert self.failures == []

    def restart(self) -> None:
        self.close()
        self.store = self._open()

    # What happens

    def trade(self, count: int, lateness: int = 0) -> None:
        """Send rows of one source, some late, out of order, corrected, cancelled or sent twice."""
        source = self.random.choice(SOURCES)
        rows = [row for _ in range(count) for row in self._events(source, lateness)]
        self.random.shuffle(rows)
        repeated = self.random.choices(rows, k=count // 4)
        batch = ticks_of([*rows, *repeated])
        self.batches[source] += 1
        for _ in range(self.random.choice((1, 1, 2))):  # whoever lost the ack sends again
            send(self.store, batch, producer=source, first=self.batches[source])
        self.rows += rows

    def _events(self, source: str, lateness: int) -> list[Row]:
        symbol = self.random.choice(SYMBOLS)
        contract = f"{symbol}{self.random.choice('HM')}"
        ts = self.clock.instant - self.random.randint(0, lateness)
        self.sequences[source] += 1
        trade = Row(ts, source, contract, symbol, self.sequences[source], 0)
        also = [kind for kind in (1, 2) if self.random.random() < 0.1]
        return [trade, *(trade._replace(kind=kind) for kind in also)]

    def end_file(self) -> None:
        """End the journal file being written, as the hour does."""
        number = self.store._journal.roll()
        until(lambda: self.store._segments.newest >= number)

    def step(self) -> None:
        """Have the rollover do what is due; what fails is found to be no worse than before."""
        self._survive(self.store.rollover.step)

    def join_files(self) -> None:
        """Have the files of past dates joined."""
        self._survive(self.store.upkeep.compact)

    def clean_up(self) -> None:
        """Have files that nobody needs removed."""
        self._survive(self.store.upkeep.vacuum)

    def drop_old(self) -> None:
        """Have dates dropped whose time is over; what was cut off in it is done again."""
        due = {(one.symbol, one.date) for one in self.store.upkeep.expired("ticks")}
        limit = (self.clock.instant - KEPT) // DAY
        self._survive(self.store.upkeep.retain, halfway=True)
        self.store.upkeep.retain()
        gone = [row for row in self.rows if (row.symbol, date_of(row)) in due]
        assert all(row.ts // DAY < limit for row in gone)
        self.rows = [row for row in self.rows if (row.symbol, date_of(row)) not in due]

    def keep_a_snapshot(self) -> None:
        """Read later what is there now."""
        self.kept.append((self.store.snapshot(), sorted(self.rows)))

    def _survive(self, work: Callable[[], object], *, halfway: bool = False) -> None:
        try:
            work()
        except StorageError:
            if not halfway:
                self.check()
        except PowerCutError:
            self.restart()
        self.disk.trap = None

    # What must be true

    def check(self) -> None:
        """Every row is visible once, in order, and newest rows are the newest."""
        snapshot, expected = self.store.snapshot(), sorted(self.rows)
        for then, rows in [*self.kept, (snapshot, expected)]:
            assert rows_in(list(then.range("ticks", EVERYBODY, 0, FOREVER).batches)) == rows
        newest = rows_in(list(snapshot.latest("ticks", EVERYBODY, 3).batches))
        by_symbol = [[r for r in expected if r.symbol == symbol][-3:] for symbol in SYMBOLS]
        assert newest == sorted(row for rows in by_symbol for row in rows)


def _work_here(store: Store, disk: LakeDisk) -> None:
    """Have no process of its own for anything, and the same disk for all of it."""

    def write(task: RolloverTask, stop: threading.Event) -> RolloverResult:
        assert not stop.is_set()
        return rollover_child.roll_over(task, disk)

    def join(task: JoinTask, stop: threading.Event) -> WrittenFile:
        assert not stop.is_set()
        return compaction.join(task, disk)

    store.rollover._parts = replace(store.rollover._parts, write=write)
    store.upkeep._parts = replace(store.upkeep._parts, join=join)


def date_of(row: Row) -> str:
    return str(dt.datetime.fromtimestamp(row.ts // 1_000_000, dt.UTC).date())


def rows_in(batches: list[pa.RecordBatch]) -> list[Row]:
    found: list[Row] = []
    for batch in batches:
        columns = {name: batch.column(batch.schema.get_field_index(name)) for name in _COLUMNS}
        instants = columns["ts_event"].cast(pa.int64()).to_pylist()
        rest = [columns[name].to_pylist() for name in _COLUMNS[1:]]
        found += [Row(*row) for row in zip(instants, *rest, strict=True)]
    return found


_COLUMNS = ("ts_event", "source", "contract", "symbol", "sequence", "kind")
