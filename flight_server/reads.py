"""DoGet and GetFlightInfo: tickets answered from one snapshot."""

from collections.abc import Iterator
from typing import Final, assert_never

import pyarrow as pa
from pyarrow import flight

from flight_server.calls import CANCELLED, OK, Call, Calls
from flight_server.endpoints import daily
from flight_server.errors import LimitError, outcome_of, to_flight_error
from flight_server.identity import Identity, Scope
from flight_server.instants import parse_instant
from flight_server.live import LiveReads
from flight_server.readings import Reading, bytes_a_row, reading_of, scope_of
from flight_server.replays import Replays
from flight_server.streams import Slot, StreamSlots
from flight_server.tickets import (
    BarsTicket,
    LatestTicket,
    LiveTicket,
    RangeTicket,
    Ticket,
    record_of,
    ticket_bytes,
)
from storage.bar_sessions import Grid, parse_interval
from storage.bars_view import BarsRequest, bars, bars_schema
from storage.schemas import plain_projection
from storage.selection import Selection
from storage.snapshot import Answer, Snapshot, dataset_named
from storage.store import Store

UNKNOWN_COUNT: Final = -1
"""What Flight wants to hear where a count would cost more than it is worth."""
LATEST_ANSWER_ROWS_MAX: Final = 2_000_000
"""Rows of one ``latest``, all symbols together: it is put together in memory, about 200 MB."""


