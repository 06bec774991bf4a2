"""Bars out of one snapshot, as they are asked for, in bounded memory.

Ticks become bars of a minute (or less), whole minutes at a time; these become the bars that were
asked for. Where the lake keeps bars of a minute that are what its ticks would give, those are read
instead (``kept_bars``). Candles that a source has told (rows of the dataset ``bars`` with the
interval ``1m``) stand in for minutes that have no ticks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from storage.bar_columns import BAR_COLUMNS, TICK_COLUMNS, BarCodec
from storage.bar_sessions import MINUTE, Grid, parse_interval
from storage.bar_stream import minutes_of, short_bars, whole
from storage.bars import Bars, condensed, distinct, joined
from storage.errors import InvalidDataError
from storage.schemas import BARS, TICKS
from storage.selection import Selection, Slice
from storage.snapshot import COVERAGE_KEY, Answer, Snapshot
from storage.validation import INSTANT_MAX

BLOCK_BARS_MIN: Final = 1 << 14
"""Bars that are sent together, unless there are fewer: small blocks cost more than their rows."""
CANDLE_INTERVAL: Final = "1m"


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """Which bars.

    Attributes:
        selection: Whose; a bar has all columns.
        grid: Where they begin and end.
        start: The first bar begins here or later, µs.
        end: The last bar begins before this, µs.
    """

    selection: Selection
    grid: Grid
    start: int
    end: int


def bars_schema(snapshot: Snapshot, request: BarsRequest) -> pa.Schema:
    """Return the schema of an answer, with the coverage of the ticks behind it as metadata."""
    span = (request.start, request.end)
    coverage = snapshot.coverage(TICKS.name, request.selection, span)
    return BARS.wire_schema.with_metadata({COVERAGE_KEY: coverage.to_json()})


def bars(snapshot: Snapshot, request: BarsRequest) -> Answer:
    """Return the bars that begin in a span, whole, by time, symbol and source, streamed.

    Raises:
        InvalidDataError: The span ends before it starts.
        RetentionError: It starts where ticks were dropped for their age.
        LakeCorruptError: While the bars are read: a file is missing or damaged.
    """
    if request.end < request.start:
        raise InvalidDataError("end lies before start", field="end")
    return Answer(bars_schema(snapshot, request), _Reading(snapshot, request).batches())


class _Reading:
    """One answer on its way."""

    def __init__(self, snapshot: Snapshot, request: BarsRequest) -> None:
        self._snapshot = snapshot
        self._selection = request.selection
        self._grid = request.grid
        self._codec = BarCodec(request.selection.source)
        self._candles = snapshot.told_bars()
        self._start = request.grid.border(min(request.start, INSTANT_MAX))
        self._end = request.grid.border(min(request.end, INSTANT_MAX))
        # Whole minutes, for what happens in one is settled in it.
        self._minutes = (self._start // MINUTE * MINUTE, -(-self._end // MINUTE) * MINUTE)
        self._kept = snapshot.kept_bars(request.selection, *self._minutes)

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self._start == self._end:
            return
        if not self._is_of_minutes or self._has_candles:
            yield from self._blocks(self._bars())
            return
        for stretch in self._kept.stretches():
            if stretch.is_kept:
                yield from self._kept.batches(stretch, tuple(BARS.schema.names))
            else:
                yield from self._blocks(self._from_ticks(stretch.start, stretch.end, MINUTE))

    @property
    def _is_of_minutes(self) -> bool:
        """Whether the bars asked for are those that are kept, in their order."""
        of_minutes = self._grid == Grid(parse_interval("1m"))
        symbols = self._selection.symbols
        return of_minutes and symbols is not None and len(symbols) == 1

    def _blocks(self, bars: Iterable[Bars]) -> Iterator[pa.RecordBatch]:
        held: list[Bars] = []
        for part in bars:
            held.append(part)
            if sum(len(one.start) for one in held) >= BLOCK_BARS_MIN:
                yield self._codec.batch(joined(held), self._grid)
                held = []
        if held:
            yield self._codec.batch(joined(held), self._grid)

    def _bars(self) -> Iterator[Bars]:
        base = self._grid.interval.base
        short = self._minutes_of_all() if base == MINUTE else self._from_ticks(*self._minutes, base)
        if base == MINUTE and self._has_candles:
            short = self._filled(short)
        for part in whole(short, self._grid.starts):
            bars = condensed(part, self._grid.starts(part.start))
            if base < MINUTE:
                bars = bars.take((bars.start >= self._start) & (bars.start < self._end))
            if len(bars.start):
                yield bars

    def _minutes_of_all(self) -> Iterator[Bars]:
        """Yield bars of a minute, kept ones where they stand for their ticks."""
        for stretch in self._kept.stretches():
            if stretch.is_kept:
                batches = self._kept.batches(stretch, BAR_COLUMNS)
                yield from whole(map(self._codec.bars, batches), minutes_of)
            else:
                yield from self._from_ticks(stretch.start, stretch.end, MINUTE)

    def _from_ticks(self, start: int, end: int, step: int) -> Iterator[Bars]:
        """Yield the bars of a minute or less, whole minutes at a time."""
        selection = replace(self._selection, columns=TICK_COLUMNS)
        batches = self._snapshot.range(TICKS.name, selection, start, end).batches
        yield from short_bars(batches, self._codec, step)

    # Candles

    @cached_property
    def _has_candles(self) -> bool:
        wanted = self._selection.symbols
        if wanted is None:
            return bool(self._candles.symbols())
        return any(self._candles.extent(symbol) is not None for symbol in wanted)

    def _filled(self, parts: Iterable[Bars]) -> Iterator[Bars]:
        """Put candles where there are no bars."""
        done = self._start
        for part in parts:
            first, after = int(part.start[0]), int(part.start[-1]) + MINUTE
            yield from self._told(done, first)
            candles = list(self._told(first, after))
            yield distinct(joined([part, *candles])) if candles else part
            done = after
        yield from self._told(done, self._end)

    def _told(self, start: int, end: int) -> Iterator[Bars]:
        selection = replace(self._selection, columns=None)
        wanted = Slice(selection, start, end)
        batches = self._candles.range(wanted, selection.columns_of(BARS))
        told = (batch.filter(pc.equal(batch["interval"], CANDLE_INTERVAL)) for batch in batches)
        candles = (self._codec.candles(batch) for batch in told if batch.num_rows)
        for part in whole(candles, minutes_of):
            # The last one told of a minute counts: those before it were told while it went on.
            yield distinct(part.take(slice(None, None, -1)))
