"""The measurements, each a row of the report with its floor."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.caller import Caller
from bench.floors import sqlite_rows_per_second
from bench.service import Service

PRODUCERS = 4
FEED_RATE = 10_000
FEED_BATCH_ROWS = 100
LATEST_ROWS = 1_000
WARM_UP_CALLS = 50


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the report.

    Attributes:
        name: What was done.
        value: How much of ``unit``.
        floor: The same without us.
        details: Everything else that was seen.
    """

    name: str
    value: float
    unit: str
    floor: float
    floor_is: str
    details: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Value over floor."""
        return self.value / self.floor


def ingest(service: Service, seconds: float, directory: Path) -> Iterator[Measure]:
    """Four producers as fast as acks allow, beside a server that forgets and beside SQLite."""
    for rows in (1_000, 100):
        with bare_server(LATEST_ROWS) as bare:
            floor = _produce(bare, "none", rows, seconds / 4, f"floor{rows}")
        ours = _produce(service.uri, service.key, rows, seconds, f"bench{rows}")
        acked = sum(part["rows"] for part in ours)
        yield Measure(
            name=f"ingest, {PRODUCERS} producers, {rows}-row batches, durable acks",
            value=acked / max(part["seconds"] for part in ours),
            unit="ticks/s",
            floor=sum(part["rows"] / part["seconds"] for part in floor),
            floor_is="bare Flight that forgets",
            details={
                "ack_ms_p50": max(part["ack_ms_p50"] for part in ours),
                "ack_ms_p99": max(part["ack_ms_p99"] for part in ours),
                "sqlite_rows_s": sqlite_rows_per_second(rows, 2.0, directory),
            },
        )


def latest(service: Service, calls: int) -> Iterator[Measure]:
    """``latest`` while a feed runs; calls take turns with the floor's."""
    ticket = {"op": "latest", "symbols": ["MNQ"], "limit": LATEST_ROWS}
    seconds = 10 + calls * 0.01
    with (
        bare_server(LATEST_ROWS) as bare,
        _feeding(service, seconds),
    ):
        ours = Caller(service.uri, service.key, ticket)
        floor = Caller(bare, "none", b"ready")
        while ours.call()[1] < LATEST_ROWS:
            time.sleep(0.1)
        for caller in (ours, floor):
            for _ in range(WARM_UP_CALLS):
                caller.call()
        pairs = np.array([(ours.call()[0], floor.call()[0]) for _ in range(calls)]) * 1000
    (p50, floor_p50), (p99, floor_p99) = np.percentile(pairs, (50, 99), axis=0).tolist()
    yield Measure(
        name=f"latest, {LATEST_ROWS} rows, beside {FEED_RATE} ticks/s",
        value=p50,
        unit="ms p50",
        floor=floor_p50,
        floor_is="bare Flight, ready table",
        details={"p99": p99, "floor_p99": floor_p99, "max": float(pairs[:, 0].max())},
    )


@contextmanager
def bare_server(table_rows: int) -> Iterator[str]:
    """Run the floor's server in a process of its own; yield its URI."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.floors", str(table_rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def _feeding(service: Service, seconds: float) -> Iterator[None]:
    feed = _start(
        service.uri, service.key, f"feed{time.time_ns()}", FEED_BATCH_ROWS, seconds, FEED_RATE
    )
    try:
        yield
    finally:
        feed.terminate()
        feed.wait()


def _produce(
    uri: str, key: str, rows: int, seconds: float, name: str
) -> Sequence[dict[str, float]]:
    started = [_start(uri, key, f"{name}-{n}", rows, seconds, None) for n in range(PRODUCERS)]
    outputs = [process.communicate()[0] for process in started]
    return [json.loads(output) for output in outputs]


def _start(
    uri: str, key: str, name: str, rows: int, seconds: float, rate: float | None
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.producer", uri, name, f"--rows={rows}"]
    command += [f"--seconds={seconds}", *([] if rate is None else [f"--rate={rate}"])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(f"{key}\n")
    process.stdin.flush()
    return process
