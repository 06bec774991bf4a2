"""One dataset as readers get it: the rows in memory and the files of the lake, each row once."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Final

import pyarrow as pa

from storage.batched_view import BatchedView
from storage.columnar_view import ColumnarView
from storage.lake.view import LakeView
from storage.ordering import in_order, instants_of, reading_order
from storage.runs import Integers
from storage.schemas import Dataset, wire_projection
from storage.selection import ALL_SOURCES, Order, Selection, Slice, SourcePolicy, SymbolExtent
from storage.speakers import DAY, Interval, Span, asked_for, spoken
from storage.streams import Stream, merged_streams

Holes = Callable[[str, str, Interval], Sequence[Interval]]
"""Returns the recorded holes of a symbol and source in a stretch of time."""

_EVERYBODY: Final = (None, ALL_SOURCES)


class JoinedColumns:
    """A columnar dataset in memory and in the lake. What it answers never changes.

    Args:
        hot: Rows in memory.
        lake: Rows in files, none of which are in memory.
        policy: Which source speaks for a symbol.
        holes: Where the best source lacks rows.
    """

    def __init__(
        self, hot: ColumnarView, lake: LakeView, policy: SourcePolicy, holes: Holes
    ) -> None:
        self._hot = hot
        self._lake = lake
        self._dataset = lake.dataset
        self._policy = policy
        self._holes = holes

    def symbols(self) -> list[str]:
        """Return the symbols that have rows, sorted."""
        hot = self._hot.symbols()
        return sorted(self._lake.symbols().union(hot)) if len(self._lake.index) else hot

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        return _extent(self._hot.extent(symbol), self._lake.extent(symbol))

    def latest(self, selection: Selection, limit: int, now: int) -> pa.RecordBatch:
        """Return the newest ``limit`` rows of each symbol by total order, oldest first."""
        hot = self._hot
        names = selection.columns_of(self._dataset)
        symbols = self.symbols() if selection.symbols is None else selection.symbols
        parts = [hot.newest(symbol, selection.source, limit, now) for symbol in symbols]
        if all(map(self._is_settled, symbols, parts, [limit] * len(parts))):
            return hot.batch(hot.together(parts), names, narrow=selection.narrow)
        order = reading_order(self._dataset)
        needed = tuple(dict.fromkeys((*names, *order)))
        found = [
            hot.batch(part, needed, narrow=selection.narrow)
            if self._is_settled(symbol, part, limit)
            else self._newest_of_both(symbol, selection, needed, limit, now)
            for symbol, part in zip(symbols, parts, strict=True)
        ]
        return _together(found, self._dataset, needed).select(list(names))

    def range(self, wanted: Slice, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows of a slice, in its order."""
        symbols = self._symbols_of(wanted)
        if wanted.order is Order.TIME:
            yield from merged_streams(self._streams(symbols, wanted), self._dataset, names)
            return
        for symbol in sorted(symbols):
            yield from merged_streams(self._streams([symbol], wanted), self._dataset, names)

    def count(self, wanted: Slice) -> int | None:
        """Return how many rows a slice has, None where that would mean reading them."""
        return _count(self._streams(self._symbols_of(wanted), wanted))

    def days(self, wanted: Slice) -> list[int]:
        """Return the UTC dates (days since 1970) that a slice has rows on, in order."""
        source = wanted.selection.source
        found: set[int] = set()
        for symbol in self._symbols_of(wanted):
            dates = self._dates(symbol, wanted.start, wanted.end)
            chosen = dates.values() if source in _EVERYBODY else [dates.get(source or "", set())]
            found.update(*chosen)
        return sorted(found)

    def speakers(self, symbol: str, source: str | None, start: int, end: int) -> list[Span]:
        """Return who speaks for a symbol when; a source of None is all it has.

        Args:
            symbol: The symbol.
            source: See ``Selection``.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        if source is not None:
            return asked_for(source, start, end)
        extent = self.extent(symbol)
        if extent is None or len(extent.sources) < 2:
            return [Span(start, end, None)]

        def holes(source: str, within: Interval) -> Sequence[Interval]:
            return self._holes(symbol, source, within)

        # Whole dates: who speaks for one must not depend on how much of it is asked for.
        dates = self._dates(symbol, start, end)
        return spoken(dates, self._policy, holes, start, end)

    def changed(self, symbol: str, part: int, start: int, end: int) -> Iterator[Interval]:
        """Yield where a symbol's rows may not be those that the lake had at one of its parts.

        Args:
            symbol: The symbol.
            part: Number of the part.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        yield 0, self._lake.index.retained_from
        yield from self._hot.stretches(symbol, start, end)
        for file in self._lake.index.of(symbol, start, end):
            if file.part > part:
                yield file.first, file.last + 1

    # Latest

    def _is_settled(self, symbol: str, hot: Integers, limit: int) -> bool:
        """Whether no row of the lake can be among a symbol's newest."""
        last = self._lake.index.last(symbol)
        # A source that is live in the lake alone has no row that is new enough either.
        return last is None or (len(hot) >= limit and self._hot.instant(int(hot[0])) > last)

    def _newest_of_both(
        self, symbol: str, selection: Selection, names: tuple[str, ...], limit: int, now: int
    ) -> pa.RecordBatch:
        sources = self._speaking(symbol, selection.source, now)
        hot = self._hot.newest_of(symbol, sources, limit)
        rows = self._hot.batch(hot, names, narrow=selection.narrow)
        return _with_newest(rows, self._lake, symbol, sources, names, limit)

    def _speaking(self, symbol: str, source: str | None, now: int) -> Collection[str]:
        newest = dict(self._lake.index.sources(symbol))
        for name, last in self._hot.sources(symbol).items():
            newest[name] = max(last, newest.get(name, last))
        if source == ALL_SOURCES:
            return tuple(newest)
        return self._policy.speaking(newest, now) if source is None else (source,)

    # Range

    def _symbols_of(self, wanted: Slice) -> Sequence[str]:
        symbols = wanted.selection.symbols
        return self.symbols() if symbols is None else symbols

    def _streams(self, symbols: Sequence[str], wanted: Slice) -> list[Stream]:
        source, start, end = wanted.selection.source, wanted.start, wanted.end
        plan = {symbol: self.speakers(symbol, source, start, end) for symbol in symbols}
        lake = (self._lake.streams(s, spans, wanted.bounds) for s, spans in plan.items())
        streams = list(chain.from_iterable(lake))
        hot = self._hot.stream(plan, narrow=wanted.selection.narrow)
        return streams if hot is None else [*streams, hot]

    def _dates(self, symbol: str, start: int, end: int) -> dict[str, set[int]]:
        whole = start // DAY * DAY, -(-end // DAY) * DAY
        found = defaultdict(set, self._hot.dates(symbol, *whole))
        for source, dates in self._lake.dates(symbol, *whole).items():
            found[source] |= dates
        return found


