"""The supervisor's diary: restarts of roles as rows in ``service_events``, where status finds them.

A role that was killed can't tell of it, and a server that is down can't be told: the diary keeps
what happened and writes it as soon as there is a server to take it.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final

import pyarrow as pa
import structlog

import tickflight
from ingest.outages import Level, event_rows
from ingest.runner import RunState
from storage.ports import Clock
from tickflight.errors import DeadlineError, TickflightError
from tickflightd.errors import TickflightdError
from tickflightd.supervisor import RoleEnd

ENTRIES_MAX: Final = 1_000
"""Restarts kept while no server takes them: hours of a role that crashes as fast as it may."""
PATIENCE_SECONDS: Final = 1.0
"""How often to look whether the service stops, while a server that is down keeps us waiting."""
Connect = Callable[[], AbstractContextManager[tickflight.Client]]
_log = structlog.get_logger(__name__)


class Diary:
    """Writes restarts down, from a thread of its own.

    One connection an entry: they are rare, and an open stream would keep a stopping server waiting.

    Args:
        connect: Connects to the server, with a key that may write.
        clock: Where time comes from.
    """

    def __init__(self, connect: Connect, clock: Clock) -> None:
        self._connect = connect
        self._clock = clock
        self._entries: queue.Queue[pa.Table] = queue.Queue(ENTRIES_MAX)
        self._closing = threading.Event()
        threading.Thread(target=self._write_all, name="diary", daemon=True).start()

    def note(self, end: RoleEnd) -> None:
        """Note that a role ended and is started again; never blocks."""
        service = end.role.replace(" ", ".")
        state = RunState.RESTARTING.value
        rows = event_rows(service, Level.ERROR, state, end.detail, self._clock.now())
        try:
            self._entries.put_nowait(rows)
        except queue.Full:
            _log.warning("restart not recorded: too many wait for a server", child=end.role)

    def close(self) -> None:
        """Write no more; what was not written is in the log."""
        self._closing.set()

    def _write_all(self) -> None:
        while not self._closing.is_set():
            rows = self._entries.get()
            try:
                self._write(rows)
            except (TickflightError, TickflightdError) as error:
                _log.warning("restart not recorded", reason=str(error))

    def _write(self, rows: pa.Table) -> None:
        """Write an entry, once however often it has to be sent."""
        with (
            self._connect() as client,
            client.writer("service_events", name="supervisor") as writer,
        ):
            writer.write(rows)
            while not self._closing.is_set():
                with suppress(DeadlineError):
                    writer.flush(PATIENCE_SECONDS)
                    return
