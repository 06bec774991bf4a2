"""What is known of holes, rejects and witnesses: read from its rows once, and kept by symbol.

A ``Known`` is what was known at one moment and never changes; every snapshot holds the one of its
own moment. The ledger reads each row of ``gaps``, ``quarantine`` and ``spot_checks`` once, and what
it has learned stays when the rows themselves leave memory.
"""

import json
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa

from storage.batched import BatchedStore
from storage.quarantine import plain_rows
from storage.runs import Integers
from storage.schemas import GAPS, QUARANTINE

FILLED: Final = "filled"
"""The state of a gap whose rows are there after all."""
CROSS_SOURCE: Final = "cross_source"
"""The kind of spot-check in which somebody independent counted the same rows."""
WITNESSES_MAX: Final = 10_000
"""Spans kept apart that witnesses agreed on, per symbol: a file a day for decades."""
_NEVER_ENDS: Final = np.iinfo(np.int64).max

_Lane = tuple[str, str | None]
"""Dataset and symbol; None is every symbol of a source."""
_Told = tuple[str, str, str]
"""Dataset, symbol and the source whose rows were counted."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The newest revision of a hole; instants in µs, ``end`` None while it lasts.

    ``symbol`` None means every symbol of the source.
    """

    gap_id: str
    revision: int
    dataset: str
    source: str
    symbol: str | None
    start: int
    end: int | None
    reason: str
    state: str
    rows_recovered: int

    @property
    def is_hole(self) -> bool:
        """Whether rows are missing still."""
        return self.state != FILLED


@dataclass(frozen=True, slots=True)
class Witness:
    """A span of one symbol's rows that somebody independent has counted, ends excluded."""

    start: int
    end: int


class GapLane:
    """The gaps of one dataset and symbol, by their beginning; never changes."""

    __slots__ = ("_ends", "_holes", "_starts", "gaps")

    def __init__(self, gaps: Iterable[Gap]) -> None:
        self.gaps = tuple(sorted(gaps, key=lambda gap: (gap.start, gap.gap_id)))
        self._holes = tuple(gap for gap in self.gaps if gap.is_hole)
        self._starts = _instants(gap.start for gap in self._holes)
        self._ends = _instants(_NEVER_ENDS if gap.end is None else gap.end for gap in self._holes)

    def holes(self, span: tuple[int, int] | None) -> Sequence[Gap]:
        """Return the gaps that are not filled and overlap a span; None is all of time."""
        if span is None or not self._holes:
            return self._holes
        start, end = span
        found = np.flatnonzero((self._starts < end) & (self._ends > start))
        return [self._holes[at] for at in found.tolist()]


