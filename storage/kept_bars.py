"""Which of the kept bars one snapshot may use: those that are what its ticks would give.

Bars of a minute are kept for each source, made of all ticks the lake had at one of its parts. So
they stand for any minute that has no row in memory and none that came with a later part, and in
which one source alone speaks for the symbol. All other minutes are computed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from storage.bar_sessions import MINUTE
from storage.joined import JoinedColumns
from storage.lake.view import LakeView
from storage.selection import ALL_SOURCES, Selection
from storage.speakers import Interval, Span
from storage.streams import merged_streams


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of whole minutes, µs, end excluded, and whether kept bars stand for it."""

    start: int
    end: int
    is_kept: bool


class KeptBars:
    """The kept bars of one answer, beside the ticks it would be computed from.

    Args:
        ticks: Rows of ticks in memory and in the lake.
        kept: Files of bars that were made of them.
        selection: Whose.
        start: Where the first minute begins, µs.
        end: Where the last one ends, µs.
    """

    def __init__(
        self, ticks: JoinedColumns, kept: LakeView, selection: Selection, start: int, end: int
    ) -> None:
        self._ticks = ticks
        self._kept = kept
        self._span = (start, end)
        self._speakers: dict[str, list[Span]] = {}
        symbols = ticks.symbols() if selection.symbols is None else selection.symbols
        if any(kept.index.of(symbol, start, end) for symbol in symbols):
            self._speakers = {symbol: self._speaking(symbol, selection) for symbol in symbols}

    def stretches(self) -> list[Stretch]:
        """Return all of the time asked for, in order."""
        start, end = self._span
        if not self._speakers:
            return [Stretch(start, end, is_kept=False)]
        # Where bars were dropped for their age, ticks that came late may not have been.
        doubtful: list[Interval] = [(0, self._kept.index.retained_from)]
        for symbol, spans in self._speakers.items():
            doubtful += self._ticks.changed(symbol, self._kept.index.follows, start, end)
            doubtful += _overlaps(spans)
        return list(_divided(start, end, doubtful))

    def batches(self, stretch: Stretch, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the kept bars of a stretch, by time, source and symbol."""
        streams = [
            stream
            for symbol, spans in self._speakers.items()
            for stream in self._kept.streams(symbol, list(_clipped(spans, stretch)))
        ]
        yield from merged_streams(streams, self._kept.dataset, names)

    def _speaking(self, symbol: str, selection: Selection) -> list[Span]:
        spans = self._ticks.speakers(symbol, selection.source, *self._span)
        extent = self._ticks.extent(symbol)
        if extent is None:
            return []
        if selection.source == ALL_SOURCES or not extent.sources:
            return spans
        alone = next(iter(extent.sources))  # who is meant where no name is needed
        return [Span(span.start, span.end, span.source or alone) for span in spans]


def _clipped(spans: Iterable[Span], stretch: Stretch) -> Iterator[Span]:
    for span in spans:
        start, end = max(span.start, stretch.start), min(span.end, stretch.end)
        if start < end:
            yield Span(start, end, span.source)


def _overlaps(spans: Iterable[Span]) -> Iterator[Interval]:
    """Yield where several sources speak."""
    speaking = 0
    before = 0
    borders = [(span.start, 1) for span in spans] + [(span.end, -1) for span in spans]
    for border, change in sorted(borders):
        if speaking > 1 and before < border:
            yield before, border
        speaking += change
        before = border


def _divided(start: int, end: int, doubtful: Iterable[Interval]) -> Iterator[Stretch]:
    """Yield a span, its doubtful minutes apart from the others."""
    done = computed = start
    minutes = ((a // MINUTE * MINUTE, -(-b // MINUTE) * MINUTE) for a, b in doubtful)
    for first, after in sorted(minutes):
        first, after = max(first, computed), min(after, end)  # noqa: PLW2901
        if first >= after:
            continue
        if first > computed:
            if done < computed:
                yield Stretch(done, computed, is_kept=False)
            yield Stretch(computed, first, is_kept=True)
            done = first
        computed = after
    if done < computed:
        yield Stretch(done, computed, is_kept=False)
    if computed < end:
        yield Stretch(computed, end, is_kept=True)
