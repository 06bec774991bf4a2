"""A writer's engine: callers put rows in, streams take them out, a supervisor looks after both.

One supervisor for the writer's life, two threads for each stream (``stream``). One lock guards all
they share (``state``); nothing slow happens under it: gRPC, disk and Arrow work on what was taken
out.
"""

import logging
import time
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from tickflight.connection import Connection
from tickflight.errors import (
    DeadlineError,
    SequenceError,
    ServerError,
    SpoolError,
    UnavailableError,
)
from tickflight.link import Event, Phase
from tickflight.outbox import Ack, Batch, Outbox
from tickflight.rows import joined, size_of, unpack
from tickflight.spool import Spool
from tickflight.state import WriterState
from tickflight.stats import WriterStats
from tickflight.stream import STREAM_LIFE_SECONDS, Stream
from tickflight.supervisor import Supervisor

PRESSED_SECONDS: Final = 0.1
"""How long a full memory waits for the server before a spool takes over."""
DISK_SECONDS: Final = 10.0
"""What ``close`` gives the spool to take the rest, beyond its own time."""
GOODBYE_SECONDS: Final = 5.0
"""What ``close`` gives the server to end a stream on which all is acked."""
MAX_REWINDS: Final = 5
"""Sequence errors in a row without an ack between: somebody else uses this producer id."""

_TRANSIENT: Final = (UnavailableError, DeadlineError, ServerError)

logger = logging.getLogger("tickflight.writer")


