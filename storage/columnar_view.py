"""Reading a columnar dataset as it was at one position."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

import numpy as np
import pyarrow as pa

from storage.columnar_state import ColumnarState
from storage.dictionary import Dictionary
from storage.lanes import Lane, SortedPositions, SortedRows
from storage.merge import Cursor, between, merged
from storage.ports import MICROSECONDS
from storage.runs import LOWEST, GrowingArray, Integers
from storage.schemas import wire_projection
from storage.selection import ALL_SOURCES, Order, Selection, SourcePolicy, SymbolExtent
from storage.validation import Column

DAY: Final = 86_400 * MICROSECONDS
SHARED_DICTIONARY_MAX: Final = 64
"""Strings of a column up to which sending all of them beats finding the ones in use."""


class ColumnarView:
    """The rows of a ``ColumnarState`` below one position; what it answers never changes."""

    def __init__(self, state: ColumnarState, policy: SourcePolicy) -> None:
        self._state = state
        self._columns = state.columns
        self._policy = policy
        # Read before any lane: every row below it is indexed already.
        self.end = state.end

    def symbols(self) -> list[str]:
        """Return the symbols that have rows, sorted."""
        names = self._columns.dictionaries["symbol"]
        known = (names.value(code) for code in tuple(self._state.lanes_of_symbol))
        return sorted(symbol for symbol in known if self._lanes(symbol))

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        lanes = self._lanes(symbol)
        if not lanes:
            return None
        rows = sum(count for lane in lanes for _, count in self._runs(lane))
        spans = [self._span(lane) for lane in lanes]
        first, last = min(first for first, _ in spans), max(last for _, last in spans)
        return SymbolExtent(rows, first, last, sources=len({lane.key.source for lane in lanes}))

    def latest(self, selection: Selection, limit: int, now: int) -> pa.RecordBatch:
        """Return the newest ``limit`` rows of each symbol by total order, oldest first."""
        names = selection.columns_of(self._columns.dataset)
        symbols = self.symbols() if selection.symbols is None else selection.symbols
        parts = [self._newest(symbol, selection.source, limit, now) for symbol in symbols]
        positions = parts[0] if len(parts) == 1 else np.concatenate([*parts, _nothing()])
        if len(parts) > 1:
            positions = self._sorted_by_time(positions)
        return self.batch(positions, names, narrow=selection.narrow)

    def range(
        self, selection: Selection, start: int, end: int, order: Order
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows with ``start <= ts_event < end`` in total order."""
        names = selection.columns_of(self._columns.dataset)
        symbols = self.symbols() if selection.symbols is None else selection.symbols
        together = [symbols] if order is Order.TIME else [[symbol] for symbol in sorted(symbols)]
        for group in together:
            pieces = [p for s in group for p in self._pieces(s, selection.source, start, end)]
            pieces.sort(key=lambda piece: self._tie_order(piece[0]))
            cursors = [cursor for _, cursor in pieces]
            for positions in merged(cursors, self._state.instant, self._instants):
                yield self.batch(positions, names, narrow=selection.narrow)

    def batch(
        self, positions: Integers, names: Sequence[str], *, narrow: bool = False
    ) -> pa.RecordBatch:
        """Return some columns of the rows at ``positions``, in the wire schema."""
        columns = self._columns
        located = self._state.locate(positions)
        arrays = []
        for name in names:
            spec = columns.specs[columns.at[name]]
            values = located.values(columns.at[name], spec.width)
            if spec.dictionary is None:
                arrays.append(_plain(values, spec.field))
            else:
                arrays.append(_encoded(values, spec.dictionary, narrow=narrow))
        schema = wire_projection(columns.dataset.name, tuple(names))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    # Lanes

    def _lanes(self, symbol: str) -> list[Lane]:
        """Return the lanes of a symbol; one that has begun since has its first row beyond us."""
        code = self._columns.dictionaries["symbol"].code(symbol)
        lanes = self._state.lanes_of_symbol.get(code, ())
        return [lane for lane in lanes if self._has_begun(lane)]

    def _has_begun(self, lane: Lane) -> bool:
        run = lane.run
        # A lane has late rows alone once all others have left memory.
        return bool(run.length and run[0] < self.end) or bool(self._visible_late(lane))

    def _span(self, lane: Lane) -> tuple[int, int]:
        """Return the first and the last instant of a lane."""
        runs, instant = self._runs(lane), self._state.instant
        first = min(instant(rows[0]) for rows, _ in runs)
        return first, max(instant(rows[count - 1]) for rows, count in runs)

    def _source(self, lane: Lane) -> str:
        return self._columns.dictionaries["source"].value(lane.key.source)

    def _tie_order(self, lane: Lane) -> tuple[str, str, int]:
        name = self._columns.dictionaries[self._columns.dataset.lane[2]].value(lane.key.name)
        return (self._source(lane), name, lane.key.symbol)

    def _visible(self, run: GrowingArray) -> int:
        """Return how many rows of ``run`` lie below our end; later ones are its tail."""
        length = run.length
        if not length or run[length - 1] < self.end:
            return length
        return bisect_left(range(length), 1, key=lambda index: int(run[index] >= self.end))

    def _visible_late(self, lane: Lane) -> list[SortedPositions]:
        runs: list[SortedPositions] = []
        for run in lane.late:
            if run.newest < self.end:
                runs.append(run)
            elif len(visible := run.positions[run.positions < self.end]):
                runs.append(SortedPositions(visible))
        return runs

    # Latest

    def _newest(self, symbol: str, source: str | None, limit: int, now: int) -> Integers:
        lanes = self._speaking(self._lanes(symbol), source, now)
        parts = [part for lane in lanes for part in self._tails(lane, limit)]
        if not parts:
            return _nothing()
        if len(parts) == 1:
            return parts[0]
        return self._sorted_by_time(np.concatenate(parts))[-limit:]

    def _speaking(self, lanes: Sequence[Lane], source: str | None, now: int) -> Sequence[Lane]:
        """Return the lanes that ``latest`` listens to."""
        if source is not None and source != ALL_SOURCES:
            return [lane for lane in lanes if self._source(lane) == source]
        if source == ALL_SOURCES or len(lanes) < 2:
            return lanes
        last = [self._span(lane)[1] for lane in lanes]
        live = [la for la, ts in zip(lanes, last, strict=True) if ts >= now - self._policy.fresh_us]
        if live:
            return live
        newest = lanes[last.index(max(last))]
        return [lane for lane in lanes if lane.key.source == newest.key.source]

    def _tails(self, lane: Lane, limit: int) -> list[Integers]:
        """Return the newest rows of each of a lane's runs that may be among its newest."""
        visible = self._visible(lane.run)
        tail = lane.run.slice(max(0, visible - limit), visible)
        tails = [tail] if len(tail) else []
        oldest = self._state.instant(int(tail[0])) if len(tail) == limit else LOWEST
        late = (run for run in self._visible_late(lane) if self._state.instant(run[-1]) >= oldest)
        tails.extend(run.positions[-limit:] for run in late)
        return tails

    def _sorted_by_time(self, positions: Integers) -> Integers:
        """Sort any rows into the total order."""
        columns = self._columns
        keys: list[Column] = []
        for name in reversed(columns.dataset.order):
            values = self._state.gather(positions, columns.at[name])
            dictionary = columns.dictionaries.get(name)
            keys.append(values if dictionary is None else dictionary.ranks()[values])
        return positions[np.lexsort(keys)]

    # Range

    def _pieces(
        self, symbol: str, source: str | None, start: int, end: int
    ) -> list[tuple[Lane, Cursor]]:
        """Return what to merge for one symbol: rows of a lane within a span of time."""
        lanes = self._lanes(symbol)
        if source is not None and source != ALL_SOURCES:
            lanes = [lane for lane in lanes if self._source(lane) == source]
        if source is not None or len({lane.key.source for lane in lanes}) < 2:
            return [(lane, self._cursor(lane, start, end)) for lane in lanes]
        return [
            (lane, self._cursor(lane, *span))
            for *span, speaker in self._source_spans(lanes, start, end)
            for lane in lanes
            if lane.key.source == speaker
        ]

    def _source_spans(
        self, lanes: Sequence[Lane], start: int, end: int
    ) -> list[tuple[int, int, int]]:
        """Return for every date of a range the best source that has a row on it.

        Neighbouring dates of one source are one span, so that merging finds few long ones. Dates
        between them have no rows at all.
        """
        speakers: dict[int, int] = {}
        # Whole dates: who speaks for one must not depend on how much of it is asked for.
        first, last = start // DAY * DAY, -(-end // DAY) * DAY
        for lane in sorted(lanes, key=lambda lane: self._policy.rank(self._source(lane))):
            for date in self._dates(lane, first, last):
                speakers.setdefault(date, lane.key.source)
        spans = []
        for speaker, group in groupby(sorted(speakers), key=speakers.__getitem__):
            dates = list(group)
            span = max(start, dates[0] * DAY), min(end, (dates[-1] + 1) * DAY)
            spans.append((*span, speaker))
        return spans

    def _dates(self, lane: Lane, start: int, end: int) -> Iterator[int]:
        """Yield the UTC dates (days since 1970) on which a lane has a row, by jumping."""
        for run, count in self._runs(lane):
            after = start
            while len(left := between(run, count, self._state.instant, after, end)):
                date = self._state.instant(run[left.at]) // DAY
                yield date
                after = (date + 1) * DAY

    def _runs(self, lane: Lane) -> list[tuple[SortedRows, int]]:
        """Return the runs that have visible rows, and how many."""
        late = [(run, len(run.positions)) for run in self._visible_late(lane)]
        visible = self._visible(lane.run)
        return [(lane.run, visible), *late] if visible else [*late]

    def _cursor(self, lane: Lane, start: int, end: int) -> Cursor:
        """Return a lane's rows of a span, late ones merged in."""
        found = [
            between(r, count, self._state.instant, start, end) for r, count in self._runs(lane)
        ]
        found = [cursor for cursor in found if len(cursor)] or found[:1]
        if len(found) == 1:
            return found[0]
        parts = [cursor.rows.slice(cursor.at, cursor.stop) for cursor in found]
        rows = self._sorted_by_time(np.concatenate(parts))
        return Cursor(SortedPositions(rows), 0, len(rows))

    def _instants(self, positions: Integers) -> Integers:
        return self._state.gather(positions, 0)


def _nothing() -> Integers:
    return np.empty(0, np.int64)


def _plain(values: Column, field: pa.Field) -> pa.Array:
    if field.nullable and np.isnan(values).any():
        return pa.array(values, field.type, from_pandas=True)
    return pa.Array.from_buffers(field.type, len(values), [None, pa.py_buffer(values)])


def _encoded(codes: Column, dictionary: Dictionary, *, narrow: bool) -> pa.DictionaryArray:
    if narrow or len(dictionary) > SHARED_DICTIONARY_MAX:
        return dictionary.subset(codes)
    return dictionary.full(codes)