class JoinedBatches:
    """A dataset of batches in memory and in the lake, all of its sources together.

    Args:
        hot: Rows in memory.
        lake: Rows in files, none of which are in memory.
    """

    def __init__(self, hot: BatchedView, lake: LakeView) -> None:
        self._hot = hot
        self._lake = lake
        self._dataset = lake.dataset

    def symbols(self) -> list[str]:
        """Return the symbols that have rows, sorted; rows without a symbol don't count."""
        return sorted(self._lake.symbols().union(self._hot.symbols()))

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        return _extent(self._hot.extent(symbol), self._lake.extent(symbol))

    def latest(self, selection: Selection, limit: int, now: int) -> pa.RecordBatch:  # noqa: ARG002
        """Return the newest ``limit`` rows of each symbol by total order, oldest first."""
        names = selection.columns_of(self._dataset)
        needed = tuple(dict.fromkeys((*names, *reading_order(self._dataset))))
        hot = self._hot.newest(selection, limit)
        source = self._source_of(selection)
        sources = None if source is None else (source,)
        symbols: set[str | None] = set(hot)
        if len(self._lake.index):
            without = (None,) if self._lake.is_mixed else ()
            wanted = self._symbols_of(selection)
            symbols.update((*self.symbols(), *without) if wanted is None else wanted)
        found = []
        for symbol in symbols:
            rows = hot.get(symbol)
            rows = _nothing(self._dataset, needed) if rows is None else rows.select(list(needed))
            found.append(_with_newest(rows, self._lake, symbol, sources, needed, limit))
        return _together(found, self._dataset, needed).select(list(names))

    def range(self, wanted: Slice, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows of a slice, in its order."""
        symbols = self._symbols_of(wanted.selection)
        if wanted.order is Order.TIME:
            yield from merged_streams(self._streams(symbols, wanted), self._dataset, names)
            return
        for symbol in (*self.symbols(), None) if symbols is None else sorted(symbols, key=str):
            yield from merged_streams(self._streams([symbol], wanted), self._dataset, names)

    def count(self, wanted: Slice) -> int | None:
        """Return how many rows a slice has, None where that would mean reading them."""
        return _count(self._streams(self._symbols_of(wanted.selection), wanted))

    def days(self, wanted: Slice) -> list[int]:
        """Return the UTC dates (days since 1970) that a slice may have rows on, in order."""
        symbols, source = self._symbols_of(wanted.selection), self._source_of(wanted.selection)
        found = self._hot.dates(symbols, source, wanted.start, wanted.end)
        for symbol in (None,) if symbols is None or self._lake.is_mixed else symbols:
            for file in self._lake.index.of(symbol, wanted.start, wanted.end):
                found.update(self._lake.days(file))
        first, last = wanted.start // DAY, (wanted.end - 1) // DAY
        return sorted(day for day in found if first <= day <= last)

    def _symbols_of(self, selection: Selection) -> list[str | None] | None:
        return None if selection.symbols is None else list(selection.symbols)

    def _source_of(self, selection: Selection) -> str | None:
        has_source = "source" in self._dataset.schema.names
        return None if selection.source in _EVERYBODY or not has_source else selection.source

    def _streams(self, symbols: list[str | None] | None, wanted: Slice) -> list[Stream]:
        source = self._source_of(wanted.selection)
        start, end = wanted.start, wanted.end
        if self._lake.is_mixed:
            streams = self._lake.mixed_streams(symbols, source, start, end)
        else:
            chosen = self._lake.symbols() if symbols is None else symbols
            spans = [Span(start, end, source)]
            lake = (self._lake.streams(s, spans, wanted.bounds) for s in chosen if s is not None)
            streams = list(chain.from_iterable(lake))
        hot = self._hot.stream(symbols, source, start, end)
        return streams if hot is None else [*streams, hot]


Joined = JoinedColumns | JoinedBatches


def _extent(hot: SymbolExtent | None, lake: SymbolExtent | None) -> SymbolExtent | None:
    return lake if hot is None else hot.joined(lake)


def _count(streams: Sequence[Stream]) -> int | None:
    rows = [stream.rows for stream in streams]
    return None if None in rows else sum(count for count in rows if count is not None)


def _with_newest(
    rows: pa.RecordBatch,
    lake: LakeView,
    symbol: str | None,
    sources: Collection[str] | None,
    names: tuple[str, ...],
    limit: int,
) -> pa.RecordBatch:
    """Return the newest rows of a symbol, out of some that are known and those of the lake."""
    for last, file in lake.newest_first(symbol, sources):
        if rows.num_rows >= limit and last < instants_of(rows)[0]:
            break
        more = lake.tail(file, symbol, sources, names, limit)
        # Rows of the lake first: where all else is equal, they came before those in memory.
        rows = _together([*more, rows], lake.dataset, names)
        rows = rows.slice(max(0, rows.num_rows - limit))
    return rows


def _together(
    batches: Sequence[pa.RecordBatch], dataset: Dataset, names: tuple[str, ...]
) -> pa.RecordBatch:
    """Return the rows of all batches as one, in order."""
    table = pa.Table.from_batches(batches, wire_projection(dataset.name, names))
    if not table.num_rows:
        return _nothing(dataset, names)
    rows = table.unify_dictionaries().combine_chunks().to_batches()[0]
    return in_order(rows, reading_order(dataset))


def _nothing(dataset: Dataset, names: tuple[str, ...]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], wire_projection(dataset.name, names))