@dataclass(frozen=True, slots=True)
class Known:
    """What was known at one moment.

    Attributes:
        ends: Position up to which the rows of each dataset were read.
        lanes: Gaps by dataset and symbol.
        quarantined: Rows put aside, likewise.
        witnessed: Spans that a witness agreed on, in order and apart.
        files: Numbers of the imported files whose rows were counted, whatever came of it.
    """

    ends: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    lanes: Mapping[_Lane, GapLane] = field(default_factory=lambda: MappingProxyType({}))
    quarantined: Mapping[_Lane, int] = field(default_factory=lambda: MappingProxyType({}))
    witnessed: Mapping[_Told, tuple[Witness, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    files: frozenset[int] = frozenset()

    def holes(
        self, dataset: str, symbol: str, span: tuple[int, int] | None, source: str | None
    ) -> Sequence[Gap]:
        """Return the unfilled gaps of a slice, by their beginning.

        Args:
            dataset: Of which dataset.
            symbol: Of which symbol; gaps of every symbol count.
            span: From when to when, µs, end excluded; None is all of time.
            source: Of this source alone; None is of any.
        """
        own, shared = self.lanes.get((dataset, symbol)), self.lanes.get((dataset, None))
        if own is None and shared is None:
            return ()
        found = [gap for lane in (own, shared) if lane is not None for gap in lane.holes(span)]
        if source is not None:
            found = [gap for gap in found if gap.source == source]
        if own is not None and shared is not None:
            found.sort(key=lambda gap: gap.start)
        return found

    def is_witnessed(
        self, dataset: str, symbol: str, source: str, span: tuple[int, int] | None
    ) -> bool:
        """Return whether a witness has agreed on a source's rows in the whole of a span."""
        spans = self.witnessed.get((dataset, symbol, source))
        if spans is None or span is None:
            return False
        at = bisect_right(spans, span[0], key=lambda witness: witness.start) - 1
        return at >= 0 and span[1] <= spans[at].end

    def gaps(self) -> list[Gap]:
        """Return the newest revision of every gap, by its beginning."""
        found = [gap for lane in self.lanes.values() for gap in lane.gaps]
        return sorted(found, key=lambda gap: (gap.start, gap.gap_id))


class CoverageLedger:
    """Keeps ``Known`` up to date; safe to share between threads.

    Args:
        gaps: Where gaps are appended.
        quarantine: Where rejects are.
        checks: Where spot-checks are.
    """

    def __init__(self, gaps: BatchedStore, quarantine: BatchedStore, checks: BatchedStore) -> None:
        self._stores = (gaps, quarantine, checks)
        self._lock = threading.Lock()
        self._newest: dict[str, Gap] = {}
        self._known = Known({store.dataset.name: store.base for store in self._stores})

    def known(self) -> Known:
        """Return what is known now."""
        known = self._known
        for store in self._stores:
            if store.end != known.ends[store.dataset.name]:
                return self._catch_up()
        return known

    def adopt(self, dataset: str, rows: pa.Table) -> None:
        """Learn from rows that are no longer in memory, each once, before any snapshot."""
        with self._lock:
            self._known = self._learned(self._known, dataset, rows)

    def _catch_up(self) -> Known:
        with self._lock:
            for store in self._stores:
                name, known = store.dataset.name, self._known
                end = store.end
                if end == known.ends[name]:
                    continue
                learned = self._learned(known, name, store.state.table(end, known.ends[name]))
                ends = {**known.ends, name: end}
                self._known = replace(learned, ends=ends)
            return self._known

    def _learned(self, known: Known, dataset: str, rows: pa.Table) -> Known:
        if dataset == GAPS.name:
            lanes = {**known.lanes, **self._changed_lanes(known, plain_rows(rows))}
            return replace(known, lanes=lanes)
        if dataset == QUARANTINE.name:
            quarantined = Counter(known.quarantined)
            names = (rows["dataset"].to_pylist(), rows["symbol"].to_pylist())
            quarantined.update(zip(*names, strict=True))
            return replace(known, quarantined=quarantined)
        return _with_witnesses(known, plain_rows(rows))

    def _changed_lanes(
        self, known: Known, rows: Iterable[Mapping[str, Any]]
    ) -> dict[_Lane, GapLane]:
        changed: dict[_Lane, dict[str, Gap]] = {}

        def lane_of(gap: Gap) -> dict[str, Gap]:
            lane = (gap.dataset, gap.symbol)
            if lane not in changed:
                before = known.lanes.get(lane)
                changed[lane] = {one.gap_id: one for one in before.gaps} if before else {}
            return changed[lane]

        for row in rows:
            gap = Gap(**{name: row[name] for name in Gap.__slots__})
            newest = self._newest.get(gap.gap_id)
            if newest is not None:
                if gap.revision < newest.revision:
                    continue
                del lane_of(newest)[gap.gap_id]
            lane_of(gap)[gap.gap_id] = self._newest[gap.gap_id] = gap
        return {lane: GapLane(gaps.values()) for lane, gaps in changed.items()}


def _with_witnesses(known: Known, rows: Iterable[Mapping[str, Any]]) -> Known:
    changed: dict[_Told, list[Witness]] = {}
    files: set[int] = set()
    for row in rows:
        if row["kind"] != CROSS_SOURCE or row["symbol"] is None:
            continue
        try:
            told = json.loads(row["detail"] or "")
            files.update([int(told["file"])] if "file" in told else [])
            span = Witness(int(told["start"]), int(told["end"]))
            whose = (row["dataset"], row["symbol"], str(told["source"]))
        except (ValueError, KeyError, TypeError):
            continue  # whoever names no span is a witness of none
        if row["checked"] == row["passed"]:
            changed.setdefault(whose, list(known.witnessed.get(whose, ()))).append(span)
    joined = {whose: _joined(spans) for whose, spans in changed.items()}
    return replace(known, witnessed={**known.witnessed, **joined}, files=known.files | files)


def _joined(spans: Iterable[Witness]) -> tuple[Witness, ...]:
    """Join spans that touch; of too many, the newest stay."""
    joined: list[Witness] = []
    for span in sorted(spans, key=lambda span: span.start):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Witness(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return tuple(joined[-WITNESSES_MAX:])


def _instants(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int64)
