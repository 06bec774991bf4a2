"""The append section: the one place where rows get their positions.

One thread takes whatever waits on all streams, so it needs no lock round the hot stores, and a
thousand small batches cost little more than one large one.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.errands import Errands
from storage.errors import StorageError, StoreClosedError
from storage.intake import Intake, intake_of
from storage.journal import Journal
from storage.journal_making import Appended
from storage.ports import Clock
from storage.producers import AppendStream, Mark, ProducerTable
from storage.quarantine import set_aside
from storage.schemas import QUARANTINE
from storage.validation import Plausibility

BATCHES_A_PASS: Final = 64
"""Batches of a stream joined at a time: enough to spread the cost, few enough to stay in cache."""

HotStore = ColumnarStore | BatchedStore
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Lane:
    stream: AppendStream
    store: HotStore
    intake: Intake


class Appender:
    """Moves rows from streams into the hot stores, and hands them to the journal."""

    def __init__(
        self,
        stores: Mapping[str, HotStore],
        journal: Journal,
        producers: ProducerTable,
        clock: Clock,
        on_failure: Callable[[BaseException], None],
        on_appended: Callable[[], None],
    ) -> None:
        self._stores = stores
        self._journal = journal
        self._producers = producers
        self._clock = clock
        self._on_failure = on_failure
        self._on_appended = on_appended
        self._rules = {
            name: Plausibility(store.dataset, store.dictionaries)
            for name, store in stores.items()
            if isinstance(store, ColumnarStore)
        }
        quarantine = stores[QUARANTINE.name]
        assert isinstance(quarantine, BatchedStore)  # noqa: S101 - for the type checker
        self._quarantine = quarantine
        self._lanes: tuple[_Lane, ...] = ()
        self._lanes_lock = threading.Lock()
        self._wake = threading.Event()
        self._errands = Errands(self._wake)
        self._stopping = False
        self._arrival = 0
        self._thread = threading.Thread(target=self._run, name="appender", daemon=True)

    def start(self, arrival: int) -> None:
        """Begin to take batches; ``arrival`` is the newest instant any row has arrived at."""
        self._arrival = arrival
        self._thread.start()

    def open(self, dataset: str, schema: pa.Schema) -> AppendStream:
        """Return a stream into one dataset.

        Raises:
            SchemaMismatchError: The schema is not the dataset's.
            StoreClosedError: The store is shutting down.
        """
        store = self._stores[dataset]
        intake = intake_of(store, self._rules.get(dataset), schema)
        stream = AppendStream(self._producers, self._wake)
        with self._lanes_lock:
            if self._stopping:
                raise StoreClosedError("the server is shutting down; send to it again later")
            self._lanes = (*self._lanes, _Lane(stream, store, intake))
        return stream

    def close(self, stream: AppendStream) -> None:
        """Forget a stream once its batches are taken: their numbers are, so they must be, too."""
        stream.wait_until_taken()
        stream.release()
        with self._lanes_lock:
            self._lanes = tuple(lane for lane in self._lanes if lane.stream is not stream)

    def between_appends(self, action: Callable[[], T]) -> T:
        """Have the appending thread do something while nothing is being appended.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        return self._errands.ask(action, self._thread)

    def stop(self) -> None:
        """Append what waits, then end every stream."""
        with self._lanes_lock:
            self._stopping = True
        self._wake.set()
        self._thread.join()

    def fail_streams(self, error: StorageError) -> None:
        """End every open stream with ``error``."""
        for lane in self._lanes:
            lane.stream.fail(error)

    @property
    def streams(self) -> int:
        """Streams open."""
        return len(self._lanes)

    @property
    def arrival(self) -> int:
        """Newest instant any row has arrived at, µs; ahead of a wall clock that was set back."""
        return self._arrival

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                self._errands.run()
                progress = [self._take(lane) for lane in self._lanes]
                if any(progress):
                    self._on_appended()
                else:
                    if self._stopping:
                        return
                    self._wake.wait()
        except BaseException as error:  # noqa: BLE001 - the process can't go on half alive
            self._on_failure(error)

    def _take(self, lane: _Lane) -> bool:
        taken = lane.stream.take(BATCHES_A_PASS)
        if not taken:
            return False
        # Arrival never runs backwards, whatever the wall clock does: it names the journal's hour.
        self._arrival = max(self._arrival, self._clock.now())
        start, bad_start = lane.store.end, self._quarantine.end
        bad = duplicates = 0
        for batch in _joined([batch for _, batch in taken]):
            outcome = lane.intake.append(batch, self._arrival)
            duplicates += outcome.duplicates
            if outcome.rejected:
                rows = set_aside(lane.store.dataset, batch, outcome.rejected, self._arrival)
                self._quarantine.append(rows)
                bad += rows.num_rows
        good = lane.store.end - start
        if lane.store is self._quarantine:
            good -= bad  # what was put aside went to the same place
        mark = Mark(lane.stream, taken[-1][0], good, bad, duplicates)
        group = [Appended(lane.store, start, lane.store.end, self._arrival, (mark,))]
        if bad and lane.store is not self._quarantine:
            end = self._quarantine.end
            group.append(Appended(self._quarantine, bad_start, end, self._arrival, ()))
        self._journal.submit(group)
        return True


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Join batches where their dictionaries can be: not with nulls, or too long for the indices."""
    if len(batches) == 1:
        return batches
    try:
        return [pa.concat_batches(batches)]
    except pa.ArrowException:
        return batches
