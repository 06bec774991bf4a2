"""What a ticket asks for once the caller's rights were applied, and what its rows weigh."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import pyarrow as pa

from flight_server.identity import Identity, Scope
from flight_server.tickets import LatestTicket, LiveTicket, RangeTicket, Ticket
from storage.schemas import DATASETS, Dataset
from storage.selection import Selection
from storage.snapshot import dataset_named
from storage.where import Where

VARIABLE_WIDTH_BYTES: Final = 32
"""What a value without a fixed width counts for in ``bytes``: a label rather than a list."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a ticket asks for, after the caller's rights were applied."""

    dataset: Dataset
    selection: Selection
    where: Where | None


def reading_of(ticket: Ticket, caller: Identity, scope: Scope) -> Reading:
    """Return what a ticket asks for.

    Raises:
        ScopeError: The caller may not.
        InvalidDataError: There is no such dataset or column, or ``where`` can't be taken.
    """
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


def scope_of(ticket: Ticket) -> Scope:
    """Return the scope that a ticket needs whatever its fields say."""
    match ticket:
        case LatestTicket() | LiveTicket(speed=None):
            return Scope.READ_REALTIME
        case _:
            return Scope.READ_HISTORY


@lru_cache(maxsize=1_024)
def bytes_a_row(dataset: str, columns: tuple[str, ...] | None) -> int:
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
