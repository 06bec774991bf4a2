"""kill -9, again and again: what was acknowledged is there once, and nothing is there twice."""

import random
import socket
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from tests.flight_server.conftest import Put, Server, caller_at, new_key, ticks, until

KILLS = 5
PRODUCERS = 4
BATCHES_BETWEEN_KILLS = 25
BATCHES_IN_FLIGHT = 40


def free_location() -> str:
    """A port that a server can have again after each death."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"grpc://127.0.0.1:{probe.getsockname()[1]}"


class Producer(threading.Thread):
    """Writes without end, keeps what is not acknowledged, and sends it again after a break."""

    def __init__(self, name: str, location: str, key: str, enough: threading.Event) -> None:
        super().__init__(name=name)
        self.location, self.key, self.enough = location, key, enough
        self.unacked: deque[tuple[int, pa.RecordBatch]] = deque()
        self.acked_rows: set[int] = set()
        self.sent_rows = 0
        self.acked = 0
        self.made = 0

    def run(self) -> None:
        while not self.enough.is_set() or self.unacked:
            with suppress(flight.FlightError, pa.ArrowException, OSError):
                self.write()

    def write(self) -> None:
        """Write through one connection until it breaks, or all is acknowledged."""
        caller = caller_at(self.location, self.key, timeout=60)
        stream = caller.open()
        for seq, batch in tuple(self.unacked):
            stream.write(batch, self.name, seq)
        while not self.enough.is_set():
            seq, batch = self.next_batch()
            stream.write(batch, self.name, seq)
            while len(self.unacked) > BATCHES_IN_FLIGHT:
                if self.hear(stream) is None:
                    return
        stream.writer.done_writing()
        while self.unacked and self.hear(stream):
            pass

    def next_batch(self) -> tuple[int, pa.RecordBatch]:
        self.made += 1
        count = random.Random(self.made).randint(0, 50)
        sequences = list(range(self.sent_rows, self.sent_rows + count))
        self.sent_rows += count
        batch = ticks(count, symbol=self.name, sequence=sequences)
        self.unacked.append((self.made, batch))
        return self.made, batch

    def hear(self, stream: Put) -> dict[str, int] | None:
        ack = stream.next_ack()
        while ack is not None and self.unacked and self.unacked[0][0] <= ack["seq"]:
            self.acked, batch = self.unacked.popleft()
            self.acked_rows.update(batch["sequence"].to_pylist())
        return ack


@pytest.mark.slow
def test_four_producers_lose_and_repeat_nothing_over_five_kills(tmp_path: Path) -> None:
    location, key, enough = free_location(), new_key(tmp_path), threading.Event()
    server = Server(tmp_path, location)
    producers = [Producer(f"P{n}", location, key, enough) for n in range(PRODUCERS)]
    for producer in producers:
        producer.start()
    epochs = []
    for _ in range(KILLS):
        marks = [producer.acked for producer in producers]
        until(
            lambda marks=marks: all(  # type: ignore[misc]
                producer.acked >= mark + BATCHES_BETWEEN_KILLS
                for producer, mark in zip(producers, marks, strict=True)
            ),
            seconds=60,
        )
        server.kill()
        acknowledged = [set(producer.acked_rows) for producer in producers]
        server = Server(tmp_path, location)
        caller = caller_at(location, key)
        epochs.append(caller.act("status")["epoch"])
        for producer, rows in zip(producers, acknowledged, strict=True):
            assert rows <= set(sequences(caller, producer.name))
    enough.set()
    for producer in producers:
        producer.join(60)
        assert not producer.is_alive()
    caller = caller_at(location, key)
    for producer in producers:
        assert sequences(caller, producer.name) == list(range(producer.sent_rows))
    assert epochs == list(range(2, KILLS + 2))
    server.stop()


def sequences(caller: Any, symbol: str) -> list[int]:
    ticket = {"op": "range", "dataset": "ticks", "symbols": [symbol], "start": 0, "end": "now"}
    found: list[int] = caller.get({**ticket, "columns": ["sequence"]})["sequence"].to_pylist()
    return sorted(found)
