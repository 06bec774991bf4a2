"""Keeping Redis the same as what the service has newest, whatever happens to either.

One thread a dataset follows a live stream and keeps the newest rows; one writes what is unwritten.
The two meet in ``Newest``, which never holds more than a row a key: Redis may stall for as long as
it likes without a row waiting anywhere, least of all in the service.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, Self, final

import pyarrow as pa
import structlog

from ingest.errors import MirrorError
from ingest.mirror.hashes import HashWriter
from ingest.mirror.newest import MIRRORED, Newest
from ingest.outages import Level, event_rows
from ingest.ports import Answer, RowWriter
from ingest.runner import RunState
from tickflight import (
    AuthenticationError,
    ConfigurationError,
    PermissionDeniedError,
    TickflightError,
)

SERVICE: Final = "mirror"
"""What ``status`` calls it."""
DEGRADED: Final = "degraded"
WRITE_MS: Final = 20
"""Between two writes, and between two batches: rows that come faster replace each other."""
LOOK_SECONDS: Final = 0.5
"""How often to look whether Redis is still there while nothing has to be written."""
RETRY_SECONDS: Final = 0.25
"""Between attempts while it is not: what was missed is there again within two seconds of its
return, and a server that refuses is not kept busy with it."""
REFRESH_SECONDS: Final = 10.0
"""How often everything is written again: somebody may have deleted it, or Redis dropped it."""
TELL_SECONDS: Final = 1.0
"""Least time between two events, however often Redis comes and goes."""
FOLLOW_AGAIN_SECONDS: Final = 1.0
LATEST_ROWS: Final = 20
"""Newest rows a symbol to begin with: of gamma, a symbol has several endpoints."""

EVENT_SECONDS: Final = 0.3
"""How long the service may take for an event, also for the last: a role has a moment to stop."""

_WELL: Final = (RunState.RUNNING.value, RunState.STOPPED.value)
_LOG_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING}
_PERMANENT: Final = (AuthenticationError, PermissionDeniedError, ConfigurationError)
_log = structlog.get_logger(__name__)


class LiveRows(Protocol):
    """``tickflight.Live``: batches as they come."""

    def __enter__(self) -> Self:
        """Follow."""

    def __exit__(self, *_: object) -> None:
        """Follow no more."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield batches until it is closed."""

    def close(self) -> None:
        """End it; from any thread."""


class Market(Protocol):
    """``tickflight.Client``: what the mirror asks of the service."""

    def live(
        self, symbols: Iterable[str] = (), *, dataset: str = ..., min_interval_ms: int | None = ...
    ) -> LiveRows:
        """Follow a dataset."""

    def latest(self, symbols: Iterable[str], *, dataset: str = ..., limit: int = ...) -> Answer:
        """Ask for the newest rows of each symbol."""

    def writer(self, dataset: str, *, name: str = ...) -> RowWriter:
        """Open a way into a dataset."""


