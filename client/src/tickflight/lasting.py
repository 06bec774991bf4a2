"""A stream that outlives its connections: where one is lost, another goes on."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tickflight.errors import DeadlineError, TickflightError, UnavailableError, map_errors
from tickflight.link import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS
from tickflight.silence import SilenceWatch

if TYPE_CHECKING:
    import threading

    import pyarrow as pa
    from pyarrow import flight

    from tickflight.connection import Connection

PROBE_SECONDS: Final = 5.0
"""How long a server may take to say that it is there."""

logger = logging.getLogger(__name__)


class LastingStream:
    """The messages of one ticket, over as many connections as it takes.

    Read it from one thread; ``close`` may be called from any.

    Args:
        base: Whose kind of connection is made; each stream has one of its own, since one that waits
            to be read would hold up others on it.
        ticket: Returns what is asked for, by now.
        patience: Returns the silence, in seconds, after which a connection counts as lost, by now.
        again: Called when a lost connection was made again.
        closing: Set when nothing more is wanted.

    Raises:
        TickflightError: The first connection can't be made.
    """

    def __init__(
        self,
        base: Connection,
        ticket: Callable[[], Mapping[str, object]],
        *,
        patience: Callable[[], float],
        again: Callable[[], None],
        closing: threading.Event,
    ) -> None:
        self.reconnects = 0
        self._base = base
        self._ticket = ticket
        self._patience = patience
        self._again = again
        self._closing = closing
        self._failures = 0
        self._connection, self._reader = self._connected()
        self._watch = SilenceWatch(self._hang_up, patience_seconds=patience())

    @property
    def schema(self) -> pa.Schema:
        """The schema as the server sends it."""
        with map_errors():
            return self._reader.schema

    def first(self) -> flight.FlightStreamChunk:
        """Return the first message; where that fails, whoever has just asked is told.

        Raises:
            TickflightError: There is none.
        """
        with map_errors(), self._watch.reading():
            return self._reader.read_chunk()

    def read(self) -> flight.FlightStreamChunk:
        """Return the next message.

        Raises:
            StopIteration: The server has ended the stream, or we have.
            TickflightError: Another connection would not help.
        """
        while not self._closing.is_set():
            self._watch.patience_seconds = self._patience()
            try:
                with map_errors(), self._watch.reading():
                    chunk = self._reader.read_chunk()
            except (UnavailableError, DeadlineError) as error:
                self.reconnect(error)
                continue
            self._failures = 0
            return chunk
        raise StopIteration

    def reconnect(self, error: TickflightError) -> None:
        """Try until there is a connection again, or ``closing`` is set."""
        if self._closing.is_set():
            return
        self.reconnects += 1
        logger.info("stream lost: %s", error)
        while not self._closing.wait(self._delay()):
            self._hang_up()
            try:
                self._connection, self._reader = self._connected()
            except (UnavailableError, DeadlineError) as failure:
                logger.debug("stream not there again: %s", failure)
                continue
            self._again()
            if self._closing.is_set():  # meanwhile, by another thread
                self._hang_up()
            return

    def cancel(self) -> None:
        """Break off the present connection, as a network does."""
        self._reader.cancel()

    def close(self) -> None:
        """Let the connection go, and make no other; idempotent."""
        self._closing.set()
        self._watch.close()
        self._hang_up()

    def _delay(self) -> float:
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return delay * (0.5 + random.random() / 2)  # noqa: S311 - no secret

    def _connected(self) -> tuple[Connection, flight.FlightStreamReader]:
        ticket = self._ticket()
        connection = self._base.again()
        try:
            # A stream has no deadline, so find out first whether anybody is there.
            connection.schema(ticket, timeout=PROBE_SECONDS)
            return connection, connection.get(ticket, timeout=None)
        except TickflightError:
            connection.close()
            raise

    def _hang_up(self) -> None:
        with suppress(TickflightError), map_errors():
            self._reader.cancel()
            self._connection.close()
