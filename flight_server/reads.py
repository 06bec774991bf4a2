"""DoGet and GetFlightInfo: tickets answered from one snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, assert_never

import pyarrow as pa
from pyarrow import flight

from flight_server.calls import CANCELLED, OK, Call, Calls
from flight_server.endpoints import daily
from flight_server.errors import LimitError, outcome_of, to_flight_error
from flight_server.identity import Identity, Scope
from flight_server.instants import parse_instant
from flight_server.streams import Slot, StreamSlots
from flight_server.tickets import (
    BarsTicket,
    LatestTicket,
    RangeTicket,
    Ticket,
    record_of,
    ticket_bytes,
)
from storage.bar_sessions import Grid, parse_interval
from storage.bars_view import BarsRequest, bars, bars_schema
from storage.schemas import DATASETS, Dataset
from storage.selection import Selection
from storage.snapshot import Answer, Snapshot, dataset_named
from storage.store import Store
from storage.where import Where

UNKNOWN_COUNT: Final = -1
"""What Flight wants to hear where a count would cost more than it is worth."""
LATEST_ANSWER_ROWS_MAX: Final = 2_000_000
"""Rows of one ``latest``, all symbols together: it is put together in memory, about 200 MB."""
VARIABLE_WIDTH_BYTES: Final = 32
"""What a value without a fixed width counts for in ``bytes``: a label rather than a list."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a ticket asks for, after the caller's rights were applied."""

    dataset: Dataset
    selection: Selection
    where: Where | None


class Reads:
    """Answers tickets."""

    def __init__(self, store: Store, slots: StreamSlots, calls: Calls) -> None:
        self._store = store
        self._slots = slots
        self._calls = calls

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
            case _:
                assert_never(ticket)

    def info(
        self, ticket: Ticket, caller: Identity, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """Return the schema of an answer and where to get it."""
        snapshot = self._store.snapshot()
        realtime = isinstance(ticket, LatestTicket)
        reading = _reading(ticket, caller, Scope.READ_REALTIME if realtime else Scope.READ_HISTORY)
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
        endpoints = [flight.FlightEndpoint(ticket_bytes(one), []) for one in tickets]
        return flight.FlightInfo(schema, descriptor, endpoints, count, UNKNOWN_COUNT)

    def schema(self, ticket: Ticket) -> pa.Schema:
        """Return the schema of an answer, without data of anybody in it."""
        dataset = dataset_named(ticket.dataset)
        names = Selection(columns=ticket.columns).columns_of(dataset)
        return pa.schema(dataset.wire_schema.field(name) for name in names)

    def _latest(
        self, ticket: LatestTicket, call: Call, snapshot: Snapshot
    ) -> flight.FlightDataStream:
        reading = _reading(ticket, call.caller, Scope.READ_REALTIME)
        _check_answer(snapshot, reading, ticket.limit)
        answer = snapshot.latest(reading.dataset.name, reading.selection, ticket.limit)
        table = pa.Table.from_batches(answer.batches)
        size = table.num_rows * _row_bytes(reading.dataset.name, ticket.columns)
        self._calls.hold(call, size)
        call.sent(table.num_rows, size)
        return flight.RecordBatchStream(table.replace_schema_metadata(answer.schema.metadata))

    def _range(
        self, ticket: RangeTicket, call: Call, snapshot: Snapshot
    ) -> flight.FlightDataStream:
        reading = _reading(ticket, call.caller, Scope.READ_HISTORY)
        start, end = _span(ticket, snapshot)
        answer = snapshot.range(
            reading.dataset.name, reading.selection, start, end, ticket.order, reading.where
        )
        row_bytes = _row_bytes(reading.dataset.name, ticket.columns)
        options = pa.ipc.IpcWriteOptions(compression=ticket.compression)
        return self._streamed(answer, options, call, row_bytes)

    def _bars(self, ticket: BarsTicket, call: Call, snapshot: Snapshot) -> flight.FlightDataStream:
        reading = _reading(ticket, call.caller, Scope.READ_HISTORY)
        answer = bars(snapshot, _bars_request(ticket, reading, snapshot))
        row_bytes = _row_bytes(reading.dataset.name, None)
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


def _reading(ticket: Ticket, caller: Identity, scope: Scope) -> Reading:
    caller.require(scope)
    dataset = dataset_named(ticket.dataset)
    if dataset.admin_only:
        caller.require(Scope.ADMIN)
    for symbol in ticket.symbols:
        caller.may_read(symbol)
    symbols: tuple[str, ...] | None = tuple(dict.fromkeys(ticket.symbols))  # each once
    if not symbols:
        symbols = None if caller.symbols is None else tuple(sorted(caller.symbols))
    selection = Selection(
        symbols=symbols,
        columns=ticket.columns,
        source=ticket.source,
        narrow=caller.symbols is not None,
    )
    selection.columns_of(dataset)
    text = ticket.where if isinstance(ticket, RangeTicket) else None
    return Reading(dataset, selection, None if text is None else Where.parse(text, dataset))


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


@lru_cache(maxsize=1_024)
def _row_bytes(dataset: str, columns: tuple[str, ...] | None) -> int:
    """Return what a row takes on its way: asking batches for their size costs more than they do."""
    schema = DATASETS[dataset].wire_schema
    names = schema.names if columns is None else columns
    return sum(_width(schema.field(name).type) for name in names)


def _width(kind: pa.DataType) -> int:
    if pa.types.is_dictionary(kind):
        kind = kind.index_type
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # text and lists have no fixed width
        return VARIABLE_WIDTH_BYTES


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
