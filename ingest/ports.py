"""The seams of ingest: a clock, and the part of the SDK's client that it uses."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa

from tickflight import Overflow


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> int:
        """Microseconds since 1970, UTC; may jump, as wall clocks do."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    async def sleep(self, seconds: float) -> None:
        """Let others run for so long."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """See ``Clock.now``."""
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        """See ``Clock.monotonic``."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See ``Clock.sleep``."""
        await asyncio.sleep(seconds)


class WriterStats(Protocol):
    """What became of the rows of one writer."""

    @property
    def rows_quarantined(self) -> int:
        """Rows that can't be, and are in ``quarantine``."""

    @property
    def rows_duplicate(self) -> int:
        """Rows that the service had."""


class RowWriter(Protocol):
    """``tickflight.Writer``: an ordered, acknowledged way into one dataset."""

    @property
    def stats(self) -> WriterStats:
        """What became of the rows so far."""

    def write(self, data: pa.RecordBatch | pa.Table, *, timeout: float | None = None) -> None:
        """Take rows; blocks while neither the service nor the spool can."""

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything written is durable."""

    def close(self, timeout: float | None = None) -> None:
        """Send or spool what is left, and end."""


class BulkRows(Protocol):
    """``tickflight.BulkWriter``: a way for old data, past the service's memory."""

    @property
    def stats(self) -> WriterStats:
        """What became of the rows."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, /, *_: object) -> None: ...

    def write(self, data: pa.RecordBatch | pa.Table) -> None:
        """Send rows."""


class Answer(Protocol):
    """``tickflight.Result``: rows that were asked for."""

    def arrow(self) -> pa.Table:
        """All of them."""


class Service(Protocol):
    """``tickflight.Client``: what ingest asks of the service.

    Every method raises ``tickflight.errors.TickflightError``.
    """

    def writer(
        self,
        dataset: str,
        *,
        name: str = "sdk",
        producer: str | None = None,
        first_seq: int = 1,
        spool: str | Path | None = None,
        on_overflow: Callable[[Overflow], None] | None = None,
    ) -> RowWriter:
        """Open a way into a dataset."""

    def bulk(self, dataset: str, job: str, *, first_seq: int = 1) -> BulkRows:
        """Open a way for old data."""

    def latest(
        self,
        symbols: str | Iterable[str],
        *,
        dataset: str = "ticks",
        limit: int = 100,
        source: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask for the newest rows of each symbol."""

    def action(self, name: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Run a named action."""
