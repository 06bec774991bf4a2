"""Tickets: what a client asks for, as UTF-8 JSON, checked field by field.

A ticket names an ``op`` and its fields; an unknown op or field is an error, so that a misspelt
filter never silently widens an answer. ``FlightDescriptor.for_command`` takes the same JSON;
``for_path(dataset, symbol)`` is shorthand for that symbol's whole range.
"""

import json
import re
from collections.abc import Collection
from typing import Annotated, ClassVar, Final, Literal

from pyarrow import flight
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flight_server.errors import InvalidTicketError
from flight_server.instants import INSTANT_MAX
from storage.bar_sessions import Session, parse_interval
from storage.errors import InvalidDataError
from storage.schemas import BARS, DATASETS, SYMBOL_PATTERN
from storage.selection import Order
from storage.where import WHERE_CHARS_MAX

TICKET_BYTES_MAX: Final = 1 << 20
"""Longest ticket: thousands of symbols fit, a mistake does not cost memory."""
SYMBOLS_MAX: Final = 10_000
LATEST_ROWS_MAX: Final = 1_000_000
"""Most rows a symbol that ``latest`` gives; more than that is a ``range``."""

NAME_CHARS_MAX: Final = 64
"""Longest name of a dataset, column or source; messages repeat them."""
RECORD_SYMBOLS_MAX: Final = 20
"""Symbols of a ticket that the history keeps, and how many there were."""
_PLAIN: Final = re.compile(r"[0-9TZ:+. -]{1,40}|-\d{1,6}[smhd]|[a-z][a-z_-]{0,31}")
"""Instants and the names of sources."""
_UNTOLD: Final = "?"

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Symbol = Annotated[str, Field(pattern=f"^{SYMBOL_PATTERN.pattern}$")]
Symbols = Annotated[tuple[Symbol, ...], Field(max_length=SYMBOLS_MAX)]
Columns = Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] | None
Instant = str | Annotated[int, Field(strict=True)]


class _Ticket(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class LatestTicket(_Ticket):
    """The newest rows of each symbol."""

    op: Literal["latest"]
    dataset: Name = "ticks"
    symbols: Symbols = ()
    limit: Annotated[int, Field(strict=True, ge=1, le=LATEST_ROWS_MAX)] = 100
    columns: Columns = None
    source: Name | None = None


class RangeTicket(_Ticket):
    """The rows of a span of time, ``start`` included, ``end`` excluded."""

    op: Literal["range"]
    dataset: Name
    symbols: Symbols = ()
    start: Instant
    end: Instant
    columns: Columns = None
    where: Annotated[str, Field(min_length=1, max_length=WHERE_CHARS_MAX)] | None = None
    order: Order = Order.TIME
    source: Name | None = None
    compression: Literal["lz4", "zstd"] | None = None


class BarsTicket(_Ticket):
    """Open, high, low, close and volume: the bars that begin in a span of time."""

    dataset: ClassVar[str] = BARS.name
    columns: ClassVar[Columns] = None

    op: Literal["bars"]
    symbols: Symbols = ()
    interval: Name
    start: Instant
    end: Instant
    session: Session = Session.UTC
    source: Name | None = None


Ticket = LatestTicket | RangeTicket | BarsTicket

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


def record_of(ticket: RangeTicket | BarsTicket) -> str:
    """Return what the history keeps of a ticket: short JSON of words that can't be secrets."""
    kept: dict[str, object] = {
        "op": ticket.op,
        "dataset": _known(ticket.dataset, DATASETS),
        "symbols": ticket.symbols[:RECORD_SYMBOLS_MAX],
        "start": _plain(ticket.start),
        "end": _plain(ticket.end),
    }
    if isinstance(ticket, RangeTicket):
        kept["order"] = ticket.order.value
        if ticket.where is not None:
            kept["where"] = _UNTOLD
    else:
        kept |= {"interval": _interval(ticket.interval), "session": ticket.session.value}
    if len(ticket.symbols) > RECORD_SYMBOLS_MAX:
        kept["symbol_count"] = len(ticket.symbols)
    if ticket.columns is not None and ticket.dataset in DATASETS:
        columns = DATASETS[ticket.dataset].schema.names
        kept["columns"] = [_known(name, columns) for name in ticket.columns]
    if ticket.source is not None:
        kept["source"] = _plain(ticket.source)
    return json.dumps(kept, separators=(",", ":"))


def _known(name: str, names: Collection[str]) -> str:
    return name if name in names else _UNTOLD


def _plain(value: str | int) -> str | int:
    """Leave out text that is neither an instant nor a source's name: it may be anything."""
    return value if isinstance(value, int) or _PLAIN.fullmatch(value) else _UNTOLD


def _interval(text: str) -> str:
    try:
        return parse_interval(text).text
    except InvalidDataError:
        return _UNTOLD


def _explained(error: ValidationError) -> InvalidTicketError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Of a known op, the location begins with it; of none, there is no location.
    place = [str(part) for part in first["loc"]][1:]
    if first["type"].startswith("union_tag"):
        place = ["op"]
    field = place[0] if place else None
    where = f"ticket field {'.'.join(place)}: " if place else "ticket: "
    return InvalidTicketError(f"{where}{first['msg']}", field=field)
