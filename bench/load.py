"""What a soak does to the service: readers that stay, writers that come and go."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

import tickflight
from bench.caller import Caller
from bench.market import ticks
from tickflight.errors import TickflightError

LATEST_SECONDS: Final = 0.05
LATEST_ROWS: Final = 1_000
RANGE_SECONDS: Final = 60.0
RANGE: Final = {"op": "range", "dataset": "ticks", "symbols": ["MNQ"], "start": "-5m", "end": "now"}
RECONNECT_SECONDS: Final = 1.0
WRITERS: Final = 2
WRITER_ROWS: Final = 100


@dataclass(slots=True)
class Seen:
    """What happened since the last look; appended to by one thread, taken by another."""

    latest_seconds: list[float] = field(default_factory=list)
    range_seconds: list[float] = field(default_factory=list)
    range_rows: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Return the figures, latencies in milliseconds."""
        latest = np.array(self.latest_seconds or [float("nan")]) * 1000
        return {
            "latest_calls": len(self.latest_seconds),
            "latest_ms_p50": round(float(np.percentile(latest, 50)), 3),
            "latest_ms_p99": round(float(np.percentile(latest, 99)), 3),
            "range_ms": [round(seconds * 1000, 1) for seconds in self.range_seconds],
            "range_rows": self.range_rows,
            "writers": len(self.connections),
            "failures": self.failures,
        }


class Load:
    """Readers and writers in threads; as a context, they run until its end."""

    def __init__(self, uri: str, key: str) -> None:
        self._uri = uri
        self._key = key
        self._seen = Seen()
        self._stop = threading.Event()
        jobs: list[tuple[float, Callable[[], None]]] = [
            (LATEST_SECONDS, self._latest_reader()),
            (RANGE_SECONDS, self._range_reader()),
            *((RECONNECT_SECONDS, self._writer(n)) for n in range(WRITERS)),
        ]
        self._threads = [threading.Thread(target=self._repeat, args=job) for job in jobs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> Seen:
        """Return what was seen since the last call."""
        seen, self._seen = self._seen, Seen()
        return seen

    def _repeat(self, seconds: float, job: Callable[[], None]) -> None:
        while not self._stop.wait(seconds):
            try:
                job()
            except Exception as error:  # noqa: BLE001 - a soak counts failures, and goes on
                self._seen.failures.append(f"{type(error).__name__}: {error}"[:200])

    def _latest_reader(self) -> Callable[[], None]:
        ticket = {"op": "latest", "symbols": ["MNQ"], "limit": LATEST_ROWS}
        caller = Caller(self._uri, self._key, ticket)
        return lambda: self._seen.latest_seconds.append(caller.call()[0])

    def _range_reader(self) -> Callable[[], None]:
        caller = Caller(self._uri, self._key, RANGE)

        def read() -> None:
            seconds, rows = caller.drain()
            self._seen.range_seconds.append(seconds)
            self._seen.range_rows.append(rows)

        return read

    def _writer(self, number: int) -> Callable[[], None]:
        """Return a job that connects, writes a few rows durably, and leaves."""
        source = f"soak{number}"

        def write() -> None:
            rows = next(ticks(source, WRITER_ROWS, time.time_ns() // 1000))
            with tickflight.connect(self._uri, self._key) as client:
                try:
                    with client.writer("ticks", name=source) as writer:
                        writer.write(rows)
                        writer.flush(timeout=RANGE_SECONDS)
                except TickflightError as error:
                    self._seen.failures.append(f"writer: {error}"[:200])
                    return
            self._seen.connections.append(number)

        return write