@final
class Mirror:
    """Mirrors the newest rows of every symbol.

    Args:
        market: Where they come from.
        hashes: Where they go.
        now: µs since 1970, for events.
        on_ready: Called once, when all datasets are followed; Redis may be away by then.
    """

    def __init__(
        self,
        market: Market,
        hashes: HashWriter,
        *,
        now: Callable[[], int],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._market = market
        self._hashes = hashes
        self._newest = Newest()
        self._teller = _Teller(market, now)
        self._on_ready = on_ready
        self._stop = threading.Event()
        # The mutable state of the threads that follow.
        self._lock = threading.Lock()
        self._streams: dict[str, LiveRows] = {}
        self._begun: set[str] = set()
        self._failure: TickflightError | None = None
        # When everything was last written, on the monotonic clock.
        self._refreshed = 0.0

    def stop(self) -> None:
        """Begin to end; ``run`` returns soon. Safe in a signal handler."""
        self._stop.set()
        self._newest.wake()

    def run(self) -> None:
        """Mirror until ``stop``.

        Raises:
            tickflight.errors.TickflightError: The service refuses us for good.
        """
        followers = [
            threading.Thread(target=self._follow, args=(name,), name=f"mirror-{name}", daemon=True)
            for name in MIRRORED
        ]
        for follower in followers:
            follower.start()
        try:
            self._write()
        finally:
            self._stop.set()
            self._hang_up()
            for follower in followers:
                follower.join()
            self._hashes.close()
            self._teller.end(RunState.STOPPED if self._failure is None else RunState.FAILED)
        if self._failure is not None:
            raise self._failure

    # Reading

    def _follow(self, dataset: str) -> None:
        while not self._stop.is_set():
            try:
                self._follow_once(dataset)
            except _PERMANENT as error:
                self._failure = error
                self._stop.set()
            except TickflightError as error:
                _log.warning("stream lost", dataset=dataset, reason=str(error))
                self._stop.wait(FOLLOW_AGAIN_SECONDS)

    def _follow_once(self, dataset: str) -> None:
        with self._market.live([], dataset=dataset, min_interval_ms=WRITE_MS) as stream:
            with self._lock:
                self._streams[dataset] = stream
                if self._stop.is_set():
                    return
            # After the stream was opened: what comes in between comes twice, and nothing is missed.
            answer = self._market.latest([], dataset=dataset, limit=LATEST_ROWS)
            self._newest.take(dataset, answer.arrow())
            self._note_begun(dataset)
            for rows in stream:
                self._newest.take(dataset, rows)

    def _note_begun(self, dataset: str) -> None:
        with self._lock:
            self._begun.add(dataset)
            is_first = len(self._begun) == len(MIRRORED)
            if is_first:
                ready, self._on_ready = self._on_ready, lambda: None
        if is_first:
            ready()

    def _hang_up(self) -> None:
        with self._lock:
            for stream in self._streams.values():
                stream.close()

    # Writing

    def _write(self) -> None:
        is_connected = False
        while not self._stop.is_set():
            if not is_connected:
                is_connected = self._connect()
                pause = 0.0 if is_connected else RETRY_SECONDS
            else:
                is_connected, pause = self._write_once()
            self._teller.tell()
            self._stop.wait(pause)

    def _connect(self) -> bool:
        try:
            self._hashes.connect()
        except MirrorError as error:
            self._teller.note(DEGRADED, f"Redis at {self._hashes.place}: {error}")
            return False
        # It may have lost anything since we saw it last.
        self._newest.all_again()
        self._refreshed = time.monotonic()
        return True

    def _write_once(self) -> tuple[bool, float]:
        """Write what is to be written; returns if the connection holds, and how long to wait."""
        self._newest.wait(LOOK_SECONDS)
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._newest.all_again()
        rows = self._newest.unwritten()
        try:
            refused = self._hashes.write(rows)
        except MirrorError as error:
            self._newest.again(rows)
            self._teller.note(DEGRADED, f"Redis at {self._hashes.place}: {error}")
            return False, RETRY_SECONDS
        if refused:
            self._newest.again(refused)
            why = next(iter(refused.values()))
            detail = f"Redis at {self._hashes.place}: {why}; {len(refused)} hashes are not current"
            self._teller.note(DEGRADED, detail)
            return True, RETRY_SECONDS
        self._teller.note(
            RunState.RUNNING.value, f"newest rows are in Redis at {self._hashes.place}"
        )
        return True, WRITE_MS / 1_000


@final
class _Teller:
    """Tells how the mirror is: a row in ``service_events`` for each change. Used by one thread."""

    def __init__(self, market: Market, now: Callable[[], int]) -> None:
        self._market = market
        self._now = now
        self._writer: RowWriter | None = None
        self._state: tuple[str, str] | None = None
        self._told: tuple[str, str] | None = None
        self._told_at = -TELL_SECONDS

    def note(self, state: str, detail: str) -> None:
        """Note how it is now."""
        self._state = (state, detail)

    def tell(self) -> None:
        """Tell of a change, if there is one and it is time to."""
        due = time.monotonic() - self._told_at >= TELL_SECONDS
        if self._state is not None and self._state != self._told and due:
            self._write(*self._state)

    def end(self, state: RunState) -> None:
        """Tell that it is over, and see to it that this gets there if it can."""
        self._write(state.value, "")
        if self._writer is not None:
            try:
                self._writer.close(timeout=EVENT_SECONDS)
            except TickflightError as error:
                _log.warning("event not written", reason=str(error))

    def _write(self, state: str, detail: str) -> None:
        self._told, self._told_at = (state, detail), time.monotonic()
        level = Level.INFO if state in _WELL else Level.WARNING
        _log.log(_LOG_LEVELS[level], state, detail=detail)
        try:
            if self._writer is None:
                self._writer = self._market.writer("service_events", name=SERVICE)
            rows = event_rows(SERVICE, level, state, detail or None, self._now())
            self._writer.write(rows, timeout=EVENT_SECONDS)
        except TickflightError as error:
            _log.warning("event not written", reason=str(error))
