"""Rows into a dataset, each of them exactly once."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pyarrow as pa

from tickflight.connection import Connection
from tickflight.engine import Engine
from tickflight.errors import ConfigurationError, SpoolFullError
from tickflight.outbox import Outbox
from tickflight.records import Title
from tickflight.rows import RowReader, Rows, SchemaSource, described
from tickflight.spool import Spool
from tickflight.stats import WriterStats

CLOSE_TIMEOUT_SECONDS: Final = 30.0
"""How long ``close`` waits for the server: a restart takes some seconds."""


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """Bounds of a writer."""

    memory_bytes: int = 64 * 2**20
    """Rows held in memory; beyond, ``write`` waits or the spool takes over."""
    spool_bytes: int = 2**30
    """What the spool directory may hold; beyond, rows are not taken."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """Rows that ``write`` did not take because memory and spool were full; times in µs."""

    dataset: str
    symbols: tuple[str, ...]
    first_ts_event: int | None
    last_ts_event: int | None
    rows: int


class Writer:
    """Writes rows into one dataset; ``Client.writer`` makes one. Safe to share between threads.

    What it promises:

    - Every row that ``write`` took reaches the server once, in the order it was written, through
      lost connections and restarts of the server. ``flush`` returns when all are durable there.
    - Memory is bounded. When it is full, ``write`` waits: the server's pace is the writer's.
    - With a ``spool`` directory, rows that the server can't take now go to disk, fsynced, and are
      sent when it can; after a crash, by the next writer that opens the directory. Then ``write``
      does not wait for the server; when the spool is full as well, rows are refused, never dropped
      in silence: ``on_overflow`` hears of them, or ``write`` raises.
    - What can't be mended by trying again (key, permission, schema, sequence) is raised by the next
      ``write``, ``flush`` or ``close``, and by all after it.

    Rows still in memory die with the process; a source that can't send them again calls ``flush``.
    """

    def __init__(
        self,
        connection: Connection,
        dataset: str,
        *,
        schema: SchemaSource,
        name: str = "sdk",
        producer: str | None = None,
        first_seq: int = 1,
        spool: Path | None = None,
        limits: WriterLimits | None = None,
        on_overflow: Callable[[Overflow], None] | None = None,
    ) -> None:
        """Open a writer; see ``Client.writer`` for the arguments.

        Raises:
            ConfigurationError: the arguments don't go together.
            SpoolError: the spool directory can't be used; its kind says why.
        """
        if first_seq != 1 and producer is None:
            raise ConfigurationError("first_seq continues a producer of yours: give producer=…")
        if producer is not None and spool is not None:
            raise ConfigurationError(
                "producer= and spool= exclude each other: what a spool replays has its own producer"
            )
        limits = limits or WriterLimits()
        self.dataset = dataset
        self.producer = producer or f"{name}-{uuid.uuid4().hex}"
        """The id that the server knows this writer by; a new one each life."""
        self._on_overflow = on_overflow
        self._reader = RowReader(schema)
        outbox = Outbox(
            Title(self.producer, dataset), first_seq=first_seq, memory_limit=limits.memory_bytes
        )
        disk = None if spool is None else Spool(spool, limit_bytes=limits.spool_bytes)
        self._engine = Engine(connection, outbox, disk)

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"<Writer {self.dataset} {'connected' if stats.connected else 'not connected'},"
            f" {stats.rows_durable:,} of {stats.rows_written:,} rows durable>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> WriterStats:
        """What was done so far."""
        return self._engine.stats()

    def write(self, data: Rows, *, timeout: float | None = None) -> None:
        """Take rows, all or none; they are on their way when this returns.

        Args:
            data: a table, a record batch, a list of dicts (times as aware datetimes or epoch
                µs), or anything that exports an Arrow stream, as Polars and pandas frames do.
            timeout: seconds to wait for room; for ever by default.

        Raises:
            InvalidRequestError: ``data`` can't be read as rows.
            DeadlineError: there was no room in time.
            SpoolFullError: memory and spool are full, and nobody listens for overflows.
            TickflightError: the server refused earlier rows for good.
        """
        batches = self._reader.batches(data)
        if batches and not self._engine.put(batches, timeout=timeout):
            self._overflow(batches)

    def flush(self, timeout: float | None = None) -> None:
        """Return once all rows written so far are durable on the server.

        Raises:
            DeadlineError: they are not within ``timeout`` seconds; they stay on their way.
            TickflightError: the server refused rows for good.
        """
        self._engine.flush(timeout=timeout)

    def close(self, timeout: float | None = CLOSE_TIMEOUT_SECONDS) -> None:
        """Flush and end; idempotent. With a spool, rows the server can't take wait there.

        Raises:
            DeadlineError: rows are neither on the server nor in a spool after ``timeout`` seconds.
            TickflightError: the server refused rows for good.
        """
        self._engine.close(timeout=timeout)

    def _overflow(self, batches: Sequence[pa.RecordBatch]) -> None:
        symbols, first, last = described(batches)
        rows = sum(batch.num_rows for batch in batches)
        if self._on_overflow is None:
            raise SpoolFullError(
                f"memory and spool are full: {rows} rows of {self.dataset} were not taken"
            )
        self._on_overflow(Overflow(self.dataset, symbols, first, last, rows))
