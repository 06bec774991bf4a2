"""Tickets: what a client asks for, as UTF-8 JSON, checked field by field.

A ticket names an ``op`` and its fields; an unknown op or field is an error, so that a misspelt
filter never silently widens an answer. ``FlightDescriptor.for_command`` takes the same JSON;
``for_path(dataset, symbol)`` is shorthand for that symbol's whole range.
"""

import json
from typing import Annotated, Final, Literal

from pyarrow import flight
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flight_server.errors import InvalidTicketError
from flight_server.instants import INSTANT_MAX
from storage.schemas import SYMBOL_PATTERN
from storage.selection import Order

TICKET_BYTES_MAX: Final = 1 << 20
"""Longest ticket: thousands of symbols fit, a mistake does not cost memory."""
SYMBOLS_MAX: Final = 10_000
LATEST_ROWS_MAX: Final = 1_000_000
"""Most rows a symbol that ``latest`` gives; more than that is a ``range``."""

Symbol = Annotated[str, Field(pattern=f"^{SYMBOL_PATTERN.pattern}$")]
Symbols = Annotated[tuple[Symbol, ...], Field(max_length=SYMBOLS_MAX)]
Columns = Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] | None
Instant = str | Annotated[int, Field(strict=True)]


class _Ticket(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class LatestTicket(_Ticket):
    """The newest rows of each symbol."""

    op: Literal["latest"]
    dataset: str = "ticks"
    symbols: Symbols = ()
    limit: Annotated[int, Field(strict=True, ge=1, le=LATEST_ROWS_MAX)] = 100
    columns: Columns = None
    source: str | None = None


class RangeTicket(_Ticket):
    """The rows of a span of time, ``start`` included, ``end`` excluded."""

    op: Literal["range"]
    dataset: str
    symbols: Symbols = ()
    start: Instant
    end: Instant
    columns: Columns = None
    order: Order = Order.TIME
    source: str | None = None
    compression: Literal["lz4", "zstd"] | None = None


Ticket = LatestTicket | RangeTicket

_TICKETS: Final[TypeAdapter[Ticket]] = TypeAdapter(Annotated[Ticket, Field(discriminator="op")])


def parse_ticket(data: bytes) -> Ticket:
    """Read a ticket.

    Raises:
        InvalidTicketError: Names the field that can't be taken, and why.
    """
    if len(data) > TICKET_BYTES_MAX:
        raise InvalidTicketError(f"the ticket is longer than {TICKET_BYTES_MAX} bytes")
    try:
        return _TICKETS.validate_json(data)
    except ValidationError as error:
        raise _explained(error) from None


def parse_descriptor(descriptor: flight.FlightDescriptor) -> Ticket:
    """Read a descriptor: a ticket as command, or a path of dataset and symbol.

    Raises:
        InvalidTicketError: It is neither.
    """
    if descriptor.descriptor_type is flight.DescriptorType.CMD:
        return parse_ticket(descriptor.command)
    path = [part.decode(errors="replace") for part in descriptor.path or ()]
    if not 1 <= len(path) <= 2:
        raise InvalidTicketError("a path is a dataset, or a dataset and a symbol", field="path")
    whole = {
        "op": "range",
        "dataset": path[0],
        "symbols": path[1:],
        "start": 0,
        "end": INSTANT_MAX,
    }
    return parse_ticket(json.dumps(whole).encode())


def ticket_bytes(ticket: Ticket) -> bytes:
    """Return the JSON of a ticket, which asks for the same again."""
    return ticket.model_dump_json(exclude_none=True).encode()


def _explained(error: ValidationError) -> InvalidTicketError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # The discriminator's value leads the location of every field of a known op.
    place = [str(part) for part in first["loc"] if part not in ("latest", "range")]
    field = place[0] if place else None
    where = f"ticket field {'.'.join(place)}: " if place else "ticket: "
    return InvalidTicketError(f"{where}{first['msg']}", field=field)
