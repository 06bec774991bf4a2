"""One live stream on its way: its batches, what is said with them, and when it has to end.

It runs in the thread of its call, only while gRPC asks for the next batch: a client that takes
nothing holds nothing but that thread and its position.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final

import pyarrow as pa

from flight_server.auth import require_welcome
from flight_server.calls import OK, Call
from flight_server.errors import outcome_of, to_flight_error
from flight_server.instants import INSTANT_MAX
from flight_server.live_history import LiveHistory
from flight_server.streams import Slot
from storage.arrival_blocks import Wanted
from storage.arrivals import Arrivals, Cursor
from storage.ledger import Gap
from storage.ordering import KeyValues
from storage.ports import MICROSECONDS, Clock
from storage.quarantine import plain_rows
from storage.schemas import GAPS, Dataset

HEARTBEAT_SECONDS: Final = 2.0
"""Longest silence of a stream: what a client may take for a lost connection is several of them."""
LOOK_SECONDS: Final = 0.25
"""How often a stream that waits looks whether its client is still there."""
WELCOME_SECONDS: Final = 2.0
"""How often it looks whether its key is still good: one that was revoked stops within 5 s."""
DURABLE_POLL_SECONDS: Final = 0.002
"""How often a history looks whether its end is durable: a commit takes some 5 ms."""

NOTHING_MORE: Final[Mapping[str, object]] = MappingProxyType({})
Message = tuple[pa.RecordBatch, bytes]
"""A batch, and its ``app_metadata``."""


@final
@dataclass(frozen=True, slots=True)
class LivePlan:
    """What a live stream is to send.

    Attributes:
        dataset: Rows of which dataset.
        symbols: Whose rows; None is everybody's.
        schema: Columns to send.
        start: First ``ts_event``, µs; None takes rows however old.
        end: Instant at which the stream ends, and the first ``ts_event`` it does not send, µs.
        position: Position of the first arrival to look at.
        gaps_from: Likewise of ``gaps``.
        min_interval_seconds: Least time between two batches.
        bytes_a_row: What a row takes on its way.
    """

    dataset: Dataset
    symbols: frozenset[str] | None
    schema: pa.Schema
    start: int | None
    end: int | None
    position: int
    gaps_from: int
    min_interval_seconds: float
    bytes_a_row: int

    @property
    def since(self) -> int:
        """First ``ts_event`` to send, µs."""
        return 0 if self.start is None else self.start

    @property
    def until(self) -> int:
        """First ``ts_event`` not to send, µs."""
        return INSTANT_MAX if self.end is None else self.end

    def has_symbol(self, symbol: str | None) -> bool:
        """Whether something told of a symbol, or of all, is about these rows."""
        return self.symbols is None or symbol is None or symbol in self.symbols


@final
class LiveStream:
    """Makes the messages of one stream; used by the thread of its call.

    Args:
        plan: What to send.
        arrivals: Where rows come from.
        clock: Where time comes from.
        call: Counts what is sent, and tells when the client is gone, or its key.
        slot: Tells when the stream has to make room.
    """

    def __init__(
        self,
        plan: LivePlan,
        arrivals: Arrivals,
        clock: Clock,
        call: Call,
        slot: Slot,
    ) -> None:
        self._plan = plan
        self._arrivals = arrivals
        self._clock = clock
        self._call = call
        self._slot = slot
        self._nothing = pa.RecordBatch.from_pylist([], plan.schema)
        self._gaps = arrivals.cursor(Wanted(GAPS.name, tuple(GAPS.schema.names)), plan.gaps_from)
        self._sent_at = self._looked_at = self._welcome_at = clock.monotonic()
        self._next_rows_at = 0.0
        self._epoch = arrivals.epoch
        self._last: int | None = None  # position of the last row before ``end``

    def batches(self, history: LiveHistory | None) -> Iterator[Message]:
        """Yield the messages of the stream, until it ends or its client is gone."""
        try:
            for message in self._messages(history):
                self._slot.moved()
                self._sent_at = self._clock.monotonic()
                rows = message[0].num_rows
                self._call.sent(rows, rows * self._plan.bytes_a_row)
                yield message
        except _ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001 - what leaves here reaches the client as it is
            self._call.outcome = outcome_of(error)
            raise to_flight_error(error) from None
        self._call.outcome = OK

    def _messages(self, history: LiveHistory | None) -> Iterator[Message]:
        plan = self._plan
        told = {"start": plan.start, "end": plan.end}
        hello = {name: instant for name, instant in told.items() if instant is not None}
        if history is None:
            yield self._message(self._nothing, plan.position, more=hello)
            yield from self._present(plan.position)
            return
        if history.passed is None:
            yield self._past_message(self._nothing, history.position, None, hello)
        else:
            yield self._past_message(self._nothing, plan.position, history.passed, hello)
            yield from self._late(history)
        yield from self._past(history)
        yield from self._present(history.position)

    # The phases

    def _late(self, history: LiveHistory) -> Iterator[Message]:
        """Send what came since the client was cut off, and belongs before what he has."""
        wanted = Wanted(self._plan.dataset.name, history.names, self._plan.symbols)
        with closing(self._arrivals.cursor(wanted, self._plan.position)) as cursor:
            yield from self._until_durable(history, cursor.position)
            while cursor.position < history.position:
                block = cursor.read(history.position)
                if block is None:
                    cursor.wait(LOOK_SECONDS)
                    self._look()
                    continue
                rows = history.late(block.within(self._plan.since, self._plan.until))
                if rows.num_rows or self._is_silent:
                    yield self._past_message(self._projected(rows), cursor.position, history.passed)

    def _past(self, history: LiveHistory) -> Iterator[Message]:
        """Send the history, once nothing of it can be taken back by a crash."""
        yield from self._until_durable(history, history.position)
        for batch, key in history.batches():
            self._look()
            yield self._past_message(self._projected(batch), history.position, key)

    def _present(self, position: int) -> Iterator[Message]:
        """Send what arrives."""
        plan = self._plan
        wanted = Wanted(plan.dataset.name, tuple(plan.schema.names), plan.symbols)
        with closing(self._arrivals.cursor(wanted, position)) as cursor:
            yield from self._followed(cursor)

    def _followed(self, cursor: Cursor) -> Iterator[Message]:
        plan = self._plan
        is_told = False  # that all was sent
        while not self._is_over(cursor):
            yield from self._notices(cursor.position)
            yield from self._rest(cursor.position)
            self._look()
            block = cursor.read()
            if block is not None:
                rows = block.within(plan.since, plan.until)
                if rows.num_rows:
                    is_told = cursor.is_caught_up
                    yield self._message(rows, cursor.position, caught_up=is_told)
                    self._next_rows_at = self._sent_at + plan.min_interval_seconds
            elif not is_told:
                is_told = True
                yield self._message(self._nothing, cursor.position, caught_up=True)
            else:
                cursor.wait(self._patience)
            if self._is_silent:
                caught_up = cursor.is_caught_up
                yield self._message(self._nothing, cursor.position, caught_up=caught_up)

    # Between batches

    def _until_durable(self, history: LiveHistory, position: int) -> Iterator[Message]:
        """Wait until all that the history has is durable."""
        name = self._plan.dataset.name
        while self._arrivals.durable(name) < history.position:
            self._look()
            self._clock.sleep(DURABLE_POLL_SECONDS)
            if self._is_silent:
                yield self._past_message(self._nothing, position, history.passed)

    def _notices(self, position: int) -> Iterator[Message]:
        """Tell of gaps that have opened or closed."""
        plan = self._plan
        while (block := self._gaps.read()) is not None:
            for row in plain_rows(pa.Table.from_batches([block.rows])):
                if row["dataset"] == plan.dataset.name and plan.has_symbol(row["symbol"]):
                    gap = {name: row[name] for name in Gap.__slots__}
                    yield self._message(self._nothing, position, more={"gap": gap})

    def _rest(self, position: int) -> Iterator[Message]:
        """Keep the pause between two batches that the client asked for."""
        while (left := self._next_rows_at - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left, LOOK_SECONDS))
            self._look()
            if self._is_silent:
                yield self._message(self._nothing, position)

    def _is_over(self, cursor: Cursor) -> bool:
        """Whether ``end`` has passed, and all that came before it was looked at."""
        end = self._plan.end
        if end is None or self._clock.now() < end:
            return False
        if self._last is None:
            self._last = self._arrivals.end(self._plan.dataset.name)
        return cursor.position >= self._last

    @property
    def _patience(self) -> float:
        """How long to wait for rows before looking round, seconds."""
        end = self._plan.end
        if end is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, (end - self._clock.now()) / MICROSECONDS))

    @property
    def _is_silent(self) -> bool:
        return self._clock.monotonic() - self._sent_at >= HEARTBEAT_SECONDS

    def _look(self) -> None:
        """Find out, now and then, whether the stream has to end.

        Raises:
            _ClientGoneError: Nobody takes it any more.
            RequestError: The key is not accepted any more, or the server is shutting down.
        """
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._slot.moved()
        if self._call.is_cancelled():
            raise _ClientGoneError
        if now - self._welcome_at >= WELCOME_SECONDS:
            self._welcome_at = now
            require_welcome(self._call)

    # Messages

    def _projected(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        schema = self._plan.schema
        columns = [rows.column(name) for name in schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _past_message(
        self,
        rows: pa.RecordBatch,
        position: int,
        key: KeyValues | None,
        more: Mapping[str, object] = NOTHING_MORE,
    ) -> Message:
        told: dict[str, object] = (
            {"history": True} if key is None else {"history": True, "key": key}
        )
        return self._message(rows, position, more={**told, **more})

    def _message(
        self,
        rows: pa.RecordBatch,
        position: int,
        *,
        caught_up: bool = False,
        more: Mapping[str, object] = NOTHING_MORE,
    ) -> Message:
        durable = self._arrivals.durable(self._plan.dataset.name)
        told = "true" if caught_up else "false"
        # Written by hand: it goes with every batch, and takes json five times as long.
        about = f'{{"epoch":{self._epoch},"pos":{position},"durable":{durable},"caught_up":{told}'
        rest = f",{json.dumps(dict(more), separators=(',', ':'))[1:]}" if more else "}"
        return rows, (about + rest).encode()


class _ClientGoneError(Exception):
    """The client has cancelled, or is not there any more; never leaves this module."""