class Reads:
    """Answers tickets."""

    def __init__(
        self, store: Store, slots: StreamSlots, calls: Calls, live: LiveReads, replays: Replays
    ) -> None:
        self._store = store
        self._slots = slots
        self._calls = calls
        self._live = live
        self._replays = replays

    def stream(self, ticket: Ticket, call: Call) -> flight.FlightDataStream:
        """Answer a ticket.

        Raises:
            RequestError: The caller may not, or the ticket can't be answered.
            StorageError: Likewise.
        """
        call.operation = ticket.op
        snapshot = self._store.snapshot()
        match ticket:
            case LatestTicket():
                return self._latest(ticket, call, snapshot)
            case RangeTicket():
                call.ticket = record_of(ticket)
                return self._range(ticket, call, snapshot)
            case BarsTicket():
                call.ticket = record_of(ticket)
                return self._bars(ticket, call, snapshot)
            case LiveTicket(speed=None):
                call.ticket = record_of(ticket)
                return self._live.stream(ticket, call, snapshot)
            case LiveTicket():
                return self._replays.stream(ticket, call)
            case _:
                assert_never(ticket)

    def info(
        self, ticket: Ticket, caller: Identity, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """Return the schema of an answer and where to get it."""
        snapshot = self._store.snapshot()
        reading = reading_of(ticket, caller, scope_of(ticket))
        tickets: list[Ticket] = [ticket]
        count = UNKNOWN_COUNT
        match ticket:
            case BarsTicket():
                schema = bars_schema(snapshot, _bars_request(ticket, reading, snapshot))
            case LatestTicket():
                schema = snapshot.schema(reading.dataset.name, reading.selection, None)
            case RangeTicket():
                span = _span(ticket, snapshot)
                schema = snapshot.schema(reading.dataset.name, reading.selection, span)
                tickets = [*daily(ticket, reading.selection, span, snapshot)]
                count = _count(snapshot, reading, span)
            case LiveTicket():
                schema = plain_projection(
                    reading.dataset.name, reading.selection.columns_of(reading.dataset)
                )
        endpoints = [flight.FlightEndpoint(ticket_bytes(one), []) for one in tickets]
        return flight.FlightInfo(schema, descriptor, endpoints, count, UNKNOWN_COUNT)

    def schema(self, ticket: Ticket) -> pa.Schema:
        """Return the schema of an answer, without data of anybody in it."""
        dataset = dataset_named(ticket.dataset)
        names = Selection(columns=ticket.columns).columns_of(dataset)
        if isinstance(ticket, LiveTicket):
            return plain_projection(dataset.name, names)
        return pa.schema(dataset.wire_schema.field(name) for name in names)

    def _latest(
        self, ticket: LatestTicket, call: Call, snapshot: Snapshot
    ) -> flight.FlightDataStream:
        reading = reading_of(ticket, call.caller, Scope.READ_REALTIME)
        _check_answer(snapshot, reading, ticket.limit)
        answer = snapshot.latest(reading.dataset.name, reading.selection, ticket.limit)
        table = pa.Table.from_batches(answer.batches)
        size = table.num_rows * bytes_a_row(reading.dataset.name, ticket.columns)
        self._calls.hold(call, size)
        call.sent(table.num_rows, size)
        return flight.RecordBatchStream(table.replace_schema_metadata(answer.schema.metadata))

    def _range(
        self, ticket: RangeTicket, call: Call, snapshot: Snapshot
    ) -> flight.FlightDataStream:
        reading = reading_of(ticket, call.caller, Scope.READ_HISTORY)
        start, end = _span(ticket, snapshot)
        answer = snapshot.range(
            reading.dataset.name, reading.selection, start, end, ticket.order, reading.where
        )
        row_bytes = bytes_a_row(reading.dataset.name, ticket.columns)
        options = pa.ipc.IpcWriteOptions(compression=ticket.compression)
        return self._streamed(answer, options, call, row_bytes)

    def _bars(self, ticket: BarsTicket, call: Call, snapshot: Snapshot) -> flight.FlightDataStream:
        reading = reading_of(ticket, call.caller, Scope.READ_HISTORY)
        answer = bars(snapshot, _bars_request(ticket, reading, snapshot))
        row_bytes = bytes_a_row(reading.dataset.name, None)
        return self._streamed(answer, pa.ipc.IpcWriteOptions(), call, row_bytes)

    def _streamed(
        self, answer: Answer, options: pa.ipc.IpcWriteOptions, call: Call, row_bytes: int
    ) -> flight.FlightDataStream:
        slot = self._slots.take(call.caller.key_id)
        # Not in the generator: of one that is never asked for a block, nothing runs.
        call.release = slot.release
        call.outcome = CANCELLED
        return flight.GeneratorStream(
            answer.schema, _blocks(answer, options, call, slot, row_bytes)
        )


def _bars_request(ticket: BarsTicket, reading: Reading, snapshot: Snapshot) -> BarsRequest:
    grid = Grid(parse_interval(ticket.interval), ticket.session)
    return BarsRequest(reading.selection, grid, *_span(ticket, snapshot))


def _span(ticket: RangeTicket | BarsTicket, snapshot: Snapshot) -> tuple[int, int]:
    start = parse_instant(ticket.start, now=snapshot.now, field="start")
    return start, parse_instant(ticket.end, now=snapshot.now, field="end")


def _count(snapshot: Snapshot, reading: Reading, span: tuple[int, int]) -> int:
    """Return the rows of an answer, where that is known without reading them."""
    if reading.where is not None:
        return UNKNOWN_COUNT
    count = snapshot.count(reading.dataset.name, reading.selection, *span)
    return UNKNOWN_COUNT if count is None else count


def _check_answer(snapshot: Snapshot, reading: Reading, limit: int) -> None:
    """Refuse an answer of too many rows before it is put together."""
    symbols = reading.selection.symbols
    if symbols is not None and len(symbols) * limit <= LATEST_ANSWER_ROWS_MAX:
        return
    extents = snapshot.symbols(reading.dataset.name)
    rows = sum(
        min(limit, extent.rows)
        for symbol, extent in extents.items()
        if symbols is None or symbol in symbols
    )
    if rows > LATEST_ANSWER_ROWS_MAX:
        raise LimitError(
            f"the answer would have {rows} rows, and latest gives at most {LATEST_ANSWER_ROWS_MAX}:"
            " lower limit, name fewer symbols, or ask for a range, which is streamed"
        )


def _blocks(
    answer: Answer, options: pa.ipc.IpcWriteOptions, call: Call, slot: Slot, row_bytes: int
) -> Iterator[flight.FlightDataStream]:
    """Yield blocks as streams of their own: the only way to send dictionaries with options."""
    try:
        for batch in answer.batches:
            slot.moved()
            call.sent(batch.num_rows, batch.num_rows * row_bytes)
            table = pa.Table.from_batches([batch]).replace_schema_metadata(answer.schema.metadata)
            yield flight.RecordBatchStream(table, options=options)
        call.outcome = OK
    except Exception as error:  # noqa: BLE001 - what leaves here reaches the client as it is
        call.outcome = outcome_of(error)
        raise to_flight_error(error) from None
