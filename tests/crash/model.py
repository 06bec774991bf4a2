"""What must be there after a crash, told from what was sent and what was promised."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from storage.columnar import ColumnarStore
from storage.columnar_view import ColumnarView
from storage.ports import SystemDisk
from storage.recovery import Recovered, recover
from storage.schemas import GEX, QUARANTINE
from storage.selection import SourcePolicy
from storage.store import Store, StoreConfig
from tests.crash.workload import HOUR, NOON, SEQUENCES_A_BATCH, Scenario, Sender, SetClock

POLICY: Final = SourcePolicy(("demo",), fresh_us=HOUR)


class LostRowsError(AssertionError):
    """A promise was broken."""


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with plain strings."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def rows_of(recovered: Recovered, dataset: str) -> pa.RecordBatch:
    """Return all rows of a dataset in the order they arrived."""
    store = recovered.stores[dataset]
    if isinstance(store, ColumnarStore):
        positions = np.arange(store.first, store.end)
        return plain(ColumnarView(store, POLICY).batch(positions, store.dataset.schema.names))
    table = store.table(store.end).combine_chunks()
    batches = table.to_batches()
    return plain(batches[0] if batches else pa.RecordBatch.from_pylist([], store.dataset.schema))


def owners(dataset: str, rows: pa.RecordBatch) -> list[tuple[str, int]]:
    """Return for every row which sender's which batch first brought it."""
    if dataset == QUARANTINE.name:
        payloads = [json.loads(payload) for payload in rows["payload"].to_pylist()]
        names = [payload["contract"] for payload in payloads]
        sequences = [payload["sequence"] for payload in payloads]
    elif dataset == GEX.name:
        names = rows["endpoint"].to_pylist()
        sequences = [at - NOON + HOUR for at in rows["ts_event"].cast(pa.int64()).to_pylist()]
    else:
        names, sequences = rows["contract"].to_pylist(), rows["sequence"].to_pylist()
    numbers = [sequence // SEQUENCES_A_BATCH for sequence in sequences]
    return list(zip(names, numbers, strict=True))


@dataclass(frozen=True)
class Promise:
    """Batches up to ``seq`` of a sender are safe, it was told."""

    sender: str
    seq: int


@dataclass
class Model:
    """The whole truth about one recorded life: all rows, in the order they got.

    Attributes:
        scenario: What was sent.
        rows: The rows of each dataset in the order they arrived, as the life ended with them.
        ends: By dataset and batch, how many rows there are once the batch is in.
    """

    scenario: Scenario
    rows: dict[str, pa.RecordBatch]
    ends: dict[str, dict[tuple[str, int], tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, scenario: Scenario) -> "Model":
        """Read the end of a life, and check that it is what was sent, each row once."""
        recovered = recover(directory / "journal", SystemDisk())
        rows = {name: rows_of(recovered, name) for name in recovered.stores}
        model = cls(scenario, {name: batch for name, batch in rows.items() if batch.num_rows})
        for name, batch in model.rows.items():
            spans: dict[tuple[str, int], tuple[int, int]] = {}
            for at, owner in enumerate(owners(name, batch)):
                start, _ = spans.get(owner, (at, at))
                spans[owner] = (start, at + 1)
            model.ends[name] = spans
        model.check_complete(recovered)
        return model

    def check_complete(self, recovered: Recovered) -> None:
        """Check that everything was taken, once, as it was sent."""
        for sender in self.scenario.senders:
            _require(recovered.marks.get(sender.name) == sender.batches, "batches are missing")
            expected = sent_rows(sender)
            found = _sorted(_of_sender(sender, rows_of(recovered, sender.dataset.name)))
            _require(found.equals(expected), f"{sender.name}: rows are not as they were sent")
        quarantined = rows_of(recovered, QUARANTINE.name).num_rows
        _require(quarantined == sum(map(bad_rows, self.scenario.senders)), "wrong quarantine")

    def check(self, recovered: Recovered, promises: Iterable[Promise]) -> None:
        """Check what a crash has left.

        Raises:
            LostRowsError: A promise was broken, or something is there that was never sent.
        """
        for promise in promises:
            mark = recovered.marks.get(promise.sender, 0)
            _require(mark >= promise.seq, f"{promise} but its durable mark is {mark}")
        for name, store in recovered.stores.items():
            rows = store.end - store.first
            if rows:
                self._check_rows(name, rows_of(recovered, name))
            self._check_marks(name, rows, recovered.marks)

    def _check_rows(self, name: str, found: pa.RecordBatch) -> None:
        known = self.rows.get(name)
        _require(known is not None and found.num_rows <= known.num_rows, f"{name} has grown")
        assert known is not None
        same = known.slice(0, found.num_rows).equals(found)
        _require(same, f"{name}: the {found.num_rows} rows are not the first that arrived")

    def _check_marks(self, name: str, rows: int, marks: Mapping[str, int]) -> None:
        """Check that a batch is in as a whole if its sender's mark says so, and not otherwise."""
        for (sender, seq), (start, end) in self.ends.get(name, {}).items():
            if seq <= marks.get(sender, 0):
                _require(end <= rows, f"{name}: {sender} {seq} is marked but not all there")
            else:
                _require(start >= rows, f"{name}: {sender} {seq} is there but not marked")

    def resume(self, directory: Path) -> None:
        """Start a server on what is left, send what it lacks, and check that nothing is amiss.

        Raises:
            LostRowsError: The set is not complete now, or the new life is none.
        """
        before = recover(directory / "journal", SystemDisk())
        failures: list[BaseException] = []
        config = StoreConfig(directory, 1 << 40, POLICY)
        clock = SetClock(before.arrival or NOON)
        store = Store(config, clock=clock, disk=SystemDisk(), on_failure=failures.append)
        try:
            _require(store.epoch == before.epoch + 1, "the epoch is not the next one")
            for sender in self.scenario.senders:
                _send_rest(store, sender)
        finally:
            store.close()
        _require(not failures, f"the store failed: {failures}")
        after = recover(directory / "journal", SystemDisk())
        _require(after.number == before.number + 1, "the file's number is not the next one")
        self.check_complete(after)


def _send_rest(store: Store, sender: Sender) -> None:
    stream = store.open_stream(sender.dataset.name, sender.batch(1).schema)
    first = max(1, store.producers.durable(sender.name) - 1)
    for seq in range(first, sender.batches + 1):
        stream.push(sender.batch(seq), sender.name, seq)
    stream.end()
    while stream.next_ack() is not None:
        pass
    store.close_stream(stream)


def sent_rows(sender: Sender) -> pa.RecordBatch:
    """Return all good rows of a sender, each once, by sequence."""
    numbers = sorted({sender.content(seq) for seq in range(1, sender.batches + 1)})
    table = pa.Table.from_batches([sender.batch(number) for number in numbers])
    table = table.cast(pa.schema(f.with_nullable(nullable=True) for f in sender.dataset.schema))
    whole = table.combine_chunks().to_batches()[0]
    price = whole.schema.get_field_index("price")
    if price >= 0:
        good = np.isfinite(whole.column(price).to_numpy())
        whole = whole.filter(pa.array(good))
    return pa.RecordBatch.from_arrays(whole.columns, names=whole.schema.names)


def bad_rows(sender: Sender) -> int:
    """Return how many rows of a sender belong into quarantine."""
    if not sender.bad:
        return 0
    numbers: Sequence[int] = [sender.content(seq) for seq in range(1, sender.batches + 1)]
    return sum(number % sender.bad == 0 for number in numbers)


def _of_sender(sender: Sender, rows: pa.RecordBatch) -> pa.RecordBatch:
    column = "endpoint" if sender.dataset.name == GEX.name else "contract"
    return rows.filter(pa.compute.equal(rows[column], sender.name))


def _sorted(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.sort_by("ts_event")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise LostRowsError(message)
