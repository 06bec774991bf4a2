"""A store beside a lake whose upkeep is done in this process, when a test says so."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from storage import store as store_module
from storage.lake.compaction import JoinTask, join
from storage.lake.scrub import FileReport, ScrubTask, scrub
from storage.lake.writer import WrittenFile
from storage.ports import SystemDisk
from storage.selection import SourcePolicy
from storage.store import Store, StoreConfig
from tests.rollover.conftest import write_here
from tests.storage.conftest import HOUR, Lab, TurnedClock, send, stored, ticks, until

DAY = 24 * HOUR
KEPT = 30 * DAY
"""How long rows are kept in these tests."""


def join_here(task: JoinTask, stop: threading.Event) -> WrittenFile:
    """Do the child's work in this process."""
    assert not stop.is_set()
    return join(task, SystemDisk())


def scrub_here(tasks: Sequence[ScrubTask], stop: threading.Event) -> list[FileReport]:
    """Do the child's work in this process."""
    assert not stop.is_set()
    return [report for task in tasks for report in scrub(task)]


def this_morning() -> TurnedClock:
    """A clock at a full hour of today: commits carry the machine's own time."""
    return TurnedClock(time.time_ns() // 1_000 // DAY * DAY + 9 * HOUR)


@dataclass
class LakeLab(Lab):
    """Opens stores that keep rows for ``KEPT``."""

    clock: TurnedClock = field(default_factory=this_morning)

    def open(self, directory: Path | None = None, *priority: str) -> Store:
        policy = SourcePolicy(priority or ("demo",), fresh_us=HOUR)
        place = directory or self.directory
        config = StoreConfig(place, 1 << 40, policy, retention_us=KEPT)
        store = Store(config, clock=self.clock, disk=SystemDisk(), on_failure=self.failures.append)
        self.stores.append(store)
        return store

    @property
    def midnight(self) -> int:
        """Where the clock's day begins, µs."""
        return self.clock.instant // DAY * DAY


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no process of its own for anything: each takes a second to start."""
    monkeypatch.setattr(store_module, "roll_over", write_here)
    monkeypatch.setattr(store_module, "join", join_here)
    monkeypatch.setattr(store_module, "scrub", scrub_here)


@pytest.fixture
def lab(tmp_path: Path, here: None) -> Iterator[LakeLab]:  # noqa: ARG001
    lab = LakeLab(tmp_path)
    yield lab
    lab.close_all()
    assert lab.failures == []


@pytest.fixture
def store(lab: LakeLab) -> Store:
    return lab.open()


def dated(at: int, *sequences: int, symbol: str = "MNQ") -> pa.RecordBatch:
    """Build ticks a microsecond apart from an instant on."""
    instants = [at + sequence for sequence in sequences]
    return ticks(
        len(sequences),
        sequence=list(sequences),
        ts_event=instants,
        ts_recv=instants,
        symbol=symbol,
        contract=symbol,
    )


def roll(lab: LakeLab, store: Store) -> None:
    """Bring all rows into the lake, and let them leave memory."""
    number = store._journal.roll()
    until(lambda: store._segments.newest >= number)
    store.rollover.step()
    lab.clock.instant += HOUR
    store.rollover.step()


def rolled(lab: LakeLab, store: Store, *batches: pa.RecordBatch) -> None:
    """Have each batch in a part of its own, and none of it in memory."""
    for batch in batches:
        send(store, batch)
        roll(lab, store)


def sequences(store: Store) -> list[int]:
    """Sequences of all ticks that a snapshot taken now sees."""
    return sorted(row["sequence"] for row in stored(store))


def files_on_disk(store: Store, dataset: str = "ticks") -> set[str]:
    """Paths of all data files below a table's root."""
    root = store.lake_directory / dataset
    return {path.relative_to(root).as_posix() for path in root.rglob("*.parquet*")} - {
        path.relative_to(root).as_posix() for path in root.rglob("_delta_log/*")
    }