class Engine:
    """Carries rows to the server; ``Writer`` is its face."""

    def __init__(self, connection: Connection, outbox: Outbox, spool: Spool | None) -> None:
        self._connection = connection
        self._state = WriterState(outbox, spool)
        self._supervisor = Supervisor(self._state, self._open_stream)
        self._supervisor.start()

    def __repr__(self) -> str:
        return f"<Engine {self._state.link} {list(self._state.lanes)}>"

    # What callers ask for.

    def put(self, batches: Sequence[pa.RecordBatch], *, timeout: float | None) -> bool:
        """Take all batches or none; none when a spool is there and full.

        Raises:
            DeadlineError: there was no room in time.
            TickflightError: the writer was closed, or the server refused earlier rows for good.
        """
        state = self._state
        sizes = [size_of(batch) for batch in batches]
        with state.lock:
            state.check_open()
            if not state.own.fits(sum(sizes)) and not self._wait_for_room(sum(sizes), timeout):
                return False
            now = time.monotonic()
            for batch, size in zip(batches, sizes, strict=True):
                state.own.put(batch, rows=batch.num_rows, size=size, kind=batch.schema, now=now)
            state.work.notify()
            if not state.link.streaming:
                state.chores.notify()
        return True

    def flush(self, *, timeout: float | None) -> None:
        """Wait until what was put so far is durable on the server."""
        state = self._state
        with state.lock:
            target = state.own.rows_written
            state.hurried += 1
            state.own.hurry = True
            state.work.notify()
            try:
                done = state.progress.wait_for(lambda: self._is_settled(target), timeout)
            finally:
                state.hurried -= 1
                state.own.hurry = state.closing or state.hurried > 0
            if state.own.rows_durable >= target:
                return
            if done:
                state.check_open()
            missing = target - state.own.rows_durable
            reason = f" ({state.last_failure})" if state.last_failure else ""
        raise DeadlineError(f"{missing} rows are not durable yet{reason}")

    def close(self, *, timeout: float | None) -> None:
        """Make all durable on the server or, when it is away, in the spool; then end."""
        state = self._state
        with state.lock:
            if state.stopped:
                return
            state.closing = state.own.hurry = True
            state.wake_all()
            if (
                not state.progress.wait_for(lambda: state.can_close, timeout)
                and state.spooler is not None
            ):
                state.pressed += 1
                state.chores.notify()
                state.progress.wait_for(lambda: state.is_safe, DISK_SECONDS)
            if state.own.settled:
                state.progress.wait_for(lambda: not state.link.streaming, GOODBYE_SECONDS)
            lost = state.own.rows_written - state.own.rows_durable if state.own.in_memory else 0
            state.stopped = True
            state.wake_all()
        self._supervisor.join()
        if state.spooler is not None:
            state.spooler.spool.close()
        if state.error is not None:
            raise state.error.with_traceback(None)
        if lost:
            reason = f" ({state.last_failure})" if state.last_failure else ""
            raise DeadlineError(f"closed with up to {lost} rows that are not durable{reason}")

    def stats(self) -> WriterStats:
        """What was done so far."""
        state = self._state
        with state.lock:
            spooled = [batch for lane in state.lanes for batch in lane.spooled]
            return WriterStats(
                rows_written=state.own.rows_written,
                rows_durable=state.own.rows_durable,
                rows_quarantined=state.own.rows_quarantined,
                rows_duplicate=state.own.rows_duplicate,
                reconnects=state.link.losses,
                spooled_rows=sum(batch.rows for batch in spooled),
                spooled_bytes=0 if state.spooler is None else state.spooler.spool.size,
                connected=state.link.phase in (Phase.OPEN, Phase.ENDING),
                last_failure=state.last_failure,
            )

    def _wait_for_room(self, size: int, timeout: float | None) -> bool:
        """Whether there is room at last; not when there is a spool and it takes nothing."""
        state = self._state
        began = time.monotonic()
        patience = timeout
        if state.spooler is not None:
            patience = PRESSED_SECONDS if timeout is None else min(timeout, PRESSED_SECONDS)
        if not state.progress.wait_for(lambda: self._has_room(size), patience):
            state.pressed += 1
            state.chores.notify()
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            try:
                state.progress.wait_for(lambda: self._has_room(size), left)
            finally:
                state.pressed -= 1
        state.check_open()
        if state.own.fits(size):
            return True
        if state.spool_rests:
            return False
        raise DeadlineError("there was no room in time: the rows were not taken")

    def _is_settled(self, target: int) -> bool:
        state = self._state
        return state.own.rows_durable >= target or state.error is not None or state.stopped

    def _has_room(self, size: int) -> bool:
        """Whether waiting for room is over, for better or worse."""
        state = self._state
        over = state.error is not None or state.closing or state.spool_rests
        return over or state.own.fits(size)

    # What streams report; ``StreamHost``.

    def take(self, stream: Stream) -> Batch | None:
        """See ``StreamHost.take``."""
        state = self._state
        outbox = stream.outbox
        with state.lock:
            while self._is_current(stream) and not stream.over.is_set():
                now = time.monotonic()
                if outbox.in_flight == 0:
                    state.last_progress = now
                batch = outbox.next_batch(now)
                if batch is not None:
                    return batch
                age = now - state.dialled_at
                if age >= STREAM_LIFE_SECONDS or self._is_complete(outbox):
                    return None
                wait = outbox.wait(now)
                state.work.wait(STREAM_LIFE_SECONDS - age if wait is None else wait)
            return None

    def load(self, stream: Stream, batch: Batch) -> pa.RecordBatch | None:
        """See ``StreamHost.load``."""
        with self._state.lock:
            parts, place = batch.parts, batch.place
        if parts is not None or place is None:
            return joined(parts or ())
        try:
            return unpack(Spool.read(place))
        except SpoolError:
            with self._state.lock:
                if batch.seq <= stream.outbox.durable:
                    return None
            raise

    def opened(self, stream: Stream) -> None:
        """See ``StreamHost.opened``."""
        with self._state.lock:
            if self._is_current(stream):
                self._state.link.on(Event.OPENED)

    def finishing(self, stream: Stream) -> None:
        """See ``StreamHost.finishing``."""
        state = self._state
        with state.lock:
            if self._is_current(stream):
                state.link.on(Event.FINISH)
                state.last_progress = time.monotonic()

    def acked(self, stream: Stream, ack: Ack) -> None:
        """See ``StreamHost.acked``."""
        state = self._state
        with state.lock:
            if state.stopped:
                return
            try:
                stream.outbox.acked(ack)
            except SequenceError as error:
                state.fail(error)
                return
            if self._is_current(stream):
                if not state.link.trusted:
                    logger.info("the server takes rows of %s again", stream.outbox.title.producer)
                state.link.proved()
                state.rewinds = 0
                state.last_progress = time.monotonic()
            state.work.notify()
            state.progress.notify_all()
            if state.spooler is not None and state.spooler.spool.size:
                state.chores.notify()

    def hung_up(self, stream: Stream) -> None:
        """See ``StreamHost.hung_up``."""
        with self._state.lock:
            if self._is_current(stream):
                self._state.work.notify_all()

    def ended(self, stream: Stream, error: Exception | None) -> None:
        """See ``StreamHost.ended``."""
        state = self._state
        with state.lock:
            if not self._is_current(stream):
                return
            if error is None and stream.outbox.in_flight:
                error = UnavailableError("the server ended the stream before it acked all of it")
            if error is None:
                state.link.on(Event.ENDED)
            elif self._is_transient(error, stream.outbox):
                state.lose(str(error))
            else:
                if stream.outbox is not state.own and state.spooler is not None:
                    path = state.spooler.spool.path
                    error.add_note(f"while sending what an earlier writer left in {path}")
                state.fail(error)
            state.wake_all()

    def _open_stream(self, outbox: Outbox, generation: int) -> None:
        Stream(self, self._connection, outbox, generation=generation).start()

    def _is_current(self, stream: Stream) -> bool:
        link = self._state.link
        return link.streaming and stream.generation == link.generation

    def _is_complete(self, outbox: Outbox) -> bool:
        state = self._state
        if state.closing and state.own.settled:
            return True  # the rest of an earlier life stays on disk for the next
        return outbox.all_sent and (outbox is not state.own or state.closing)

    def _is_transient(self, error: Exception, outbox: Outbox) -> bool:
        if isinstance(error, SequenceError):
            self._state.rewinds += 1
            return outbox.can_resume_at(error.expected) and self._state.rewinds <= MAX_REWINDS
        return isinstance(error, _TRANSIENT)
