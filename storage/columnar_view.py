"""Reading a columnar dataset as it was at one position."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from storage.columnar_state import ColumnarState
from storage.dictionary import Dictionary
from storage.lanes import Lane, SortedPositions, SortedRows
from storage.merge import Cursor, between, merged
from storage.ordering import reading_order, tied_rows
from storage.runs import LOWEST, GrowingArray, Integers
from storage.schemas import wire_projection
from storage.selection import ALL_SOURCES, SourcePolicy, SymbolExtent
from storage.speakers import DAY, HOUR, Interval, Span
from storage.streams import Stream
from storage.validation import Column

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
        return SymbolExtent(rows, first, last, frozenset(self._source(lane) for lane in lanes))

    def sources(self, symbol: str) -> dict[str, int]:
        """Return the sources with rows of a symbol, and the newest ``ts_event`` of each."""
        return self._newest_by_source(self._lanes(symbol))

    def dates(self, symbol: str, start: int, end: int) -> dict[str, set[int]]:
        """Return the UTC dates (days since 1970) on which each source has a row of a symbol.

        Args:
            symbol: The symbol.
            start: Where a date begins, µs.
            end: Where one begins, µs; excluded.
        """
        found: defaultdict[str, set[int]] = defaultdict(set)
        for lane in self._lanes(symbol):
            found[self._source(lane)].update(self._dates(lane, start, end))
        return found

    def stretches(self, symbol: str, start: int, end: int) -> Iterator[Interval]:
        """Yield where a symbol's rows lie: from the first to the last of each hour, end excluded.

        Args:
            symbol: The symbol.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        for lane in self._lanes(symbol):
            for run, count in self._runs(lane):
                yield from self._stretches(run, count, start, end)

    def newest(self, symbol: str, source: str | None, limit: int, now: int) -> Integers:
        """Return where the newest ``limit`` rows of a symbol are, in total order.

        Args:
            symbol: The symbol.
            source: See ``Selection``.
            limit: How many at most.
            now: µs; tells which sources are live.
        """
        return self._newest_of(self._speaking(self._lanes(symbol), source, now), limit)

    def newest_of(self, symbol: str, sources: Collection[str], limit: int) -> Integers:
        """Return where the newest ``limit`` rows of a symbol from some sources are."""
        lanes = [lane for lane in self._lanes(symbol) if self._source(lane) in sources]
        return self._newest_of(lanes, limit)

    def instant(self, position: int) -> int:
        """Return the ``ts_event`` of one row, µs."""
        return self._state.instant(position)

    def together(self, parts: Sequence[Integers]) -> Integers:
        """Return the rows of all of ``parts``, each of one symbol and in total order, likewise."""
        if len(parts) == 1:
            return parts[0]
        return self._sorted_by_time(np.concatenate([*parts, _nothing()]))

    def stream(self, plan: Mapping[str, Sequence[Span]], *, narrow: bool) -> Stream | None:
        """Return the rows of some symbols as one stream, None when there are none.

        Args:
            plan: Whose rows of which time, by symbol.
            narrow: See ``Selection``.
        """
        pieces = [
            (lane, cursor)
            for symbol, spans in plan.items()
            for lane in self._lanes(symbol)
            for span in spans
            if span.source in (None, self._source(lane))
            if len(cursor := self._cursor(lane, span.start, span.end))
        ]
        if not pieces:
            return None
        pieces.sort(key=lambda piece: self._tie_order(piece[0]))
        instant = self._state.instant
        cursors = [cursor for _, cursor in pieces]

        def read(names: tuple[str, ...], _: int) -> Iterator[pa.RecordBatch]:
            for positions in merged(cursors, instant, self._instants):
                yield self.batch(positions, names, narrow=narrow)

        return Stream(
            first=min(instant(cursor.rows[cursor.at]) for cursor in cursors),
            last=max(instant(cursor.rows[cursor.stop - 1]) for cursor in cursors),
            open=read,
            rows=sum(len(cursor) for cursor in cursors),
        )

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
                arrays.append(plain_numbers(values, spec.field))
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

    def _newest_by_source(self, lanes: Sequence[Lane]) -> dict[str, int]:
        newest: dict[str, int] = {}
        for lane in lanes:
            source, last = self._source(lane), self._span(lane)[1]
            newest[source] = max(last, newest.get(source, last))
        return newest

    def _tie_order(self, lane: Lane) -> tuple[str, str, str]:
        dictionaries = self._columns.dictionaries
        name = dictionaries[self._columns.dataset.lane[2]].value(lane.key.name)
        return (self._source(lane), name, dictionaries["symbol"].value(lane.key.symbol))

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

    def _newest_of(self, lanes: Sequence[Lane], limit: int) -> Integers:
        parts = [part for lane in lanes for part in self._tails(lane, limit)]
        if not parts:
            return _nothing()
        if len(parts) == 1:
            return parts[0]
        return self._sorted_by_time(self._newest_by_time(np.concatenate(parts), limit))[-limit:]

    def _speaking(self, lanes: Sequence[Lane], source: str | None, now: int) -> Sequence[Lane]:
        """Return the lanes that ``latest`` listens to."""
        if source is not None and source != ALL_SOURCES:
            return [lane for lane in lanes if self._source(lane) == source]
        if source == ALL_SOURCES or len(lanes) < 2:
            return lanes
        speaking = self._policy.speaking(self._newest_by_source(lanes), now)
        return [lane for lane in lanes if self._source(lane) in speaking]

    def _tails(self, lane: Lane, limit: int) -> list[Integers]:
        """Return the newest rows of each of a lane's runs that may be among its newest."""
        visible = self._visible(lane.run)
        tail = lane.run.slice(max(0, visible - limit), visible)
        tails = [tail] if len(tail) else []
        oldest = self._state.instant(int(tail[0])) if len(tail) == limit else LOWEST
        late = (run for run in self._visible_late(lane) if self._state.instant(run[-1]) >= oldest)
        tails.extend(run.positions[-limit:] for run in late)
        return tails

    def _newest_by_time(self, positions: Integers, limit: int) -> Integers:
        """Leave out rows older than the newest so many: telling ties apart is dear."""
        if len(positions) <= limit:
            return positions
        instants = self._state.gather(positions, 0)
        oldest = int(np.partition(instants, -limit)[-limit])
        return positions[np.flatnonzero(instants >= oldest)]

    def _sorted_by_time(self, positions: Integers) -> Integers:
        """Sort any rows into the order of an answer."""
        instants = self._state.gather(positions, 0)
        order = np.argsort(instants, kind="stable")
        rows = tied_rows(instants[order])
        if len(rows):
            tied = positions[order[rows]]
            order[rows] = order[rows][np.lexsort(self._keys(tied))]
        return positions[order]

    def _keys(self, positions: Integers) -> list[Column]:
        """Return what rows are ordered by, least significant first."""
        columns, located = self._columns, self._state.locate(positions)
        keys: list[Column] = []
        for name in reversed(reading_order(columns.dataset)):
            at = columns.at[name]
            values = located.values(at, columns.specs[at].width)
            dictionary = columns.dictionaries.get(name)
            keys.append(values if dictionary is None else dictionary.ranks()[values])
        return keys

    # Range

    def _dates(self, lane: Lane, start: int, end: int) -> Iterator[int]:
        """Yield the UTC dates (days since 1970) on which a lane has a row, by jumping."""
        for run, count in self._runs(lane):
            after = start
            while len(left := between(run, count, self._state.instant, after, end)):
                date = self._state.instant(run[left.at]) // DAY
                yield date
                after = (date + 1) * DAY

    def _stretches(self, run: SortedRows, count: int, start: int, end: int) -> Iterator[Interval]:
        instant = self._state.instant
        while len(left := between(run, count, instant, start, end)):
            first = instant(run[left.at])
            start = (first // HOUR + 1) * HOUR
            of_hour = between(run, count, instant, first, min(start, end))
            yield first, instant(run[of_hour.stop - 1]) + 1

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


def plain_numbers(values: Column, field: pa.Field) -> pa.Array:
    """Return stored numbers as Arrow: NaN of a nullable column is null."""
    if field.nullable and np.isnan(values).any():
        return pa.array(values, field.type, from_pandas=True)
    return pa.Array.from_buffers(field.type, len(values), [None, pa.py_buffer(values)])


def _encoded(codes: Column, dictionary: Dictionary, *, narrow: bool) -> pa.DictionaryArray:
    if narrow or len(dictionary) > SHARED_DICTIONARY_MAX:
        return dictionary.subset(codes)
    return dictionary.full(codes)
