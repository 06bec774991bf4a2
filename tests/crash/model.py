"""What must be there after a crash, told from what was sent and what was promised."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def _require(condition: object, message: str) -> None:
    if not condition:
        raise LostRowsError(message)


@dataclass(frozen=True)
class Promise:
    """Batches up to ``seq`` of a sender are safe, it was told."""

    sender: str
    seq: int


# What is there


def rows_of(recovered: Recovered, dataset: str) -> pa.RecordBatch:
    """Return all rows of a dataset in the order they arrived."""
    store = recovered.stores[dataset]
    if isinstance(store, ColumnarStore):
        positions = np.arange(store.base, store.end)
        return plain(ColumnarView(store.state, POLICY).batch(positions, store.dataset.schema.names))
    batches = store.state.table(store.end).combine_chunks().to_batches()
    return plain(batches[0] if batches else pa.RecordBatch.from_pylist([], store.dataset.schema))


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with plain strings."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


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


def of_sender(sender: Sender, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows of one sender, in the order they arrived."""
    column = "endpoint" if sender.dataset.name == GEX.name else "contract"
    return rows.filter(pc.equal(rows[column], sender.name))


# What was sent


@cache
def sent_rows(sender: Sender, mark: int) -> pa.RecordBatch:
    """Return the good rows of a sender's batches up to ``mark``, each once, in order."""
    numbers = sorted({sender.content(seq) for seq in range(1, mark + 1)})
    schema = pa.schema(column.with_nullable(nullable=True) for column in sender.dataset.schema)
    batches = [sender.batch(number).cast(schema) for number in numbers]
    batch = pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema)
    if "price" in schema.names:
        batch = batch.filter(pc.is_finite(batch["price"]))
    return pa.RecordBatch.from_arrays(batch.columns, names=schema.names)


def bad_rows(sender: Sender, mark: int) -> int:
    """Return how many rows of a sender's batches up to ``mark`` belong into quarantine."""
    numbers = [sender.content(seq) for seq in range(1, mark + 1)]
    return sum(number % sender.bad == 0 for number in numbers) if sender.bad else 0


# What must be true


def check_promises(recovered: Recovered, promises: Iterable[Promise]) -> None:
    """Check that what was promised is marked as durable.

    Raises:
        LostRowsError: A promise was broken.
    """
    for promise in promises:
        mark = recovered.marks.get(promise.sender, 0)
        _require(mark >= promise.seq, f"{promise} but its durable mark is {mark}")


def check_prefixes(scenario: Scenario, recovered: Recovered) -> None:
    """Check that of each sender the batches up to its mark are there, and nothing else.

    This is what can be said without knowing how the senders' batches were interleaved.

    Raises:
        LostRowsError: Something is missing, twice there, or there without having been sent.
    """
    rows = {s.dataset.name: rows_of(recovered, s.dataset.name) for s in scenario.senders}
    strangers = {name: found.num_rows for name, found in rows.items()}
    quarantined = 0
    for sender in scenario.senders:
        mark = recovered.marks.get(sender.name, 0)
        quarantined += bad_rows(sender, mark)
        found = of_sender(sender, rows[sender.dataset.name])
        strangers[sender.dataset.name] -= found.num_rows
        same = found.equals(sent_rows(sender, mark))
        _require(same, f"{sender.name}: not the rows of its first {mark} batches, in order")
    _require(not any(strangers.values()), f"there are rows that nobody sent: {strangers}")
    aside = rows_of(recovered, QUARANTINE.name).num_rows
    _require(aside == quarantined, f"{aside} rows are in quarantine, not {quarantined}")


def check_complete(scenario: Scenario, recovered: Recovered) -> None:
    """Check that everything was taken, once, as it was sent.

    Raises:
        LostRowsError: Something is missing, twice there, or there without having been sent.
    """
    check_promises(recovered, [Promise(s.name, s.batches) for s in scenario.senders])
    check_prefixes(scenario, recovered)


