"""The real store against a perfect one, through crashes, take-overs and clocks that jump.

The model is a list of rows in the order they were taken, and a number a producer. A crash is a copy
of the journal's directory, write-ahead log and all, opened as a new life: what was durable before
the copy must be in it exactly once and in order, and nothing else. So that the model knows what was
durable, the disk is either quick (and waited for) or stalled: then rows are visible at most.
"""

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.errors import SequenceError
from storage.journal_file import JournalWriter, Record
from storage.producers import AppendStream
from storage.schemas import TICKS
from storage.store import Store
from tests.storage.conftest import HOUR, NOON, Lab, stored, ticks, until

PRODUCERS = st.sampled_from(["p", "q"])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.lives = 0
        self.taken: list[int] = []  # sequences in the order the store took them
        self.batches: dict[str, list[list[int]]] = {"p": [], "q": []}
        self.durable: dict[str, int] = {"p": 0, "q": 0}
        self.disk = threading.Event()
        self.disk.set()
        self.patch = pytest.MonkeyPatch()
        self.streams: dict[str, AppendStream] = {}
        self.rejected = 0
        self.next_sequence = 1
        self.epoch = 0

    @initialize()
    def start(self) -> None:
        commit = JournalWriter.commit

        def commit_once_the_disk_answers(writer: JournalWriter, records: list[Record]) -> None:
            self.disk.wait()
            commit(writer, records)

        self.patch.setattr(JournalWriter, "commit", commit_once_the_disk_answers)
        self.lab = Lab(self.root / "0")
        self.opened(self.lab.open())

    def opened(self, store: Store) -> None:
        self.store, self.streams = store, {}
        assert store.epoch > self.epoch
        self.epoch = store.epoch

    def teardown(self) -> None:
        self.disk.set()
        if hasattr(self, "lab"):
            self.lab.close_all()
            assert self.lab.failures == []
        self.patch.undo()
        shutil.rmtree(self.root)

    def fresh(self, count: int) -> list[int]:
        first, self.next_sequence = self.next_sequence, self.next_sequence + count
        return list(range(first, first + count))

    def batch(self, sequences: list[int], **columns: Any) -> pa.RecordBatch:
        instants = [NOON + sequence for sequence in sequences]
        return ticks(len(sequences), sequence=sequences, ts_event=instants, **columns)

    def stream(self, producer: str) -> AppendStream:
        if producer not in self.streams:
            self.streams[producer] = self.store.open_stream("ticks", TICKS.schema)
        return self.streams[producer]

    def take(self, producer: str, sequences: list[int], batch: pa.RecordBatch) -> None:
        """Send the next batch of a producer."""
        seq = len(self.batches[producer]) + 1
        self.stream(producer).push(batch, producer, seq)
        self.batches[producer].append(sequences)
        self.taken += sequences
        self.settle()

    def settle(self) -> None:
        """Wait until readers see what was taken and, when the disk answers, it is durable."""
        until(lambda: self.store.datasets()["ticks"].rows == len(self.taken))
        if self.disk.is_set():
            self.durable = {name: len(batches) for name, batches in self.batches.items()}
            until(lambda: self.marks() == self.durable)

    def marks(self) -> dict[str, int]:
        return {name: self.store.producers.durable(name) for name in self.batches}

    # What producers do

    @rule(producer=PRODUCERS, count=st.integers(0, 4))
    def append(self, producer: str, count: int) -> None:
        sequences = self.fresh(count)
        self.take(producer, sequences, self.batch(sequences))

    @precondition(lambda self: self.disk.is_set())
    @rule(count=st.integers(1, 3))
    def append_without_a_number(self, count: int) -> None:
        sequences = self.fresh(count)
        stream = self.store.open_stream("ticks", TICKS.schema)
        stream.push(self.batch(sequences))
        stream.end()
        while stream.next_ack():
            pass
        self.store.close_stream(stream)
        self.taken += sequences

    @rule(producer=PRODUCERS, data=st.data())
    def append_with_bad_rows_and_repeats(self, producer: str, data: st.DataObject) -> None:
        sequences = self.fresh(2)
        old = self.taken[-3:]
        rows = data.draw(st.permutations([*sequences, *old, -1]))
        sizes = [-1.0 if sequence == -1 else 1.0 for sequence in rows]
        kept = [sequence for sequence in rows if sequence in sequences]
        self.take(producer, kept, self.batch(list(rows), size=sizes))
        self.rejected += 1

    @rule(producer=PRODUCERS, data=st.data())
    def resend(self, producer: str, data: st.DataObject) -> None:
        sent = self.batches[producer]
        if sent:
            first = data.draw(st.integers(1, len(sent)))
            for seq in range(first, len(sent) + 1):
                self.stream(producer).push(self.batch(sent[seq - 1]), producer, seq)

    @rule(producer=PRODUCERS, jump=st.sampled_from([-1, 0, 2, 5]))
    def jump(self, producer: str, jump: int) -> None:
        following = len(self.batches[producer]) + 1
        seq = following + jump if jump > 0 else jump
        with pytest.raises(SequenceError) as caught:
            self.stream(producer).push(self.batch([10**9]), producer, seq)
        assert caught.value.expected == following

    @rule(producer=PRODUCERS)
    def take_over(self, producer: str) -> None:
        older = self.streams.pop(producer, None)
        sequences = self.fresh(1)
        self.take(producer, sequences, self.batch(sequences))
        if older is not None and older.producer_name is not None:
            seq = len(self.batches[producer]) + 1
            with pytest.raises(SequenceError):
                older.push(self.batch([10**9]), producer, seq)
            self.store.close_stream(older)

    @precondition(lambda self: self.disk.is_set())
    @rule(producer=PRODUCERS)
    def end_a_stream(self, producer: str) -> None:
        stream = self.streams.pop(producer, None)
        if stream is None or stream.producer_name is None:
            return
        stream.end()
        acks = list(iter(stream.next_ack, None))
        self.store.close_stream(stream)
        for ack in acks:
            assert ack.seq <= len(self.batches[producer])

    # What the world does

    @rule()
    def the_hour_ends(self) -> None:
        self.lab.clock.instant += HOUR

    @rule(seconds=st.integers(1, 100_000))
    def the_clock_steps_back(self, seconds: int) -> None:
        self.lab.clock.instant -= seconds * 1_000_000

    @rule()
    def the_disk_stalls(self) -> None:
        self.disk.clear()

    @rule()
    def the_disk_answers_again(self) -> None:
        self.disk.set()
        self.settle()

    @rule()
    def restart(self) -> None:
        self.the_disk_answers_again()
        self.lab.close(self.store)
        self.opened(self.lab.open(self.directory))
        assert self.marks() == self.durable

    @rule(times=st.integers(1, 2))
    def crash(self, times: int) -> None:
        """Start a new life on a copy, once or twice in a row."""
        for _ in range(times):
            before = self.directory
            self.lives += 1
            shutil.copytree(before / "journal", self.directory / "journal")
            self.disk.set()
            self.lab.close(self.store)
            self.opened(self.lab.open(self.directory))
        assert self.marks() == self.durable
        for producer, batches in self.batches.items():
            for batch in batches[self.durable[producer] :]:
                self.taken = [sequence for sequence in self.taken if sequence not in batch]
            del batches[self.durable[producer] :]

    @property
    def directory(self) -> Path:
        return self.root / str(self.lives)

    # What must always be true

    @invariant()
    def every_row_is_there_once_and_in_its_order(self) -> None:
        if not hasattr(self, "lab"):
            return
        assert [row["sequence"] for row in stored(self.store)] == sorted(self.taken)

    @invariant()
    def positions_are_dense_and_in_the_order_of_arrival(self) -> None:
        if not hasattr(self, "lab"):
            return
        ticks = self.store._stores["ticks"]
        batches = ticks.journal_batches(ticks.base, ticks.end)
        arrived = [sequence for batch in batches for sequence in batch["sequence"].to_pylist()]
        assert arrived == self.taken


TestStore = Machine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
