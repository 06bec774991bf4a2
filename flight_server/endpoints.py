"""Where to get the parts of a range, so that a cluster can pull its days side by side."""

from typing import Final

from flight_server.tickets import RangeTicket
from storage.schemas import DATASETS
from storage.selection import Order, Selection
from storage.snapshot import Snapshot
from storage.speakers import DAY

ENDPOINTS_MAX: Final = 4_096
"""Parts of one range, about 1 MB of tickets: a decade of days. Of more, the whole is one part."""


def daily(
    ticket: RangeTicket, selection: Selection, span: tuple[int, int], snapshot: Snapshot
) -> list[RangeTicket]:
    """Return tickets for each UTC day that has rows; read in turn, they are the whole range.

    A range without rows is one ticket, so that there is always something to ask for, and so is one
    whose parts would be too many.

    Raises:
        RetentionError: It starts where rows were dropped for their age.
    """
    start, end = span
    whole = ticket.model_copy(update={"start": start, "end": end})
    parts: list[RangeTicket] = []
    for symbols in _groups(ticket, selection, snapshot):
        chosen = selection if symbols is None else _of(selection, symbols)
        for day in snapshot.days(ticket.dataset, chosen, start, end):
            bounds = {"start": max(start, day * DAY), "end": min(end, (day + 1) * DAY)}
            named = {} if symbols is None else {"symbols": symbols}
            parts.append(ticket.model_copy(update={**bounds, **named}))
            if len(parts) > ENDPOINTS_MAX:
                return [whole]
    return parts or [whole]


def _groups(
    ticket: RangeTicket, selection: Selection, snapshot: Snapshot
) -> list[tuple[str, ...] | None]:
    """Return the symbols whose days follow each other; None is those of the ticket."""
    if ticket.order is Order.TIME:
        return [None]
    symbols = selection.symbols
    if symbols is None:
        # Rows without a symbol have no ticket of their own.
        if DATASETS[ticket.dataset].schema.field("symbol").nullable:
            return []
        symbols = tuple(snapshot.symbols(ticket.dataset))
    return [(symbol,) for symbol in sorted(symbols)]


def _of(selection: Selection, symbols: tuple[str, ...]) -> Selection:
    return Selection(symbols, selection.columns, selection.source, selection.narrow)