@dataclass
class Model:
    """The whole truth about one recorded life: all rows, in the order they got.

    Attributes:
        scenario: What was sent.
        rows: The rows of each dataset in the order they arrived, as the life ended with them.
        spans: By dataset and batch, where its rows begin and end.
    """

    scenario: Scenario
    rows: dict[str, pa.RecordBatch]
    spans: dict[str, dict[tuple[str, int], tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, scenario: Scenario) -> "Model":
        """Read the end of a life, and check that it is what was sent, each row once."""
        recovered = recover(directory / "journal", SystemDisk())
        check_complete(scenario, recovered)
        rows = {name: rows_of(recovered, name) for name in recovered.stores}
        model = cls(scenario, {name: batch for name, batch in rows.items() if batch.num_rows})
        for name, batch in model.rows.items():
            spans: dict[tuple[str, int], tuple[int, int]] = {}
            for at, owner in enumerate(owners(name, batch)):
                start, _ = spans.get(owner, (at, at))
                spans[owner] = (start, at + 1)
            model.spans[name] = spans
        return model

    def check(self, recovered: Recovered, promises: Iterable[Promise]) -> None:
        """Check that what a crash has left is a beginning of the whole, as long as promised.

        Raises:
            LostRowsError: A promise was broken, or something is there that was never sent.
        """
        check_promises(recovered, promises)
        for name, store in recovered.stores.items():
            if store.end > store.base:
                self._check_rows(name, rows_of(recovered, name))
            self._check_marks(name, store.end - store.base, recovered.marks)

    def _check_rows(self, name: str, found: pa.RecordBatch) -> None:
        known = self.rows.get(name)
        if known is None or found.num_rows > known.num_rows:
            raise LostRowsError(f"{name} has rows that nobody sent")
        same = known.slice(0, found.num_rows).equals(found)
        _require(same, f"{name}: the {found.num_rows} rows are not the first that arrived")

    def _check_marks(self, name: str, rows: int, marks: Mapping[str, int]) -> None:
        """Check that a batch is in as a whole if its sender's mark says so, and not otherwise."""
        for (sender, seq), (start, end) in self.spans.get(name, {}).items():
            if seq <= marks.get(sender, 0):
                _require(end <= rows, f"{name}: {sender} {seq} is marked but not all there")
            else:
                _require(start >= rows, f"{name}: {sender} {seq} is there but not marked")


# Going on


def restart(scenario: Scenario, directory: Path) -> None:
    """Start a server on what is left, stop it again, and check that this has changed nothing.

    Raises:
        LostRowsError: It has.
    """
    before = recover(directory / "journal", SystemDisk())
    failures: list[BaseException] = []
    config = StoreConfig(directory, 1 << 40, POLICY)
    clock = SetClock(before.arrival or NOON)
    Store(config, clock=clock, disk=SystemDisk(), on_failure=failures.append).close()
    _require(not failures, f"the store failed: {failures}")
    after = recover(directory / "journal", SystemDisk())
    _require(after.marks == before.marks, "a start has changed the marks")
    check_prefixes(scenario, after)


def resume(scenario: Scenario, directory: Path) -> None:
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
        for sender in scenario.senders:
            _send_rest(store, sender)
    finally:
        store.close()
    _require(not failures, f"the store failed: {failures}")
    after = recover(directory / "journal", SystemDisk())
    _require(after.number == before.number + 1, "the file's number is not the next one")
    check_complete(scenario, after)


def _send_rest(store: Store, sender: Sender) -> None:
    stream = store.open_stream(sender.dataset.name, sender.batch(1).schema)
    first = max(1, store.producers.durable(sender.name) - 1)
    for seq in range(first, sender.batches + 1):
        stream.push(sender.batch(seq), sender.name, seq)
    stream.end()
    while stream.next_ack() is not None:
        pass
    store.close_stream(stream)
