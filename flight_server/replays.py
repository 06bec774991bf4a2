"""Replays: rows of a span of time again, when they were received, at any speed.

A replay has a clock of its own. It starts with the receipt of the first row, runs ``speed`` times
as fast as ours, and stops at ``end``: what was received later, such as a backfill of days after, is
known by then and comes at once. A row is never sent early, and late by less than a step.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final, final

import pyarrow as pa
from pyarrow import flight

from flight_server.auth import require_welcome
from flight_server.calls import CANCELLED, OK, Call
from flight_server.errors import outcome_of, to_flight_error
from flight_server.identity import Scope
from flight_server.instants import parse_instant
from flight_server.live_stream import (
    HEARTBEAT_SECONDS,
    LOOK_SECONDS,
    NOTHING_MORE,
    WELCOME_SECONDS,
    Message,
)
from flight_server.readings import bytes_a_row, reading_of
from flight_server.streams import Slot, StreamSlots
from flight_server.tickets import LiveTicket, record_of
from storage.ports import MICROSECONDS, Clock
from storage.reordering import Received, Spill
from storage.replay import Replay, replay
from storage.runs import Integers
from storage.store import Store

REPLAYS_MAX: Final = 64
"""Replays at once: rows that wait for their turn take up to 64 MiB of each."""
REPLAYS_PER_KEY_MAX: Final = 32
"""Of them for one key."""
STEP_SECONDS: Final = 0.005
"""Rows that fall due within it go out together: a batch of one row costs as much as one of many."""


@final
class Replays:
    """Answers live tickets with a speed.

    Args:
        store: What there is.
        slots: How many may run.
        clock: Where time comes from.
        spill: Where rows may wait that were received late.
    """

    def __init__(self, store: Store, slots: StreamSlots, clock: Clock, spill: Spill) -> None:
        self._store = store
        self._slots = slots
        self._clock = clock
        self._spill = spill

    def stream(self, ticket: LiveTicket, call: Call) -> flight.FlightDataStream:
        """Answer a ticket that has a start, an end and a speed.

        Raises:
            RequestError: The caller may not, or the ticket can't be answered.
            StorageError: Likewise.
        """
        assert ticket.start is not None  # noqa: S101 - the ticket was checked
        assert ticket.end is not None  # noqa: S101
        assert ticket.speed is not None  # noqa: S101
        call.operation = "replay"
        call.ticket = record_of(ticket)
        reading = reading_of(ticket, call.caller, Scope.READ_HISTORY)
        snapshot = self._store.snapshot()
        start = parse_instant(ticket.start, now=snapshot.now, field="start")
        end = parse_instant(ticket.end, now=snapshot.now, field="end")
        name = reading.dataset.name
        played = replay(snapshot, name, reading.selection, (start, end), self._spill)
        slot = self._slots.take(call.caller.key_id)
        call.release = slot.release
        call.outcome = CANCELLED
        pace = Pace(ticket.speed, end, self._clock)
        place = _Place(self._store, name, snapshot.end(name))
        row_bytes = bytes_a_row(name, ticket.columns)
        guard = _Guard(call, slot, self._clock)
        player = _Player(played, pace, place, guard, self._clock)
        hello = {"start": start, "end": end}
        return flight.GeneratorStream(played.schema, player.messages(call, row_bytes, hello))


@final
class Pace:
    """When rows are due.

    Args:
        speed: So many times as fast as they were received; 0 is at once.
        end: Where the replay's clock stops, µs.
        clock: Ours.
    """

    def __init__(self, speed: float, end: int, clock: Clock) -> None:
        self._speed = speed
        self._end = end
        self._clock = clock
        # The mutable state: when the replay's clock was started, on ours, and what it said then.
        self._started: float | None = None
        self._first = 0

    def due(self, receipts: Integers) -> int:
        """Return how many of the next rows are due; the first ever start the clock.

        Args:
            receipts: When they were received, µs, in order.
        """
        if not self._speed:
            return len(receipts)
        if self._started is None:
            self._started = self._clock.monotonic()
            self._first = min(int(receipts[0]), self._end)
        passed = (self._clock.monotonic() - self._started) * self._speed
        now = self._first + int(passed * MICROSECONDS)
        return len(receipts) if now >= self._end else int(receipts.searchsorted(now, side="right"))

    def rest(self, sent_at: float) -> float:
        """Return how long to gather rows, seconds, since some went out."""
        if not self._speed:
            return 0.0
        return max(0.0, sent_at + STEP_SECONDS - self._clock.monotonic())

    def seconds_to(self, receipt: int) -> float:
        """Return how long it is until a row is due."""
        if not self._speed or self._started is None:
            return 0.0
        after = (min(receipt, self._end) - self._first) / MICROSECONDS / self._speed
        return self._started + after - self._clock.monotonic()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a replay stands among the arrivals: always at the end of its snapshot."""

    store: Store
    dataset: str
    position: int

    def metadata(
        self,
        received: int | None,
        *,
        is_last: bool = False,
        more: Mapping[str, object] = NOTHING_MORE,
    ) -> bytes:
        """Return what a batch says of itself; ``received`` is when its last row was, µs."""
        arrivals = self.store.arrivals
        told = {
            "epoch": arrivals.epoch,
            "pos": self.position,
            "durable": arrivals.durable(self.dataset),
            "caught_up": is_last,
            "replay": True,
            "ts_recv": received,
            **more,
        }
        return json.dumps(told, separators=(",", ":")).encode()


