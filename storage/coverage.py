"""How complete a slice is: gaps and rejects, told with every answer."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from storage.batched import BatchedStore
from storage.quarantine import plain_rows
from storage.selection import SymbolExtent

GAPS_LISTED_MAX: Final = 20
"""Gaps named with an answer; the rest is counted, and the gaps dataset has them all."""


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
        symbols = {symbol: part.fields() for symbol, part in self.symbols.items()}
        return json.dumps({"snapshot": self.snapshot, "symbols": symbols}).encode()


class CoverageLedger:
    """Keeps the newest state of every gap and counts rejects, reading each row once."""

    def __init__(self, gaps: BatchedStore, quarantine: BatchedStore) -> None:
        self._gaps = gaps
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._gaps_read = gaps.base
        self._quarantine_read = quarantine.base
        self._newest: dict[str, dict[str, Any]] = {}
        self._quarantined: Counter[tuple[str, str | None]] = Counter()

    def coverage(
        self,
        snapshot: str,
        dataset: str,
        extents: Mapping[str, SymbolExtent | None],
        requested: tuple[int, int] | None,
    ) -> Coverage:
        """Return the coverage of a slice of ``dataset``."""
        self._catch_up()
        symbols = {}
        for symbol, extent in extents.items():
            gaps = self._open_gaps(dataset, symbol, requested)
            symbols[symbol] = SymbolCoverage(
                requested=requested,
                available=None if extent is None else (extent.first, extent.last + 1),
                state=State.GAP if gaps else State.UNVERIFIED,
                gaps=gaps[:GAPS_LISTED_MAX],
                gap_count=len(gaps),
                quarantined=self._quarantined[dataset, symbol],
            )
        return Coverage(snapshot, symbols)

    def _catch_up(self) -> None:
        if self._gaps.end == self._gaps_read and self._quarantine.end == self._quarantine_read:
            return
        with self._lock:
            end = self._gaps.end
            for gap in plain_rows(self._gaps.state.table(end, self._gaps_read)):
                known = self._newest.get(gap["gap_id"])
                if known is None or gap["revision"] >= known["revision"]:
                    self._newest = {**self._newest, gap["gap_id"]: gap}
            self._gaps_read = end
            end = self._quarantine.end
            rejects = self._quarantine.state.table(end, self._quarantine_read)
            names = zip(rejects["dataset"].to_pylist(), rejects["symbol"].to_pylist(), strict=True)
            self._quarantined.update(names)
            self._quarantine_read = end

    def _open_gaps(
        self, dataset: str, symbol: str, requested: tuple[int, int] | None
    ) -> list[dict[str, Any]]:
        gaps = [
            {key: gap[key] for key in ("gap_id", "start", "end", "reason", "state", "source")}
            for gap in self._newest.values()
            if gap["dataset"] == dataset
            and gap["symbol"] in (None, symbol)
            and gap["state"] != "filled"
            and _overlaps(gap, requested)
        ]
        return sorted(gaps, key=lambda gap: gap["start"])


def _overlaps(gap: Mapping[str, Any], requested: tuple[int, int] | None) -> bool:
    if requested is None:
        return True
    start, end = requested
    return gap["start"] < end and (gap["end"] is None or gap["end"] > start)
