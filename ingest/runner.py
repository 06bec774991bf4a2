"""Keeping one source running: restarts, outages, health; nothing of it silent.

    running ──failure──► restarting ──delay──► running
       │ └──permanent failure──► failed
       └──stop, or no more rows──► stopped

Each change is a row in ``service_events``; each stretch without rows is in ``gaps``.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import SystemRandom
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from ingest.errors import (
    ConfigurationError,
    IngestError,
    SourceError,
    SourceRefusedError,
    SourceSilentError,
)
from ingest.history import Past, read_past
from ingest.outages import Gap, GapReason, Level, OutageLog, event_rows, gap_rows
from ingest.ports import Clock, Service, SystemClock
from ingest.restart import RestartPolicy
from ingest.source import Continuity, Source
from ingest.writers import DatasetWriters
from tickflight import AuthenticationError, Overflow, PermissionDeniedError, TickflightError
from tickflight import ConfigurationError as ClientConfigurationError

STOP_GRACE_SECONDS: Final = 1.0
"""A cancelled source may close its connection this long; a role has five seconds for everything."""
HISTORY_PATIENCE_SECONDS: Final = 30.0
"""How long a source that notes its downtime waits for the service to say when its last row came:
a service that was started along with it answers by then. Later rows would hide the hole."""
HISTORY_RETRY_SECONDS: Final = 1.0

_PERMANENT: Final = (
    ConfigurationError,
    SourceRefusedError,
    ClientConfigurationError,
    AuthenticationError,
    PermissionDeniedError,
)
"""What no retry mends: settings and credentials, the feed's or ours."""
_LOG_LEVELS: Final = {
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}

_log = structlog.get_logger(__name__)


class RunState(Enum):
    """What a source is doing; also the name of the event that says so."""

    RUNNING = "running"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a source ended.

    Attributes:
        state: ``STOPPED`` when asked to or out of rows, ``FAILED`` when no retry could help.
        restarts: How often it was started again.
        detail: One line on why it failed.
        is_refusal: The feed, or a setting of it, has to be mended by somebody; a failure of the
            service itself may pass with a new process.
    """

    state: RunState
    restarts: int
    detail: str | None = None
    is_refusal: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run takes from outside; tests bring a clock and a jitter of their own.

    Attributes:
        policy: When to start again.
        clock: Where time comes from.
        jitter: Uniform in [0, 1), one value a delay.
        spool: Directory in which writers keep rows while the service is away; None keeps none.
    """

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    clock: Clock = field(default_factory=SystemClock)
    jitter: Callable[[], float] = SystemRandom().random
    spool: Path | None = None


async def run_source(
    source: Source, service: Service, *, stop: asyncio.Event, options: RunOptions | None = None
) -> RunResult:
    """Run ``source`` until it is out of rows, ``stop`` is set, or it can't ever work.

    Args:
        source: The feed; started again after every failure that may pass.
        service: Where the rows go.
        stop: Set from outside to end the run; everything written is sent before the return.
        options: See ``RunOptions``.
    """
    runner = _Runner(source, service, stop, options or RunOptions())
    return await runner.run()


