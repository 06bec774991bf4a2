"""The Flight RPCs: each finds out who calls, hands over, and lets only Flight errors out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
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
    identity_of,
)
from flight_server.errors import to_flight_error
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


def _guarded(handler: Handler) -> Handler:
    """Let only ``FlightError`` out: pyarrow sends any other with its traceback."""

    @wraps(handler)
    def guarded(*args: object) -> object:
        try:
            return handler(*args)
        except Exception as error:  # noqa: BLE001 - see above
            raise to_flight_error(error) from None

    return cast("Handler", guarded)


class FlightRpcServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves from the moment it is made; ``serve()`` is never called.

    Args:
        location: ``grpc://host:port``.
        rooms: What the RPCs hand over to.
    """

    def __init__(self, location: str, rooms: Rooms) -> None:
        self._rooms = rooms
        super().__init__(
            location,
            auth_handler=HandshakeHandler(rooms.authenticator),
            middleware={MIDDLEWARE_KEY: AuthMiddlewareFactory(rooms.authenticator)},
        )

    @_guarded
    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        """Answer a ticket."""
        return self._rooms.reads.stream(parse_ticket(ticket.ticket), identity_of(context))

    @_guarded
    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Append batches; acks come as they become durable."""
        self._rooms.writes.put(descriptor, reader, writer, identity_of(context))

    @_guarded
    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """Tell the schema of an answer and where to get it."""
        ticket = parse_descriptor(descriptor)
        return self._rooms.reads.info(ticket, identity_of(context), descriptor)

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

    def list_flights(
        self,
        context: flight.ServerCallContext,
        criteria: bytes,  # noqa: ARG002
    ) -> Iterator[flight.FlightInfo]:
        """List every dataset and symbol that the caller may read."""
        return iter(self._listed(context))

    @_guarded
    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> list[flight.Result]:
        """Carry out an action."""
        return [flight.Result(self._rooms.actions.run(action, identity_of(context)))]

    @_guarded
    def list_actions(self, context: flight.ServerCallContext) -> list[flight.ActionType]:
        """List the actions."""
        identity_of(context)
        return self._rooms.actions.types()

    @_guarded
    def _listed(self, context: flight.ServerCallContext) -> list[flight.FlightInfo]:
        caller = identity_of(context)
        snapshot = self._rooms.store.snapshot()
        listed = []
        for name, dataset in DATASETS.items():
            if dataset.admin_only and Scope.ADMIN not in caller.scopes:
                continue
            for symbol, extent in snapshot.symbols(name).items():
                if _may_read(caller, symbol):
                    about = {"dataset": name, "symbol": symbol, **asdict(extent)}
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
