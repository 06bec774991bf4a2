"""How complete a slice is: gaps and rejects, told with every answer.

A slice is *verified* only where an independent witness agreed: one that counted the same rows
without having gone through our door. Today that is an imported file, whose records are numbered
from first to last: once the store holds as many of them as the file has, the span of its rows is
verified, as long as no other source has rows of the symbol. That the file itself is complete is
nobody's word.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from storage.ledger import Gap, Known
from storage.selection import ALL_SOURCES, SymbolExtent

GAPS_LISTED_MAX: Final = 20
"""Gaps named with an answer; the rest is counted, and the action ``gaps`` has them all."""
_LISTED_FIELDS: Final = ("gap_id", "start", "end", "reason", "state", "source")


class State(StrEnum):
    """What is known of a slice's completeness."""

    VERIFIED = "verified"
    """An independent witness agreed."""
    UNVERIFIED = "unverified"
    """No hole is known, and nobody has checked."""
    GAP = "gap"
    """A hole is known."""


@dataclass(frozen=True, slots=True)
class SymbolCoverage:
    """Completeness of one symbol's slice; instants in µs, ends excluded."""

    requested: tuple[int, int] | None
    available: tuple[int, int] | None
    state: State
    gaps: list[dict[str, Any]]
    gap_count: int
    quarantined: int

    def fields(self) -> dict[str, Any]:
        """Return the fields by name; ``asdict`` would copy them all on the way of every answer."""
        return {name: getattr(self, name) for name in SymbolCoverage.__slots__}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Completeness of an answer, by symbol."""

    snapshot: str
    symbols: Mapping[str, SymbolCoverage]

    def to_json(self) -> bytes:
        """Return the JSON that travels in the answer's schema metadata."""
        return json.dumps(self.fields()).encode()

    def fields(self) -> dict[str, Any]:
        """Return the coverage as plain values."""
        symbols = {symbol: part.fields() for symbol, part in self.symbols.items()}
        return {"snapshot": self.snapshot, "symbols": symbols}


def coverage_of(
    known: Known,
    dataset: str,
    symbol: str,
    extent: SymbolExtent | None,
    requested: tuple[int, int] | None,
    source: str | None = None,
) -> SymbolCoverage:
    """Return the coverage of one symbol's slice.

    Args:
        known: What is known of holes, rejects and witnesses.
        dataset: Of which dataset.
        symbol: Of which symbol.
        extent: How far its rows reach; None when it has none.
        requested: What was asked for, µs, end excluded; None is all of time.
        source: As in a selection: a name, ``"all"``, or None for the best one.
    """
    named = None if source == ALL_SOURCES else source
    gaps = known.holes(dataset, symbol, requested, named)
    state = State.GAP if gaps else State.UNVERIFIED
    if not gaps and extent is not None and known.witnessed:
        # With several sources, a witness of one says nothing of what another one answers.
        sources = extent.sources if named is None else {named}
        alone = next(iter(sources)) if len(sources) == 1 else None
        if alone is not None and known.is_witnessed(dataset, symbol, alone, requested):
            state = State.VERIFIED
    return SymbolCoverage(
        requested=requested,
        available=None if extent is None else (extent.first, extent.last + 1),
        state=state,
        gaps=[_listed(gap) for gap in gaps[:GAPS_LISTED_MAX]],
        gap_count=len(gaps),
        quarantined=known.quarantined.get((dataset, symbol), 0),
    )


def _listed(gap: Gap) -> dict[str, Any]:
    return {name: getattr(gap, name) for name in _LISTED_FIELDS}
