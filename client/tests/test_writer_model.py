"""The writer's core and its spool against a perfect model, through every disaster we can name.

The machine below is the engine without threads and sockets: it moves batches between an ``Outbox``,
a real ``Spool`` directory and a server made of a list, loses connections, acks and whole processes
in between, and knows at every moment which rows must not get lost.
"""

import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tickflight
from tickflight import link, records
from tickflight.outbox import Ack, Batch, Outbox
from tickflight.records import Title
from tickflight.rows import joined, size_of, unpack
from tickflight.spool import Spool
from tickflight.spooler import Spooler
from tickflight.testing import FakeServer, Fate

MEMORY_BYTES = 2_000
SPOOL_BYTES = 12_000
UNFINISHED = records.encode(records.Kind.BATCH, b"never finished", seq=7, rows=1)


class Server:
    """Takes batches as the contract says."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.durable: dict[str, int] = {}

    def take(self, title: Title, seq: int, rows: list[int]) -> None:
        expected = self.durable.get(title.producer, 0) + 1
        assert seq <= expected, f"{title.producer} jumped to {seq}, {expected} was expected"
        if seq == expected:
            self.rows += rows
            self.durable[title.producer] = seq


class WriterMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.server = Server()
        self.written = 0  # row numbers given out
        self.refused: set[int] = set()
        self.maybe_lost: set[int] = set()  # were only in the memory of a process that died
        self.lives = 0
        self.now = 0.0
        self.open()

    def open(self) -> None:
        self.lives += 1
        title = Title(f"life-{self.lives}", "ticks")
        self.spooler = Spooler(Spool(self.directory, limit_bytes=SPOOL_BYTES))
        self.own = Outbox(title, memory_limit=MEMORY_BYTES)
        leftovers = self.spooler.spool.leftovers
        self.lanes = [*map(Outbox.of_earlier_life, leftovers), self.own]
        self.wire: deque[tuple[Title, int, list[int]]] = deque()
        self.in_memory: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "own"):
            try:
                self.settle()
            finally:
                self.spooler.spool.close()
                shutil.rmtree(self.directory)

    def settle(self) -> None:
        """Give the server all the time it needs, then compare with what was written."""
        for _ in range(10_000):
            if all(lane.settled for lane in self.lanes):
                break
            self.now += 1
            self.send()
            while self.wire:
                self.arrive()
            self.ack()
        self.release()
        assert self.spooler.spool.size == 0
        arrived = self.server.rows
        assert arrived == sorted(set(arrived)), "rows doubled or out of order"
        missing = set(range(self.written)) - self.refused - set(arrived)
        assert missing <= self.maybe_lost

    # What the source does.

    @rule(rows=st.integers(1, 12), columns=st.sampled_from(["row", "number"]))
    def write(self, rows: int, columns: str) -> None:
        numbers = list(range(self.written, self.written + rows))
        self.written += rows
        batch = pa.RecordBatch.from_pydict({columns: numbers})
        if not self.own.fits(size_of(batch)):
            self.refused.update(numbers)
            return
        size, kind = size_of(batch), batch.schema
        self.own.put(batch, rows=rows, size=size, kind=kind, now=self.now)
        self.in_memory.update(numbers)

    @rule()
    def time_passes(self) -> None:
        self.now += 0.02

    # What the stream does.

    @property
    def lane(self) -> Outbox:
        return next((lane for lane in self.lanes if not lane.settled), self.own)

    @rule()
    def send(self) -> None:
        batch = self.lane.next_batch(self.now)
        if batch is not None:
            self.wire.append((self.lane.title, batch.seq, self.load(batch)))

    def load(self, batch: Batch) -> list[int]:
        if batch.parts is not None:
            rows = joined(batch.parts)
        else:
            assert batch.place is not None
            rows = unpack(Spool.read(batch.place))
        return list(rows.column(0).to_pylist())

    @precondition(lambda self: self.wire)
    @rule()
    def arrive(self) -> None:
        title, seq, rows = self.wire.popleft()
        self.server.take(title, seq, rows)

    @rule()
    def ack(self) -> None:
        for lane in self.lanes:
            durable = self.server.durable.get(lane.title.producer)
            if durable is not None:
                lane.acked(Ack(durable))

    @rule()
    def lose_connection(self) -> None:
        self.wire.clear()
        self.lane.rewind()

    # What the disk does.

    @rule()
    def spill(self) -> None:
        while self.own.seal():
            pass
        batches = self.own.to_spill(500)
        if batches:
            places = self.spooler.spill(self.own.title, batches, durable=self.own.durable)
            for batch, place in zip(batches, places, strict=False):
                self.own.spilled(batch, place)
                self.in_memory -= set(self.load(batch))

    @rule()
    def release(self) -> None:
        self.spooler.release([(lane.title, lane.durable) for lane in self.lanes])

    @rule(written=st.integers(0, len(UNFINISHED) - 1), zeros=st.integers(0, 50))
    def crash(self, written: int, zeros: int) -> None:
        """The process dies, perhaps in the middle of writing a record; the next one opens."""
        files = sorted(self.directory.glob("*.spool"))
        self.spooler.spool.close()
        if files:
            with files[-1].open("ab") as file:
                file.write(UNFINISHED[:written] + bytes(zeros))
        self.maybe_lost |= self.in_memory
        self.open()

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "own"):
            assert 0 <= self.own.memory_bytes <= max(MEMORY_BYTES, 1_000)
            assert self.spooler.spool.size <= SPOOL_BYTES + 200  # a title more at the most
            assert self.own.in_flight >= 0
            assert self.own.rows_durable <= self.own.rows_written


WriterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestWriterModel = WriterMachine.TestCase


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    script=st.lists(st.sampled_from(Fate), max_size=12),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    spooled=st.booleans(),
    held=st.booleans(),
)
def test_each_row_arrives_once_in_order_whatever_happens_to_the_connection(
    ticks: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    script: list[Fate],
    sizes: list[int],
    *,
    spooled: bool,
    held: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "FIRST_DELAY_SECONDS", 0.001)
        patch.setattr(link, "MAX_DELAY_SECONDS", 0.002)
        with (
            FakeServer() as server,
            tickflight.connect(server.uri, server.api_key) as client,
        ):
            server.script.extend(script)
            if held:
                server.acks.clear()
            spool = tmp_path_factory.mktemp("spool") if spooled else None
            limits = tickflight.WriterLimits(memory_bytes=1_000_000)
            with client.writer("ticks", spool=spool, limits=limits) as writer:
                first = 0
                for size in sizes:
                    writer.write(ticks(first, size))
                    first += size
                server.acks.set()
                writer.flush(20)
            assert server.rows("ticks")["sequence"].to_pylist() == list(range(first))
