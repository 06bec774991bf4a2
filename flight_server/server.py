"""The Flight RPCs: each finds out who calls, hands over, and lets only Flight errors out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar, cast

import pyarrow as pa
from pyarrow import flight

from flight_server.actions import Actions
from flight_server.auth import (
    MIDDLEWARE_KEY,
    Authenticator,
    AuthMiddlewareFactory,
    HandshakeHandler,
    call_of,
)
from flight_server.calls import Call, Calls
from flight_server.errors import NotFoundError, outcome_of, to_flight_error
from flight_server.identity import Identity, Scope
from flight_server.reads import Reads
from flight_server.tickets import parse_descriptor, parse_ticket
from flight_server.writes import Writes
from storage.schemas import DATASETS
from storage.store import Store

ERROR_KEY: Final = b"tickflight.error"

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the RPCs hand over to."""

    store: Store
    reads: Reads
    writes: Writes
    actions: Actions
    authenticator: Authenticator
    calls: Calls


def _guarded(handler: Handler) -> Handler:
    """Find out who calls, and let only ``FlightError`` out.

    pyarrow sends any other with its traceback.
    """

    @wraps(handler)
    def guarded(
        server: "FlightRpcServer", context: flight.ServerCallContext, *rest: object
    ) -> object:
        call = call_of(context)
        call.is_cancelled = context.is_cancelled
        call.context = context
        try:
            return handler(server, call, *rest)
        except Exception as error:  # noqa: BLE001 - see above
            call.outcome = outcome_of(error)
            raise to_flight_error(error) from None

    return cast("Handler", guarded)


class FlightRpcServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves from the moment it is made; ``serve()`` is never called.

    Args:
        location: ``grpc://host:port``, or ``grpc+tls://host:port``.
        rooms: What the RPCs hand over to.
        tls: Certificate chain and private key, PEM.
    """

    def __init__(self, location: str, rooms: Rooms, tls: tuple[bytes, bytes] | None = None) -> None:
        self._rooms = rooms
        super().__init__(
            location,
            tls_certificates=None if tls is None else [tls],
            auth_handler=HandshakeHandler(rooms.authenticator),
            middleware={MIDDLEWARE_KEY: AuthMiddlewareFactory(rooms.authenticator, rooms.calls)},
        )

    @_guarded
    def do_get(self, call: Call, ticket: flight.Ticket) -> flight.FlightDataStream:
        """Answer a ticket."""
        return self._rooms.reads.stream(parse_ticket(ticket.ticket), call)

    @_guarded
    def do_put(
        self,
        call: Call,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Append batches; acks come as they become durable."""
        self._rooms.writes.put(descriptor, reader, writer, call)

    @_guarded
    def get_flight_info(self, call: Call, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        """Tell the schema of an answer and where to get it."""
        return self._rooms.reads.info(parse_descriptor(descriptor), call.caller, descriptor)

    def get_schema(
        self,
        context: flight.ServerCallContext,  # noqa: ARG002
        descriptor: flight.FlightDescriptor,
    ) -> flight.SchemaResult:
        """Tell the schema of an answer; an unreadable descriptor gets an empty one.

        pyarrow leaks the traceback of whatever this raises, so the error goes into the metadata.
        """
        try:
            schema = self._rooms.reads.schema(parse_descriptor(descriptor))
        except Exception as error:  # noqa: BLE001 - see above
            schema = pa.schema([], metadata={ERROR_KEY: str(to_flight_error(error))})
        return flight.SchemaResult(schema)

    @_guarded
    def list_flights(self, call: Call, criteria: bytes) -> Iterator[flight.FlightInfo]:  # noqa: ARG002
        """List every dataset and symbol that the caller may read."""
        return iter(self._listed(call.caller))

    @_guarded
    def do_action(self, call: Call, action: flight.Action) -> list[flight.Result]:
        """Carry out an action."""
        return [flight.Result(self._rooms.actions.run(action, call))]

    @_guarded
    def list_actions(self, call: Call) -> list[flight.ActionType]:  # noqa: ARG002
        """List the actions."""
        return self._rooms.actions.types()

    def do_exchange(self, *_: object) -> None:
        """Refuse: pyarrow's own refusal comes with a traceback."""
        raise to_flight_error(NotFoundError("there is no DoExchange; use DoGet and DoPut"))

    def _listed(self, caller: Identity) -> list[flight.FlightInfo]:
        snapshot = self._rooms.store.snapshot()
        listed = []
        for name, dataset in DATASETS.items():
            if dataset.admin_only and Scope.ADMIN not in caller.scopes:
                continue
            for symbol, extent in snapshot.symbols(name).items():
                if _may_read(caller, symbol):
                    about = {"dataset": name, "symbol": symbol, **extent.fields()}
                    listed.append(_listing(dataset.wire_schema, about))
        return listed


def _may_read(caller: Identity, symbol: str) -> bool:
    return caller.symbols is None or symbol in caller.symbols


def _listing(schema: pa.Schema, about: dict[str, Any]) -> flight.FlightInfo:
    descriptor = flight.FlightDescriptor.for_path(about["dataset"], about["symbol"])
    metadata = json.dumps(about).encode()
    return flight.FlightInfo(
        schema, descriptor, [], about["rows"], -1, ordered=False, app_metadata=metadata
    )
