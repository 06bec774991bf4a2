"""Tickets: what a client asks for, as UTF-8 JSON, checked field by field.

A ticket names an ``op`` and its fields; an unknown op or field is an error, so that a misspelt
filter never silently widens an answer. ``FlightDescriptor.for_command`` takes the same JSON;
``for_path(dataset, symbol)`` is shorthand for that symbol's whole range.
"""

import json
import re
from collections.abc import Collection
from typing import Annotated, ClassVar, Final, Literal, Self

from pyarrow import flight
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from flight_server.errors import InvalidTicketError
from flight_server.instants import INSTANT_MAX
from storage.bar_sessions import Session, parse_interval
from storage.errors import InvalidDataError
from storage.schemas import BARS, DATASETS, SYMBOL_PATTERN
from storage.selection import ALL_SOURCES, Order
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
MIN_INTERVAL_MS_MAX: Final = 3_600_000
"""Longest pause a live stream may be asked to keep between batches: an hour."""
SPEED_MAX: Final = 1_000_000.0
"""Fastest replay that is paced; whoever means "as fast as possible" says 0."""
KEY_PARTS_MAX: Final = 8
"""Columns that rows of any dataset are ordered by, and room for more."""
_PLAIN: Final = re.compile(r"[0-9TZ:+. -]{1,40}|[+-]\d{1,6}[smhd]|[a-z][a-z_-]{0,31}")
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


class After(_Ticket):
    """How far a stream of before had come, as the metadata of its last batch said.

    Attributes:
        epoch: The life of the server whose positions these are.
        pos: Position of the next row.
        key: What the last row of a history is ordered by, where it was cut off in its history.
    """

    epoch: Annotated[int, Field(strict=True, ge=1)]
    pos: Annotated[int, Field(strict=True, ge=0)]
    key: (
        Annotated[tuple[int | str | None, ...], Field(min_length=1, max_length=KEY_PARTS_MAX)]
        | None
    ) = None


class LiveTicket(_Ticket):
    """What arrives from now on, from ``start`` on, or after a position; with ``speed`` a replay."""

    source: ClassVar[Name] = ALL_SOURCES

    op: Literal["live"]
    dataset: Name = "ticks"
    symbols: Symbols = ()
    start: Instant | None = None
    after: After | None = None
    end: Instant | None = None
    speed: Annotated[float, Field(strict=True, ge=0, le=SPEED_MAX, allow_inf_nan=False)] | None = (
        None
    )
    min_interval_ms: Annotated[int, Field(strict=True, ge=1, le=MIN_INTERVAL_MS_MAX)] | None = None
    columns: Columns = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.speed is not None:
            if self.start is None or self.end is None:
                missing = "start" if self.start is None else "end"
                raise _refused(missing, "a replay (speed) has a start and an end")
            if self.after is not None or self.min_interval_ms is not None:
                named = "after" if self.after is not None else "min_interval_ms"
                raise _refused(named, "a replay (speed) has its own pace, and begins at its start")
        if self.after is not None and self.after.key is not None and self.start is None:
            raise _refused("after", "its key is that of a history, which needs the same start")
        return self


def _refused(field: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("fields_disagree", "{why}", {"field": field, "why": why})


Ticket = LatestTicket | RangeTicket | BarsTicket | LiveTicket

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


def record_of(ticket: RangeTicket | BarsTicket | LiveTicket) -> str:
    """Return what the history keeps of a ticket: short JSON of words that can't be secrets."""
    kept: dict[str, object] = {
        "op": ticket.op,
        "dataset": _known(ticket.dataset, DATASETS),
        "symbols": ticket.symbols[:RECORD_SYMBOLS_MAX],
        **{
            name: _plain(value)
            for name, value in (("start", ticket.start), ("end", ticket.end))
            if value is not None
        },
        **_own_fields(ticket),
    }
    if len(ticket.symbols) > RECORD_SYMBOLS_MAX:
        kept["symbol_count"] = len(ticket.symbols)
    if ticket.columns is not None and ticket.dataset in DATASETS:
        columns = DATASETS[ticket.dataset].schema.names
        kept["columns"] = [_known(name, columns) for name in ticket.columns]
    if not isinstance(ticket, LiveTicket) and ticket.source is not None:
        kept["source"] = _plain(ticket.source)
    return json.dumps(kept, separators=(",", ":"))


def _own_fields(ticket: RangeTicket | BarsTicket | LiveTicket) -> dict[str, object]:
    """Return what the history keeps of a ticket's fields that others don't have."""
    match ticket:
        case RangeTicket():
            where = {} if ticket.where is None else {"where": _UNTOLD}
            return {"order": ticket.order.value, **where}
        case BarsTicket():
            return {"interval": _interval(ticket.interval), "session": ticket.session.value}
        case LiveTicket():
            after = None if ticket.after is None else [ticket.after.epoch, ticket.after.pos]
            told = {
                "after": after,
                "speed": ticket.speed,
                "min_interval_ms": ticket.min_interval_ms,
            }
            return {name: value for name, value in told.items() if value is not None}


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
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "fields_disagree":
        told = first["ctx"]
        return InvalidTicketError(
            f"ticket field {told['field']}: {told['why']}", field=told["field"]
        )
    # Of a known op, the location begins with it; of none, there is no location.
    place = [str(part) for part in first["loc"]][1:]
    if first["type"].startswith("union_tag"):
        place = ["op"]
    field = place[0] if place else None
    where = f"ticket field {'.'.join(place)}: " if place else "ticket: "
    return InvalidTicketError(f"{where}{first['msg']}", field=field)