@final
class _Guard:
    """Finds out, now and then, whether a replay has to end."""

    def __init__(self, call: Call, slot: Slot, clock: Clock) -> None:
        self._call = call
        self._slot = slot
        self._clock = clock
        self._looked_at = self._welcome_at = clock.monotonic()

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            _ClientGoneError: Nobody takes the replay any more.
            RequestError: The key is not accepted any more, or the server is shutting down.
        """
        self._slot.moved()
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if self._call.is_cancelled():
            raise _ClientGoneError
        if now - self._welcome_at >= WELCOME_SECONDS:
            self._welcome_at = now
            require_welcome(self._call)


class _ClientGoneError(Exception):
    """The client has cancelled, or is not there any more; never leaves this module."""


@final
class _Player:
    """Plays one replay, once."""

    def __init__(
        self, played: Replay, pace: Pace, place: _Place, guard: _Guard, clock: Clock
    ) -> None:
        self._replay = played
        self._pace = pace
        self._place = place
        self._guard = guard
        self._clock = clock
        self._empty = pa.RecordBatch.from_pylist([], played.schema)
        # The mutable state: when something was last sent, and how far the replay has come.
        self._sent_at = clock.monotonic()
        self._received: int | None = None

    def messages(
        self, call: Call, row_bytes: int, hello: Mapping[str, object]
    ) -> Iterator[Message]:
        """Yield what is sent; the first is empty and says what the span is, in µs."""
        try:
            yield self._empty, self._place.metadata(None, more=hello)
            with closing(self._replay.blocks) as blocks:
                for block in blocks:
                    for rows, metadata in self._played(block):
                        call.sent(rows.num_rows, rows.num_rows * row_bytes)
                        yield rows, metadata
            # Empty, and the last: whoever reads knows that the replay came to its end.
            yield self._empty, self._place.metadata(self._received, is_last=True)
            call.outcome = OK
        except _ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001 - what leaves here reaches the client as it is
            call.outcome = outcome_of(error)
            raise to_flight_error(error) from None

    def _played(self, block: Received | None) -> Iterator[Message]:
        if block is None:
            self._guard.look()
            yield from self._heartbeat()
            return
        rows, receipts = block.rows, block.receipts
        while len(receipts):
            self._guard.look()
            self._clock.sleep(self._pace.rest(self._sent_at))
            due = self._pace.due(receipts)
            if due:
                self._received = int(receipts[due - 1])
                self._sent_at = self._clock.monotonic()
                yield rows.slice(0, due), self._place.metadata(self._received)
                rows, receipts = rows.slice(due), receipts[due:]
            else:
                wait = max(self._pace.seconds_to(int(receipts[0])), 0.0)
                self._clock.sleep(min(wait, LOOK_SECONDS))
                yield from self._heartbeat()

    def _heartbeat(self) -> Iterator[Message]:
        if self._clock.monotonic() - self._sent_at >= HEARTBEAT_SECONDS:
            self._sent_at = self._clock.monotonic()
            yield self._empty, self._place.metadata(self._received)