class _Runner:
    def __init__(
        self, source: Source, service: Service, stop: asyncio.Event, options: RunOptions
    ) -> None:
        self._source = source
        self._profile = source.profile
        self._stop = stop
        self._options = options
        self._clock = options.clock
        self._service = service
        self._writers = DatasetWriters(service, name=self._profile.name, spool=options.spool)
        # The mutable state of a run: which outage is on, when the source was last heard, and how
        # often it has been started again.
        self._outages = OutageLog(self._profile)
        self._heard = self._clock.now()
        self._restarts = 0

    async def run(self) -> RunResult:
        try:
            if self._profile.continuity is not Continuity.SYNTHETIC:
                await self._note_downtime()
            return await self._supervise()
        finally:
            await self._writers.close()

    async def write(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        """See ``SourceWriter.write``."""
        await self._writers.write(dataset, rows)
        await self._note_losses()
        # Not when they were written: what came in between may never have been heard.
        await self.alive(_newest_receipt(rows))

    async def alive(self, heard: int | None = None) -> None:
        """See ``SourceWriter.alive``."""
        now = self._clock.now()
        self._heard = now if heard is None else heard
        if self._outages.lasting:
            await self._record(self._outages.end(now))

    async def missed(self, dataset: str, symbol: str, start: int, end: int) -> None:
        """See ``SourceWriter.missed``."""
        await self._record(
            self._outages.lost(dataset, [symbol], start, end, reason=GapReason.SEQUENCE)
        )

    async def remark(self, detail: str) -> None:
        """See ``SourceWriter.remark``."""
        await self._announce(Level.WARNING, RunState.RUNNING, detail)

    async def flush(self) -> None:
        """See ``SourceWriter.flush``."""
        await self._writers.flush()

    async def _supervise(self) -> RunResult:
        failures = 0
        while True:
            await self._announce(Level.INFO, RunState.RUNNING)
            started = self._clock.monotonic()
            failure = await self._attempt()
            if failure is None:
                await self._announce(Level.INFO, RunState.STOPPED)
                return RunResult(RunState.STOPPED, self._restarts)
            await self._begin_outage(failure)
            if isinstance(failure, _PERMANENT):
                detail, is_refusal = _describe(failure), isinstance(failure, IngestError)
                await self._announce(Level.ERROR, RunState.FAILED, detail)
                return RunResult(RunState.FAILED, self._restarts, detail, is_refusal)
            healthy = self._clock.monotonic() - started >= self._options.policy.healthy_seconds
            failures = 1 if healthy else failures + 1
            await self._wait_to_restart(failures, failure)

    async def _attempt(self) -> Exception | None:
        """Run the source once; None when it ended because it should."""
        if self._stop.is_set():
            return None
        run = asyncio.create_task(self._source.run(self))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({run, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            run.cancel()
            await asyncio.wait({run, stopped}, timeout=STOP_GRACE_SECONDS)
        if not run.done():
            _log.warning("source ignores its cancellation", source=self._profile.name)
            return None
        if run.cancelled():
            return None if self._stop.is_set() else SourceError("cancelled from within")
        failure = run.exception()
        return failure if isinstance(failure, Exception) and not self._stop.is_set() else None

    async def _wait_to_restart(self, failures: int, failure: Exception) -> None:
        delay = self._options.policy.delay_seconds(failures, self._options.jitter())
        await self._announce(
            Level.WARNING, RunState.RESTARTING, f"{_describe(failure)}; again in {delay:.1f} s"
        )
        self._restarts += 1
        await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Wait, or be stopped."""
        sleep = asyncio.create_task(self._clock.sleep(seconds))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({sleep, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            stopped.cancel()

    async def _note_downtime(self) -> None:
        """Open a gap from the last row of an earlier run to the first one of this run."""
        past = await self._read_past()
        if past is not None:
            self._outages.adopt(past.lasting)
            await self._record(self._outages.begin(past.last_row, GapReason.DOWNTIME))

    async def _read_past(self) -> Past | None:
        give_up = self._clock.monotonic() + HISTORY_PATIENCE_SECONDS
        while not self._stop.is_set():
            try:
                return await asyncio.to_thread(read_past, self._service, self._profile)
            except TickflightError as error:
                if isinstance(error, _PERMANENT) or self._clock.monotonic() >= give_up:
                    detail = f"downtime unknown: {error}"
                    await self._announce(Level.WARNING, RunState.RUNNING, detail)
                    return None
            await self._pause(HISTORY_RETRY_SECONDS)
        return None

    async def _begin_outage(self, failure: Exception) -> None:
        start, reason = self._heard, GapReason.DISCONNECT
        if isinstance(failure, SourceSilentError):
            start, reason = start if failure.since is None else failure.since, GapReason.SILENCE
        since = dict.fromkeys(self._profile.datasets, start)
        await self._record(self._outages.begin(since, reason))

    async def _note_losses(self) -> None:
        for loss in self._writers.take_losses():
            detail = f"{loss.rows} rows of {loss.dataset} lost: memory and spool are full"
            await self._announce(Level.ERROR, RunState.RUNNING, detail)
            if loss.dataset in self._profile.datasets:
                await self._record(self._overflow_gaps(loss))

    def _overflow_gaps(self, loss: Overflow) -> list[Gap]:
        now = self._clock.now()
        # Rows without times were lost now; a gap ends behind its last row.
        start = now if loss.first_ts_event is None else loss.first_ts_event
        end = now if loss.last_ts_event is None else loss.last_ts_event + 1
        return self._outages.lost(loss.dataset, loss.symbols or (None,), start, end)

    async def _record(self, gaps: list[Gap]) -> None:
        if gaps:
            await self._tell("gaps", gap_rows(gaps, self._clock.now()))

    async def _announce(self, level: Level, state: RunState, detail: str | None = None) -> None:
        service = f"ingest.{self._profile.name}"
        _log.log(_LOG_LEVELS[level], state.value, service=service, detail=detail)
        rows = event_rows(service, level, state.value, detail, self._clock.now())
        await self._tell("service_events", rows)

    async def _tell(self, dataset: str, rows: pa.Table) -> None:
        """Write rows about the source; what happens to them must not change what it does."""
        try:
            await self._writers.write(dataset, rows)
        except TickflightError:
            _log.exception("not written", dataset=dataset, rows=rows.num_rows)


def _newest_receipt(rows: pa.RecordBatch | pa.Table) -> int | None:
    newest = pc.max(rows["ts_recv"]).cast(pa.int64()).as_py() if rows.num_rows else None
    return None if newest is None else int(newest)


def _describe(failure: Exception) -> str:
    """One line that can be shown: a foreign error's text may carry a URL with a key in it."""
    own = isinstance(failure, IngestError | TickflightError)
    return f"{failure}".partition("\n")[0] if own else type(failure).__name__
