"""The other side of ingest's seams: small enough to be sure of, and the real one."""

# ruff: noqa: ARG002 - a fake has the signature of what it stands for

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tickflight
from flight_server.identity import Scope
from flight_server.keys import KeyStore
from flight_server.service import FlightConfig, FlightService
from storage.ports import SystemClock, SystemDisk
from storage.schemas import DATASETS
from tickflight import Overflow

START = 1_795_000_000_000_000


@dataclass
class FakeClock:
    """Time that passes only while somebody sleeps, and then at once."""

    time: float = 0.0
    slept: list[float] = field(default_factory=list)
    offset: int = START

    def now(self) -> int:
        return self.offset + round(self.time * 1_000_000)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


@dataclass
class FakeStats:
    rows_quarantined: int = 0
    rows_duplicate: int = 0


@dataclass
class FakeWriter:
    service: "FakeService"
    dataset: str
    producer: str | None
    first_seq: int
    on_overflow: Callable[[Overflow], None] | None
    stats: FakeStats = field(default_factory=FakeStats)
    batches: list[pa.RecordBatch | pa.Table] = field(default_factory=list)
    closed: bool = False

    def write(self, data: pa.RecordBatch | pa.Table, *, timeout: float | None = None) -> None:
        error = self.service.write_errors.get(self.dataset)
        if error is not None:
            raise error
        if self.service.loss is not None and self.on_overflow is not None:
            loss, self.service.loss = self.service.loss, None
            self.on_overflow(loss)
            return
        self.batches.append(data)
        self.service.written.append((self.dataset, data))

    def flush(self, timeout: float | None = None) -> None:
        if self.producer is not None:
            self.service.durable[self.producer] = self.first_seq - 1 + len(self.batches)

    def close(self, timeout: float | None = None) -> None:
        self.closed = True


@dataclass
class FakeAnswer:
    table: pa.Table

    def arrow(self) -> pa.Table:
        return self.table


@dataclass
class FakeService:
    """Keeps what it is given, and a registry of files with the service's rules."""

    written: list[tuple[str, pa.RecordBatch | pa.Table]] = field(default_factory=list)
    writers: list[FakeWriter] = field(default_factory=list)
    newest: dict[str, pa.Table] = field(default_factory=dict)
    asked: list[tuple[str, tuple[str, ...], str | None]] = field(default_factory=list)
    write_errors: dict[str, Exception] = field(default_factory=dict)
    read_error: Exception | None = None
    loss: Overflow | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    in_bulk: dict[str, int] = field(default_factory=dict)

    def bulk(self, dataset: str, job: str, *, first_seq: int = 1) -> tickflight.BulkWriter:
        raise AssertionError(f"nothing of {dataset} is to go past memory as {job} {first_seq}")

    def writer(
        self,
        dataset: str,
        *,
        name: str = "sdk",
        producer: str | None = None,
        first_seq: int = 1,
        spool: str | Path | None = None,
        on_overflow: Callable[[Overflow], None] | None = None,
    ) -> FakeWriter:
        self.writers.append(FakeWriter(self, dataset, producer, first_seq, on_overflow))
        return self.writers[-1]

    def latest(
        self,
        symbols: str | Iterable[str],
        *,
        dataset: str = "ticks",
        limit: int = 100,
        source: str | None = None,
        timeout: float | None = None,
    ) -> FakeAnswer:
        if self.read_error is not None:
            raise self.read_error
        self.asked.append((dataset, tuple(symbols), source))
        return FakeAnswer(self.newest.get(dataset, DATASETS[dataset].schema.empty_table()))

    def action(self, name: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        assert body is not None
        digest = str(body["digest"])
        if name == "files.complete":
            self.files[digest] |= {"state": "complete", "rows": body["rows"]}
            return {}
        assert name == "files.register"
        known = self.files.setdefault(
            digest,
            {
                "number": len(self.files) + 1,
                "state": "new",
                "options": body["options"],
                "producer": body["producer"],
            },
        )
        producer = known["producer"]
        durable, in_bulk = self.durable.get(producer, 0), self.in_bulk.get(producer, 0)
        answer = known | {"durable_seq": durable, "bulk_seq": in_bulk}
        if known["state"] == "new":
            known["state"] = "partial"
        return answer

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """Every row written to a dataset, with instants in µs since 1970."""
        found = []
        for name, data in self.written:
            if name == dataset:
                table = data if isinstance(data, pa.Table) else pa.Table.from_batches([data])
                for index, column in enumerate(table.schema):
                    if pa.types.is_timestamp(column.type):
                        plain = table.column(index).cast(pa.int64())
                        table = table.set_column(index, column.name, plain)
                found += table.to_pylist()
        return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URI of a running server and a key to it."""
    failures: list[BaseException] = []
    service = FlightService(
        FlightConfig(
            location="grpc://127.0.0.1:0",
            data_directory=tmp_path / "data",
            hot_window_us=3_600_000_000,
            hot_memory_limit_bytes=2**30,
            source_priority=("tastytrade", "sierra", "import", "demo"),
            version="test",
        ),
        clock=SystemClock(),
        disk=SystemDisk(),
        on_failure=failures.append,
    )
    service.start()
    with KeyStore(tmp_path / "data", SystemClock()) as keys:
        key = keys.create("tests", scopes=list(Scope))
    try:
        yield service.uri, key.key
    finally:
        service.stop(drain_seconds=1)
    assert not failures


@pytest.fixture
def client(server: tuple[str, str]) -> Iterator[tickflight.Client]:
    with tickflight.connect(*server) as client:
        yield client


@pytest.fixture
def own_env() -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Make an environment with these variables and no other of ours."""

    def make(changes: Mapping[str, str]) -> dict[str, str]:
        rest = {name: value for name, value in os.environ.items() if "TICKFLIGHT_" not in name}
        return {**rest, **changes}

    return make
