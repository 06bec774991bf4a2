"""Live streams: what there was from some time on, then what arrives, with nothing missing between.

A history is one snapshot in total order, and ends at the position of its newest row; the arrivals
begin there. Whoever was cut off says how far he had come, and goes on from there.
"""

from pyarrow import flight

from flight_server.calls import CANCELLED, Call
from flight_server.errors import InvalidArgumentError, ScopeError
from flight_server.identity import Identity, Scope
from flight_server.instants import INSTANT_MAX, parse_instant
from flight_server.live_history import LiveHistory
from flight_server.live_stream import LivePlan, LiveStream
from flight_server.readings import Reading, bytes_a_row, reading_of
from flight_server.streams import StreamSlots
from flight_server.tickets import LiveTicket
from storage.ordering import order_key, reading_order
from storage.ports import Clock
from storage.schemas import plain_projection
from storage.selection import Selection
from storage.snapshot import Snapshot
from storage.store import Store


class LiveReads:
    """Answers live tickets.

    Args:
        store: What is read.
        slots: The streams that may run.
        clock: Where time comes from.
    """

    def __init__(self, store: Store, slots: StreamSlots, clock: Clock) -> None:
        self._store = store
        self._slots = slots
        self._clock = clock

    def stream(self, ticket: LiveTicket, call: Call, snapshot: Snapshot) -> flight.FlightDataStream:
        """Answer a ticket without ``speed``.

        Raises:
            RequestError: The caller may not, or the ticket can't be answered.
            StorageError: Likewise.
        """
        reading = reading_of(ticket, call.caller, Scope.READ_REALTIME)
        plan = self._plan(ticket, reading, call.caller, snapshot)
        history = self._history(ticket, reading, plan, snapshot)
        slot = self._slots.take(call.caller.key_id, call.caller.model_id)
        # Not in the generator: of one that is never asked for a block, nothing runs.
        call.release = slot.release
        call.outcome = CANCELLED
        schema = plan.schema if history is None else history.schema
        stream = LiveStream(plan, self._store.arrivals, self._clock, call, slot)
        return flight.GeneratorStream(schema, stream.batches(history))

    def _plan(
        self, ticket: LiveTicket, reading: Reading, caller: Identity, snapshot: Snapshot
    ) -> LivePlan:
        start = None
        if ticket.start is not None:
            start = parse_instant(ticket.start, now=snapshot.now, field="start")
            self._check_age(start, caller, snapshot.now)
        end = None
        if ticket.end is not None:
            end = parse_instant(ticket.end, now=snapshot.now, field="end")
            if start is not None and end < start:
                raise InvalidArgumentError("end lies before start", field="end")
        dataset, selection = reading.dataset, reading.selection
        names = selection.columns_of(dataset)
        return LivePlan(
            dataset=dataset,
            symbols=None if selection.symbols is None else frozenset(selection.symbols),
            schema=plain_projection(dataset.name, names),
            start=start,
            end=end,
            position=self._position(ticket, snapshot),
            gaps_from=snapshot.end("gaps"),
            min_interval_seconds=(ticket.min_interval_ms or 0) / 1_000,
            bytes_a_row=bytes_a_row(dataset.name, ticket.columns),
        )

    def _position(self, ticket: LiveTicket, snapshot: Snapshot) -> int:
        """Return where the arrivals begin that are to be sent, or looked at."""
        after = ticket.after
        if after is None:
            return snapshot.end(ticket.dataset)
        return self._store.arrivals.resumed(ticket.dataset, after.epoch, after.pos)

    def _history(
        self, ticket: LiveTicket, reading: Reading, plan: LivePlan, snapshot: Snapshot
    ) -> LiveHistory | None:
        """Return the history that a stream begins with, None where it begins with arrivals."""
        after = ticket.after
        if plan.start is None or (after is not None and after.key is None):
            return None
        dataset = reading.dataset
        order = reading_order(dataset)
        key = None
        since = plan.start
        if after is not None and after.key is not None:
            key = order_key(dataset, after.key)
            since = max(since, int(key[0] or 0))
        names = tuple(dict.fromkeys((*plan.schema.names, *order)))
        chosen = Selection(reading.selection.symbols, names, ticket.source)
        until = INSTANT_MAX if plan.end is None else plan.end
        answer = snapshot.range(dataset.name, chosen, since, max(since, until))
        coverage = snapshot.schema(dataset.name, reading.selection, (plan.start, snapshot.now))
        return LiveHistory(
            schema=plan.schema.with_metadata(coverage.metadata),
            names=names,
            order=order,
            position=snapshot.end(dataset.name),
            passed=key,
            rows=answer.batches,
        )

    def _check_age(self, start: int, caller: Identity, now: int) -> None:
        hot = self._store.hot_window_us
        if start < now - hot and Scope.READ_HISTORY not in caller.scopes:
            raise ScopeError(
                f"a start more than {hot // 60_000_000} minutes ago needs a key with the scope"
                f" {Scope.READ_HISTORY}; begin later, or use such a key",
                scope=Scope.READ_HISTORY,
            )
