"""What the threads of a writer share, and the one lock that guards it."""

import logging
import random
import threading
import time
from typing import Final

from tickflight.errors import AuthenticationError, PermissionDeniedError, WriterClosedError
from tickflight.link import Event, Link, Phase
from tickflight.outbox import Outbox
from tickflight.spool import Spool
from tickflight.spooler import Spooler

_KEEP_FOR_LATER: Final = (AuthenticationError, PermissionDeniedError)

logger = logging.getLogger("tickflight.writer")


class WriterState:
    """Outbox, link, spool and flags; hold ``lock`` for everything here."""

    def __init__(self, outbox: Outbox, spool: Spool | None) -> None:
        self.lock = threading.Lock()
        self.work = threading.Condition(self.lock)
        """A stream waits here: for batches, for window."""
        self.progress = threading.Condition(self.lock)
        """Callers wait here: for room, for durability."""
        self.chores = threading.Condition(self.lock)
        """The supervisor waits here: for anything else."""
        left = () if spool is None else spool.leftovers
        self.own = outbox
        self.lanes = (*map(Outbox.of_earlier_life, left), outbox)
        """All outboxes, in the order they must reach the server."""
        self.spooler = None if spool is None else Spooler(spool)
        self.link = Link(random.SystemRandom().random)
        self.error: Exception | None = None
        """Why nothing can be written any more."""
        self.last_failure: str | None = None
        self.last_progress = 0.0
        """When the last ack came, or nothing was in flight."""
        self.dialled_at = 0.0
        self.rewinds = 0
        """Sequence errors since the last ack."""
        self.pressed = 0
        """Callers that wait for memory and want the spool to make some."""
        self.hurried = 0
        """Callers that wait in ``flush``."""
        self.closing = False
        self.stopped = False

    @property
    def lane(self) -> Outbox:
        """Whose turn it is: earlier lives first."""
        return next((lane for lane in self.lanes if not lane.settled), self.own)

    @property
    def wants_stream(self) -> bool:
        """Whether there is something to send; when closing, the rest of earlier lives is not."""
        return not self.lane.settled and not (self.closing and self.own.settled)

    @property
    def wants_spill(self) -> bool:
        """Whether rows should go to disk: the server is away, or memory is full."""
        if self.spooler is None or not self.own.in_memory:
            return False
        away = self.link.phase is Phase.BROKEN or not self.link.trusted
        return away or self.pressed > 0 or self.keeps_for_later

    @property
    def keeps_for_later(self) -> bool:
        """Whether the rows are good and another key would bring them home."""
        return self.spooler is not None and isinstance(self.error, _KEEP_FOR_LATER)

    @property
    def spool_rests(self) -> bool:
        """Whether there is a spool and it takes nothing for now."""
        return self.spooler is not None and self.spooler.resting(time.monotonic())

    @property
    def is_safe(self) -> bool:
        """Whether no rows are left in memory, or the spool can't take them."""
        return not self.own.in_memory or self.spool_rests

    @property
    def can_close(self) -> bool:
        """Whether nothing more is to be waited for."""
        if self.error is not None:
            return not self.keeps_for_later or self.is_safe
        away = self.spooler is not None and self.link.phase is Phase.BROKEN
        return self.own.settled or (away and not self.own.in_memory)

    def check_open(self) -> None:
        """Raise what ended the writer, if something did."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        if self.closing:
            raise WriterClosedError("this writer is closed: open another one")

    def lose(self, reason: str) -> None:
        """Note that the stream is lost; the first time in a row it is worth a warning."""
        level = logging.WARNING if self.link.trusted else logging.DEBUG
        logger.log(level, "lost the server, trying again: %s", reason)
        self.last_failure = reason
        self.link.lost(time.monotonic())
        self.wake_all()

    def fail(self, error: Exception) -> None:
        """End the writer for good."""
        if self.error is None:
            logger.error("writing has ended: %s", error)
            self.error = error
            self.last_failure = str(error)
            self.link.on(Event.REFUSED)
        self.wake_all()

    def wake_all(self) -> None:
        """Let every thread look again."""
        for condition in (self.work, self.progress, self.chores):
            condition.notify_all()
