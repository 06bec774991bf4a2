"""A store in a directory of its own, a clock that tests turn, and ticks made to measure."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest
from hypothesis import settings

from storage.batched_view import BatchedView
from storage.columnar_state import ColumnarState
from storage.columnar_view import ColumnarView
from storage.joined import Joined, JoinedBatches, JoinedColumns
from storage.lake.files import FileIndex
from storage.lake.view import Lake
from storage.ports import SystemClock, SystemDisk
from storage.producers import Ack
from storage.published import HotState
from storage.schemas import GEX, TICKS, Dataset
from storage.selection import Order, Selection, Slice, SourcePolicy
from storage.snapshot import Answer
from storage.store import Store, StoreConfig

# The machine decides how long an example takes; what a test says is true at any speed.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

NOON = 1_790_000_000_000_000 // 86_400_000_000 * 86_400_000_000 + 43_200_000_000
"""A full hour, so that a test can step over its end."""
HOUR = 3_600_000_000
FOREVER = 1 << 62


@dataclass
class TurnedClock(SystemClock):
    """A wall clock that stands where the test has put it."""

    instant: int = NOON

    def now(self) -> int:
        return self.instant


def rows_of(
    dataset: Dataset, count: int, defaults: dict[str, Any], /, **columns: Any
) -> pa.RecordBatch:
    """Build a batch; a column is an Arrow array, a list of values, or one value for all rows."""
    arrays = []
    for column in dataset.schema:
        value = columns.get(column.name, defaults.get(column.name))
        if not isinstance(value, pa.Array | list):
            value = [value] * count
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, column.type))
    return pa.RecordBatch.from_arrays(arrays, names=dataset.schema.names)


def ticks(count: int = 1, **columns: Any) -> pa.RecordBatch:
    """Build good ticks, a microsecond apart; ``columns`` replace what a test is about."""
    defaults = {
        "ts_event": [NOON + i for i in range(count)],
        "ts_recv": [NOON + i for i in range(count)],
        "symbol": "MNQ",
        "contract": "/MNQZ26:XCME",
        "price": 20_000.0,
        "size": 1.0,
        "side": 0,
        "kind": 0,
        "flags": 1,
        "sequence": list(range(1, count + 1)),
        "source": "demo",
    }
    return rows_of(TICKS, count, defaults, **columns)


class TickRow(Protocol):
    """What a test's own rows have in common."""

    @property
    def ts(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def contract(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def kind(self) -> int: ...


def ticks_of(rows: Sequence[TickRow], **columns: Any) -> pa.RecordBatch:
    """Build ticks of a test's own rows; ``columns`` add to what those say."""
    same = ("source", "contract", "symbol", "sequence", "kind")
    instants = [row.ts for row in rows]
    told: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in same}
    return ticks(len(rows), ts_event=instants, ts_recv=instants, **told, **columns)


def gamma(**columns: Any) -> pa.RecordBatch:
    """Build one good snapshot of gamma."""
    defaults = {
        "ts_event": NOON,
        "ts_recv": NOON,
        "symbol": "NQ_NDX",
        "endpoint": "gex_zero",
        "priority": "high",
        "source": "poll",
    }
    return rows_of(GEX, 1, defaults, **columns)


def read(answer: Answer) -> list[dict[str, Any]]:
    """Read an answer whole, instants as integers."""
    table = pa.Table.from_batches(answer.batches, answer.schema)
    instants = [f.with_type(pa.int64()) if f.name[:3] == "ts_" else f for f in table.schema]
    return list(table.cast(pa.schema(instants)).to_pylist())


@dataclass
class Lab:
    """Opens stores, and sees to it that none of them fails unnoticed."""

    directory: Path
    clock: TurnedClock = field(default_factory=TurnedClock)
    failures: list[BaseException] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)

    def open(self, directory: Path | None = None, *priority: str) -> Store:
        """Open a store, in the lab's own directory unless told."""
        policy = SourcePolicy(priority or ("demo",), fresh_us=HOUR)
        config = StoreConfig(directory or self.directory, 1 << 40, policy)
        store = Store(config, clock=self.clock, disk=SystemDisk(), on_failure=self.failures.append)
        self.stores.append(store)
        return store

    def reopen(self, store: Store) -> Store:
        """Close a store and open its directory again."""
        self.close(store)
        return self.open()

    def close(self, store: Store) -> None:
        self.stores.remove(store)
        store.close()

    def close_all(self) -> None:
        for store in list(self.stores):
            self.close(store)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.0005)


def send(
    store: Store,
    *batches: pa.RecordBatch,
    dataset: str = "ticks",
    producer: str | None = None,
    first: int = 1,
) -> Ack:
    """Append batches through a stream of their own; return all its acks as one."""
    stream = store.open_stream(dataset, batches[0].schema)
    try:
        for seq, batch in enumerate(batches, start=first):
            stream.push(batch, producer, seq)
        stream.end()
        total = Ack(0, 0, 0, 0)
        while ack := stream.next_ack():
            total = Ack(
                ack.seq,
                total.rows + ack.rows,
                total.quarantined + ack.quarantined,
                total.duplicates + ack.duplicates,
            )
        return total
    finally:
        store.close_stream(stream)


def stored(store: Store, dataset: str = "ticks", **selection: Any) -> list[dict[str, Any]]:
    """Read all rows of a dataset in total order; every source unless told otherwise."""
    chosen = Selection(**{"source": "all", **selection})
    return read(store.snapshot().range(dataset, chosen, 0, FOREVER))


class Alone:
    """The rows of one dataset in memory as readers get them, without a lake beside them."""

    def __init__(self, state: HotState, policy: SourcePolicy | None = None) -> None:
        chosen = policy or SourcePolicy((), HOUR)
        joined: Joined
        if isinstance(state, ColumnarState):
            lake = Lake(Path("nowhere")).view(state.columns.dataset, FileIndex(-1))
            hot = ColumnarView(state, chosen)
            joined = JoinedColumns(hot, lake, chosen, lambda *_: ())
            self.hot: ColumnarView | BatchedView = hot
        else:
            lake = Lake(Path("nowhere")).view(state.dataset, FileIndex(-1))
            self.hot = BatchedView(state)
            joined = JoinedBatches(self.hot, lake)
        self.dataset = lake.dataset
        self.joined = joined
        self.symbols, self.extent, self.latest = joined.symbols, joined.extent, joined.latest

    def range(
        self, selection: Selection, start: int, end: int, order: Order = Order.TIME
    ) -> list[pa.RecordBatch]:
        names = selection.columns_of(self.dataset)
        return list(self.joined.range(Slice(selection, start, end, order), names))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close_all()
    assert lab.failures == []


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open()
