"""The threads of a writer: they do what ``Link`` and ``Outbox`` decide.

One supervisor (dials, spools, notices silence) for the writer's life, two threads for each stream
(``stream``). One lock guards all state below; nothing slow happens under it: gRPC, disk and Arrow
work on what was taken out.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import pyarrow as pa

from tickflight.connection import Connection
from tickflight.errors import (
    AuthenticationError,
    DeadlineError,
    PermissionDeniedError,
    SequenceError,
    ServerError,
    SpoolError,
    UnavailableError,
    WriterClosedError,
)
from tickflight.link import Event, Link, Phase
from tickflight.outbox import GATHER_ROWS, Ack, Batch, Outbox
from tickflight.rows import joined, size_of, unpack
from tickflight.spool import Spool
from tickflight.spooler import SPILL_BYTES, SPILL_LINGER_SECONDS, Spooler
from tickflight.stats import WriterStats
from tickflight.stream import STREAM_LIFE_SECONDS, Stream

ACK_TIMEOUT_SECONDS: Final = 30.0
"""Silence while batches are in flight that counts as a lost connection. A disk that stalls for
seconds is normal; a machine that vanished sends no goodbye."""
PRESSED_SECONDS: Final = 0.1
"""How long a full memory waits for the server before a spool takes over."""
DISK_SECONDS: Final = 10.0
"""What ``close`` gives the spool to take the rest, beyond its own time."""
GOODBYE_SECONDS: Final = 5.0
"""What ``close`` gives the server to end a stream on which all is acked."""
MAX_REWINDS: Final = 5
"""Sequence errors in a row without an ack between: somebody else uses this producer id."""

_TRANSIENT: Final = (UnavailableError, DeadlineError, ServerError)
_KEEP_FOR_LATER: Final = (AuthenticationError, PermissionDeniedError)

logger = logging.getLogger("tickflight.writer")


class Engine:
    """Carries rows to the server; ``Writer`` is its face."""

    def __init__(self, connection: Connection, outbox: Outbox, spool: Spool | None) -> None:
        self._connection = connection
        self._spooler = None if spool is None else Spooler(spool)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # a stream waits: for batches, for window
        self._progress = threading.Condition(self._lock)  # callers wait: for room, for durability
        self._chores = threading.Condition(self._lock)  # the supervisor waits: for anything else
        # The mutable state, all under the lock.
        self._own = outbox
        self._link = Link(random.SystemRandom().random)
        self._error: Exception | None = None
        self._last_failure: str | None = None
        self._last_progress = 0.0  # last ack, or when in flight was empty before
        self._dialled_at = 0.0
        self._rewinds = 0
        self._pressed = 0  # callers that wait for memory and want the spool to make some
        self._hurried = 0  # callers that wait in flush
        self._closing = False
        self._stopped = False
        left = () if spool is None else spool.leftovers
        self._lanes = (*map(Outbox.of_earlier_life, left), outbox)  # in the order they must go
        self._supervisor = threading.Thread(
            target=self._supervise, name="tickflight-writer", daemon=True
        )
        self._supervisor.start()

    def __repr__(self) -> str:
        return f"<Engine {self._link} {list(self._lanes)}>"

    # What callers ask for.

    def put(self, batches: Sequence[pa.RecordBatch], *, timeout: float | None) -> bool:
        """Take all batches or none; none when a spool is there and full.

        Raises:
            DeadlineError: there was no room in time.
            TickflightError: the writer was closed, or the server refused earlier rows for good.
        """
        sizes = [size_of(batch) for batch in batches]
        with self._lock:
            self._check_open()
            if not self._own.fits(sum(sizes)) and not self._wait_for_room(sum(sizes), timeout):
                return False
            now = time.monotonic()
            for batch, size in zip(batches, sizes, strict=True):
                self._own.put(batch, rows=batch.num_rows, size=size, kind=batch.schema, now=now)
            self._work.notify()
            if not self._link.streaming:
                self._chores.notify()
        return True

    def flush(self, *, timeout: float | None) -> None:
        """Wait until what was put so far is durable on the server."""
        with self._lock:
            target = self._own.rows_written
            self._hurried += 1
            self._own.hurry = True
            self._work.notify()
            try:
                done = self._progress.wait_for(lambda: self._is_settled(target), timeout)
            finally:
                self._hurried -= 1
                self._own.hurry = self._closing or self._hurried > 0
            if self._own.rows_durable >= target:
                return
            if done:
                self._check_open()
            missing = target - self._own.rows_durable
            reason = f" ({self._last_failure})" if self._last_failure else ""
        raise DeadlineError(f"{missing} rows are not durable yet{reason}")

    def close(self, *, timeout: float | None) -> None:
        """Make all durable on the server or, when it is away, in the spool; then end."""
        with self._lock:
            if self._stopped:
                return
            self._closing = self._own.hurry = True
            self._wake_all()
            if not self._progress.wait_for(self._can_close, timeout) and self._spooler is not None:
                self._pressed += 1
                self._chores.notify()
                self._progress.wait_for(self._is_safe, DISK_SECONDS)
            if self._own.settled:
                self._progress.wait_for(lambda: not self._link.streaming, GOODBYE_SECONDS)
            lost = self._own.rows_written - self._own.rows_durable if self._own.in_memory else 0
            self._stopped = True
            self._wake_all()
        self._supervisor.join()
        if self._spooler is not None:
            self._spooler.spool.close()
        if self._error is not None:
            raise self._error
        if lost:
            reason = f" ({self._last_failure})" if self._last_failure else ""
            raise DeadlineError(f"closed with up to {lost} rows that are not durable{reason}")

    def stats(self) -> WriterStats:
        """What was done so far."""
        with self._lock:
            spooled = [batch for lane in self._lanes for batch in lane.spooled]
            return WriterStats(
                rows_written=self._own.rows_written,
                rows_durable=self._own.rows_durable,
                rows_quarantined=self._own.rows_quarantined,
                rows_duplicate=self._own.rows_duplicate,
                reconnects=self._link.losses,
                spooled_rows=sum(batch.rows for batch in spooled),
                spooled_bytes=0 if self._spooler is None else self._spooler.spool.size,
                connected=self._link.phase in (Phase.OPEN, Phase.ENDING),
                last_failure=self._last_failure,
            )

    def _wait_for_room(self, size: int, timeout: float | None) -> bool:
        """Whether there is room at last; not when there is a spool and it takes nothing."""
        began = time.monotonic()
        patience = timeout
        if self._spooler is not None:
            patience = PRESSED_SECONDS if timeout is None else min(timeout, PRESSED_SECONDS)
        if not self._progress.wait_for(lambda: self._has_room(size), patience):
            self._pressed += 1
            self._chores.notify()
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            try:
                self._progress.wait_for(lambda: self._has_room(size), left)
            finally:
                self._pressed -= 1
        self._check_open()
        if self._own.fits(size):
            return True
        if self._spool_rests:
            return False
        raise DeadlineError("there was no room in time: the rows were not taken")

    def _has_room(self, size: int) -> bool:
        """Whether waiting for room is over, for better or worse."""
        over = self._error is not None or self._closing or self._spool_rests
        return over or self._own.fits(size)

    @property
    def _spool_rests(self) -> bool:
        return self._spooler is not None and self._spooler.resting(time.monotonic())

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise WriterClosedError("this writer is closed: open another one")

    def _is_settled(self, target: int) -> bool:
        return self._own.rows_durable >= target or self._error is not None or self._stopped

    def _can_close(self) -> bool:
        if self._error is not None:
            return not self._keeps_for_later or self._is_safe()
        away = self._spooler is not None and self._link.phase is Phase.BROKEN
        return self._own.settled or (away and not self._own.in_memory)

    def _is_safe(self) -> bool:
        """Whether no rows are left in memory, or the spool can't take them."""
        return not self._own.in_memory or self._spool_rests

    @property
    def _keeps_for_later(self) -> bool:
        """Whether the rows are good and another key would bring them home."""
        return self._spooler is not None and isinstance(self._error, _KEEP_FOR_LATER)

    def _wake_all(self) -> None:
        for condition in (self._work, self._progress, self._chores):
            condition.notify_all()

    # What streams report; ``StreamHost``.

    def take(self, stream: Stream) -> Batch | None:
        """See ``StreamHost.take``."""
        outbox = stream.outbox
        with self._lock:
            while self._is_current(stream) and not stream.over.is_set():
                now = time.monotonic()
                if outbox.in_flight == 0:
                    self._last_progress = now
                batch = outbox.next_batch(now)
                if batch is not None:
                    return batch
                age = now - self._dialled_at
                if age >= STREAM_LIFE_SECONDS or self._is_complete(outbox):
                    return None
                wait = outbox.wait(now)
                self._work.wait(STREAM_LIFE_SECONDS - age if wait is None else wait)
            return None

    def load(self, stream: Stream, batch: Batch) -> pa.RecordBatch | None:
        """See ``StreamHost.load``."""
        with self._lock:
            parts, place = batch.parts, batch.place
        if parts is not None or place is None:
            return joined(parts or ())
        try:
            return unpack(Spool.read(place))
        except SpoolError:
            with self._lock:
                if batch.seq <= stream.outbox.durable:
                    return None
            raise

    def opened(self, stream: Stream) -> None:
        """See ``StreamHost.opened``."""
        with self._lock:
            if self._is_current(stream):
                self._link.on(Event.OPENED)

    def finishing(self, stream: Stream) -> None:
        """See ``StreamHost.finishing``."""
        with self._lock:
            if self._is_current(stream):
                self._link.on(Event.FINISH)
                self._last_progress = time.monotonic()

    def acked(self, stream: Stream, ack: Ack) -> None:
        """See ``StreamHost.acked``."""
        with self._lock:
            if self._stopped:
                return
            try:
                stream.outbox.acked(ack)
            except SequenceError as error:
                self._fail(error)
                return
            if self._is_current(stream):
                if not self._link.trusted:
                    logger.info("the server takes rows of %s again", stream.outbox.title.producer)
                self._link.proved()
                self._rewinds = 0
                self._last_progress = time.monotonic()
            self._work.notify()
            self._progress.notify_all()
            if self._spooler is not None and self._spooler.spool.size:
                self._chores.notify()

    def hung_up(self, stream: Stream) -> None:
        """See ``StreamHost.hung_up``."""
        with self._lock:
            if self._is_current(stream):
                self._work.notify_all()

    def ended(self, stream: Stream, error: Exception | None) -> None:
        """See ``StreamHost.ended``."""
        with self._lock:
            if not self._is_current(stream):
                return
            if error is None and stream.outbox.in_flight:
                error = UnavailableError("the server ended the stream before it acked all of it")
            if error is None:
                self._link.on(Event.ENDED)
            elif self._is_transient(error, stream.outbox):
                self._lose(str(error))
            else:
                if stream.outbox is not self._own and self._spooler is not None:
                    path = self._spooler.spool.path
                    error.add_note(f"while sending what an earlier writer left in {path}")
                self._fail(error)
            self._wake_all()

    def _is_current(self, stream: Stream) -> bool:
        return self._link.streaming and stream.generation == self._link.generation

    def _is_complete(self, outbox: Outbox) -> bool:
        if self._closing and self._own.settled:
            return True  # the rest of an earlier life stays on disk for the next
        return outbox.all_sent and (outbox is not self._own or self._closing)

    def _is_transient(self, error: Exception, outbox: Outbox) -> bool:
        if isinstance(error, SequenceError):
            self._rewinds += 1
            return outbox.can_resume_at(error.expected) and self._rewinds <= MAX_REWINDS
        return isinstance(error, _TRANSIENT)

    def _lose(self, reason: str) -> None:
        level = logging.WARNING if self._link.trusted else logging.DEBUG
        logger.log(level, "lost the server, trying again: %s", reason)
        self._last_failure = reason
        self._link.lost(time.monotonic())

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            logger.error("writing has ended: %s", error)
            self._error = error
            self._last_failure = str(error)
            self._link.on(Event.REFUSED)
        self._wake_all()

    # The supervisor.

    def _supervise(self) -> None:
        try:
            while (chore := self._next_chore()) is not None:
                chore()
        except Exception as error:  # noqa: BLE001 - a silent end would leave callers waiting
            with self._lock:
                self._fail(error)

    def _next_chore(self) -> Callable[[], None] | None:
        """What to do next without the lock; None at the end."""
        with self._lock:
            while not self._stopped:
                now = time.monotonic()
                self._notice_silence(now)
                if self._spooler is not None:
                    if self._spooler.has_done(self._lanes) and not self._spooler.resting(now):
                        return partial(self._release, self._spooler)
                    if batches := self._batches_to_spill(now):
                        return partial(self._spill, self._spooler, batches, self._own.durable)
                self._dial(now)
                self._chores.wait(self._patience(now))
            if self._link.streaming:
                self._link.lost(time.monotonic())
            self._link.on(Event.STOP)
            self._wake_all()
            return None

    def _notice_silence(self, now: float) -> None:
        if not self._link.streaming or now < self._silence_ends():
            return
        self._lose(f"no ack for {ACK_TIMEOUT_SECONDS:.0f} seconds")
        self._wake_all()

    def _silence_ends(self) -> float:
        waiting = self._lane.in_flight or self._link.phase is Phase.ENDING
        return self._last_progress + ACK_TIMEOUT_SECONDS if waiting else float("inf")

    def _dial(self, now: float) -> None:
        if not self._wants_stream or self._link.wait(now) != 0:
            return
        self._lane.rewind()
        self._link.dial()
        self._last_progress = self._dialled_at = now
        Stream(self, self._connection, self._lane, generation=self._link.generation).start()

    @property
    def _lane(self) -> Outbox:
        """Whose turn it is: earlier lives first."""
        return next((lane for lane in self._lanes if not lane.settled), self._own)

    @property
    def _wants_stream(self) -> bool:
        return not self._lane.settled and not (self._closing and self._own.settled)

    def _patience(self, now: float) -> float | None:
        """Seconds until something is to be done though nothing happens."""
        deadlines = []
        if self._link.streaming:
            deadlines.append(ACK_TIMEOUT_SECONDS)
        elif self._wants_stream and (wait := self._link.wait(now)) is not None:
            deadlines.append(wait)
        if self._wants_spill:
            idle = 0.0 if self._spooler is None else self._spooler.idle_until - now
            deadlines.append(max(SPILL_LINGER_SECONDS, idle))
        return min(deadlines, default=None)

    # The supervisor's disk work.

    @property
    def _wants_spill(self) -> bool:
        if self._spooler is None or not self._own.in_memory:
            return False
        away = self._link.phase is Phase.BROKEN or not self._link.trusted
        return away or self._pressed > 0 or self._keeps_for_later

    def _batches_to_spill(self, now: float) -> list[Batch]:
        if self._spooler is None or self._spooler.resting(now) or not self._wants_spill:
            return []
        if (
            (self._own.age(now) or 0.0) >= SPILL_LINGER_SECONDS
            or self._own.gathered_rows >= GATHER_ROWS
            or self._pressed
            or self._closing
        ):
            while self._own.seal():
                pass
        return self._own.to_spill(SPILL_BYTES)

    def _spill(self, spooler: Spooler, batches: Sequence[Batch], durable: int) -> None:
        places = spooler.spill(self._own.title, batches, durable=durable)
        with self._lock:
            for batch, place in zip(batches, places, strict=False):  # a full spool takes the first
                self._own.spilled(batch, place)
            if len(places) < len(batches):
                self._last_failure = spooler.failure
            self._progress.notify_all()

    def _release(self, spooler: Spooler) -> None:
        with self._lock:
            marks = [(lane.title, lane.durable) for lane in self._lanes]
        spooler.release(marks)
