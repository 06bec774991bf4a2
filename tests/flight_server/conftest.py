"""A whole service on a free port, keys for it, and clients that speak plain Arrow Flight."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from pyarrow import flight

from flight_server.identity import Scope
from flight_server.keys import KeyStore
from flight_server.service import FlightConfig, FlightService
from storage.ports import SystemClock, SystemDisk
from storage.schemas import TICKS

# The machine decides how long an example takes; what a test says is true at any speed.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

HOUR = 3_600_000_000
CHANNEL = [
    # A server that was killed is tried again at once; connecting may take as long as it takes.
    *((f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "max")),
    # A client that does not read is full at once: windows that adapt grow beyond most answers.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 16),
]
REPOSITORY = Path(__file__).parents[2]
PROCESS = Path(__file__).with_name("flight_process.py")


@dataclass
class Caller:
    """A client with a key of its own."""

    client: flight.FlightClient
    options: flight.FlightCallOptions

    def get(self, ticket: dict[str, Any] | bytes) -> pa.Table:
        """Ask with a ticket and read the whole answer."""
        return self.stream(ticket).read_all()

    def stream(self, ticket: dict[str, Any] | bytes) -> flight.FlightStreamReader:
        data = ticket if isinstance(ticket, bytes) else json.dumps(ticket).encode()
        return self.client.do_get(flight.Ticket(data), self.options)

    def act(self, name: str, /, **body: Any) -> dict[str, Any]:
        """Carry out an action."""
        (result,) = self.client.do_action((name, json.dumps(body).encode()), self.options)
        answer: dict[str, Any] = json.loads(result.body.to_pybytes())
        return answer

    def open(self, schema: pa.Schema = TICKS.schema, *path: str) -> "Put":
        """Open a DoPut stream."""
        descriptor = flight.FlightDescriptor.for_path(*(path or ("ticks",)))
        return Put(*self.client.do_put(descriptor, schema, self.options))

    def put(
        self,
        *batches: pa.RecordBatch,
        dataset: str = "ticks",
        producer: str | None = None,
        first: int = 1,
    ) -> dict[str, int]:
        """Write batches, wait for all acks and return them as one."""
        stream = self.open(batches[0].schema, dataset)
        for seq, batch in enumerate(batches, start=first):
            stream.write(batch, producer, seq)
        return stream.finish()


@dataclass
class Put:
    """An open DoPut stream."""

    writer: flight.FlightStreamWriter
    reader: flight.FlightMetadataReader
    acks: list[dict[str, int]] = field(default_factory=list)

    def write(self, batch: pa.RecordBatch, producer: str | None = None, seq: int = 0) -> None:
        if producer is None:
            self.writer.write_batch(batch)
        else:
            mark = json.dumps({"producer": producer, "seq": seq}).encode()
            self.writer.write_with_metadata(batch, mark)

    def next_ack(self) -> dict[str, int] | None:
        """Wait for an ack; None when the server has sent the last."""
        message = self.reader.read()
        if message is None:
            return None
        ack: dict[str, int] = json.loads(message.to_pybytes())
        self.acks.append(ack)
        return ack

    def finish(self) -> dict[str, int]:
        """Say that was all; return the acks as one."""
        self.writer.done_writing()
        while self.next_ack():
            pass
        self.writer.close()  # raises what the server ended the stream with
        counts = ("rows", "quarantined", "duplicates")
        total = {name: sum(ack[name] for ack in self.acks) for name in counts}
        return {"seq": self.acks[-1]["seq"] if self.acks else 0, **total}


@dataclass
class House:
    """A running service."""

    service: FlightService
    keys: KeyStore
    failures: list[BaseException]

    @property
    def streams(self) -> int:
        """Streams that the server takes for running."""
        assert self.service._door is not None
        return self.service._door.streams

    def caller(self, *scopes: Scope, symbols: list[str] | None = None) -> Caller:
        """Make a key, with every scope unless told, and a client that uses it."""
        key = self.keys.create("model", scopes=scopes or list(Scope), symbols=symbols).key
        return caller_at(self.service.uri, key)


def config(directory: Path, location: str = "grpc://127.0.0.1:0", **changes: Any) -> FlightConfig:
    """Return the configuration of a service in a directory of its own."""
    values = {
        "location": location,
        "data_directory": directory,
        "hot_window_us": HOUR,
        "hot_memory_limit_bytes": 1 << 34,
        "source_priority": ("tastytrade", "demo"),
        "version": "1.2.3",
    }
    return FlightConfig(**{**values, **changes})


class Server:
    """A flight service in a process of its own, which can be killed."""

    def __init__(self, directory: Path, location: str = "grpc://127.0.0.1:0", *more: float) -> None:
        command = [sys.executable, str(PROCESS), str(directory), location, *map(str, more)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self.uri = self._said("ready")

    def _said(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # beside what the service logs
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise AssertionError(f"the process has ended before it said {word}")

    def stop(self) -> float:
        """Stop cleanly; return how many seconds that took."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        seconds = float(self._said("stopped"))
        self._reap()
        return seconds

    def kill(self) -> None:
        """End the process as a power cut would, and wait until it is gone."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def caller_at(uri: str, key: str, timeout: float = 30) -> Caller:
    """Return a client with a key."""
    headers = [(b"authorization", f"Bearer {key}".encode())]
    client = flight.connect(uri, generic_options=CHANNEL)
    return Caller(client, flight.FlightCallOptions(headers=headers, timeout=timeout))


def new_key(directory: Path) -> str:
    """Make a key with every scope in the control database of a service that may run or not."""
    with KeyStore(directory, SystemClock()) as keys:
        return keys.create("model", scopes=list(Scope)).key


@contextmanager
def serving(directory: Path, **changes: Any) -> Iterator[House]:
    """Run a service, and see to it that it does not fail unnoticed."""
    failures: list[BaseException] = []
    service = FlightService(
        config(directory, **changes),
        clock=SystemClock(),
        disk=SystemDisk(),
        on_failure=failures.append,
    )
    service.start()
    try:
        with KeyStore(directory, SystemClock()) as keys:
            yield House(service, keys, failures)
    finally:
        service.stop(0.1)
    assert failures == []


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self) -> int:
        return int(self.seconds * 1e6)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service for all tests of a module: each keeps to symbols of its own."""
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="module")
def anyone(house: House) -> Caller:
    """A caller who may do everything."""
    return house.caller()


def ticks(count: int = 1, **columns: Any) -> pa.RecordBatch:
    """Build ticks of now, a microsecond apart; ``columns`` replace what a test is about."""
    now = SystemClock().now() - count
    defaults = {
        "ts_event": [now + i for i in range(count)],
        "ts_recv": [now + i for i in range(count)],
        "symbol": "MNQ",
        "contract": columns.get("symbol", "MNQ"),
        "price": 20_000.0,
        "size": 1.0,
        "side": 0,
        "kind": 0,
        "flags": 1,
        "sequence": list(range(1, count + 1)),
        "source": "demo",
    }
    arrays = []
    for column in TICKS.schema:
        value = columns.get(column.name, defaults.get(column.name))
        values = value if isinstance(value, list) else [value] * count
        arrays.append(pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=TICKS.schema)


def told(error: flight.FlightError) -> dict[str, Any]:
    """Return what an error says to programs."""
    extra: dict[str, Any] = json.loads(error.extra_info)
    return extra


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what the server is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
