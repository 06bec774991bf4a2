"""DoGet and GetFlightInfo: tickets answered from one snapshot."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, assert_never

import pyarrow as pa
from pyarrow import flight

from flight_server.errors import to_flight_error
from flight_server.identity import Identity, Scope
from flight_server.instants import parse_instant
from flight_server.streams import StreamSlots
from flight_server.tickets import LatestTicket, RangeTicket, Ticket, ticket_bytes
from storage.schemas import Dataset
from storage.selection import Selection
from storage.snapshot import Answer, Snapshot, dataset_named
from storage.store import Store

UNKNOWN_COUNT: Final = -1
"""What Flight wants to hear where a count would cost more than it is worth."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a ticket asks for, after the caller's rights were applied."""

    dataset: Dataset
    selection: Selection


class Reads:
    """Answers tickets."""

    def __init__(self, store: Store, slots: StreamSlots) -> None:
        self._store = store
        self._slots = slots

    def stream(self, ticket: Ticket, caller: Identity) -> flight.FlightDataStream:
        """Answer a ticket.

        Raises:
            RequestError: The caller may not, or the ticket can't be answered.
            StorageError: Likewise.
        """
        snapshot = self._store.snapshot()
        match ticket:
            case LatestTicket():
                reading = _reading(ticket, caller, Scope.READ_REALTIME)
                answer = snapshot.latest(reading.dataset.name, reading.selection, ticket.limit)
                table = pa.Table.from_batches(answer.batches)
                return flight.RecordBatchStream(
                    table.replace_schema_metadata(answer.schema.metadata)
                )
            case RangeTicket():
                return self._range(ticket, _reading(ticket, caller, Scope.READ_HISTORY), snapshot)
            case _:
                assert_never(ticket)

    def info(
        self, ticket: Ticket, caller: Identity, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """Return the schema of an answer and where to get it; nothing is read."""
        snapshot = self._store.snapshot()
        realtime = isinstance(ticket, LatestTicket)
        reading = _reading(ticket, caller, Scope.READ_REALTIME if realtime else Scope.READ_HISTORY)
        span = None if isinstance(ticket, LatestTicket) else _span(ticket, snapshot)
        schema = snapshot.schema(reading.dataset.name, reading.selection, span)
        endpoint = flight.FlightEndpoint(ticket_bytes(ticket), [])
        count = UNKNOWN_COUNT if span is None else _count(snapshot, reading, span)
        return flight.FlightInfo(schema, descriptor, [endpoint], count, UNKNOWN_COUNT)

    def schema(self, ticket: Ticket) -> pa.Schema:
        """Return the schema of an answer, without data of anybody in it."""
        dataset = dataset_named(ticket.dataset)
        names = Selection(columns=ticket.columns).columns_of(dataset)
        return pa.schema(dataset.wire_schema.field(name) for name in names)

    def _range(
        self, ticket: RangeTicket, reading: Reading, snapshot: Snapshot
    ) -> flight.FlightDataStream:
        start, end = _span(ticket, snapshot)
        answer = snapshot.range(reading.dataset.name, reading.selection, start, end, ticket.order)
        options = pa.ipc.IpcWriteOptions(compression=ticket.compression)
        release = self._slots.take()
        return flight.GeneratorStream(answer.schema, _blocks(answer, options, release))


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
    return Reading(dataset, selection)


def _span(ticket: RangeTicket, snapshot: Snapshot) -> tuple[int, int]:
    start = parse_instant(ticket.start, now=snapshot.now, field="start")
    return start, parse_instant(ticket.end, now=snapshot.now, field="end")


def _count(snapshot: Snapshot, reading: Reading, span: tuple[int, int]) -> int:
    """Return the rows of an answer where the whole of what there is was asked for."""
    extents = snapshot.symbols(reading.dataset.name)
    wanted = reading.selection.symbols
    chosen = [extents[s] for s in (extents if wanted is None else wanted) if s in extents]
    whole = all(span[0] <= extent.first and extent.last < span[1] for extent in chosen)
    # Where several sources speak, one is chosen a date, and counting would mean reading.
    alone = all(extent.sources == 1 for extent in chosen)
    return sum(extent.rows for extent in chosen) if whole and alone else UNKNOWN_COUNT


def _blocks(
    answer: Answer, options: pa.ipc.IpcWriteOptions, release: Callable[[], None]
) -> Iterator[flight.FlightDataStream]:
    """Yield blocks as streams of their own: the only way to send dictionaries with options."""
    try:
        for batch in answer.batches:
            table = pa.Table.from_batches([batch]).replace_schema_metadata(answer.schema.metadata)
            yield flight.RecordBatchStream(table, options=options)
    except Exception as error:  # noqa: BLE001 - what leaves here reaches the client as it is
        raise to_flight_error(error) from None
    finally:
        release()
