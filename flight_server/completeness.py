"""The actions ``coverage`` and ``gaps``: how complete a slice is, and what is missing in words."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from flight_server.errors import InvalidArgumentError
from flight_server.identity import Identity, Scope
from flight_server.instants import parse_instant
from flight_server.tickets import Instant, Name, Symbols
from storage.ledger import Gap
from storage.selection import Selection
from storage.snapshot import Snapshot, dataset_named

GAPS_MAX: Final = 10_000
"""Gaps of one answer, about 3 MB of JSON; whoever has more asks for less of time."""
GAPS_DEFAULT: Final = 1_000

_CAUSES: Final[Mapping[str, str]] = {
    "disconnect": "the source was cut off from its venue",
    "sequence": "numbers of the feed are missing",
    "silence": "the source said nothing while its market was open",
    "downtime": "the source or the service did not run",
    "overflow": "rows came faster than they could be kept",
}


class GapState(StrEnum):
    """What becomes of a gap."""

    OPEN = "open"
    FILLED = "filled"
    UNFILLABLE = "unfillable"


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CoverageQuestion(_Question):
    """How complete a slice is; without instants, of all there is."""

    dataset: Name = "ticks"
    symbols: Symbols = ()
    start: Instant | None = None
    end: Instant | None = None
    source: Name | None = None


class GapsQuestion(_Question):
    """Which gaps there are; what is left out does not narrow the answer."""

    dataset: Name | None = None
    symbols: Symbols = ()
    start: Instant | None = None
    end: Instant | None = None
    states: tuple[GapState, ...] = ()
    limit: Annotated[int, Field(strict=True, ge=1, le=GAPS_MAX)] = GAPS_DEFAULT


def coverage(question: CoverageQuestion, snapshot: Snapshot, caller: Identity) -> dict[str, Any]:
    """Answer ``coverage``: what travels with every answer, without the answer.

    Raises:
        RequestError: The caller may not read a symbol or the dataset, or an instant is none.
        InvalidDataError: There is no such dataset.
    """
    dataset = dataset_named(question.dataset)
    if dataset.admin_only:
        caller.require(Scope.ADMIN)
    symbols = _allowed(question.symbols, caller)
    selection = Selection(symbols=symbols, source=question.source)
    span = _span(question.start, question.end, snapshot)
    return snapshot.coverage(dataset.name, selection, span).fields()


def gaps(question: GapsQuestion, snapshot: Snapshot, caller: Identity) -> dict[str, Any]:
    """Answer ``gaps``: the newest revision of each gap, by its beginning.

    Of more than ``limit``, the ones that began last are told; ``count`` has them all.

    Raises:
        RequestError: The caller may not read a symbol, or an instant is none.
        InvalidDataError: There is no such dataset.
    """
    if question.dataset is not None:
        dataset_named(question.dataset)
    symbols = _allowed(question.symbols, caller)
    span = _span(question.start, question.end, snapshot)
    found = [
        gap
        for gap in snapshot.known.gaps()
        if question.dataset in (None, gap.dataset)
        and (symbols is None or gap.symbol is None or gap.symbol in symbols)
        and (not question.states or gap.state in question.states)
        and _overlaps(gap, span)
    ]
    told = [_fields(gap) for gap in found[-question.limit :]]
    return {"snapshot": snapshot.id, "count": len(found), "gaps": told}


def explained(gap: Gap) -> str:
    """Return in words why rows are missing, and what became of them."""
    cause = _CAUSES.get(gap.reason, gap.reason)
    match gap.state:
        case GapState.FILLED:
            rows = f"{gap.rows_recovered:,} rows" if gap.rows_recovered else "all rows"
            return f"{cause}; {rows} came later"
        case GapState.UNFILLABLE:
            return f"{cause}; the rows are lost"
    return f"{cause}, and still is" if gap.end is None else f"{cause}; not filled yet"


def _allowed(symbols: Sequence[str], caller: Identity) -> tuple[str, ...] | None:
    for symbol in symbols:
        caller.may_read(symbol)
    if symbols:
        return tuple(dict.fromkeys(symbols))
    return None if caller.symbols is None else tuple(sorted(caller.symbols))


def _span(
    start: str | int | None, end: str | int | None, snapshot: Snapshot
) -> tuple[int, int] | None:
    if start is None and end is None:
        return None
    first = parse_instant(0 if start is None else start, now=snapshot.now, field="start")
    last = parse_instant("now" if end is None else end, now=snapshot.now, field="end")
    if last < first:
        raise InvalidArgumentError("end lies before start", field="end")
    return first, last


def _overlaps(gap: Gap, span: tuple[int, int] | None) -> bool:
    if span is None:
        return True
    return gap.start < span[1] and (gap.end is None or gap.end > span[0])


def _fields(gap: Gap) -> dict[str, Any]:
    return {field.name: getattr(gap, field.name) for field in fields(gap)} | {
        "detail": explained(gap)
    }
