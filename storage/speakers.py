"""Who speaks for a symbol: the best source of each date, and the next inside its holes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from storage.ports import MICROSECONDS
from storage.selection import ALL_SOURCES, SourcePolicy

HOUR: Final = 3_600 * MICROSECONDS
DAY: Final = 24 * HOUR

Interval = tuple[int, int]
"""Instants in µs, end excluded."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which a source speaks, µs, end excluded; None is every source."""

    start: int
    end: int
    source: str | None


def asked_for(source: str | None, start: int, end: int) -> list[Span]:
    """Return the one span of a ticket that says whom it wants to hear; none where it doesn't."""
    if source is None:
        return []
    return [Span(start, end, None if source == ALL_SOURCES else source)]


def spoken(
    dates: Mapping[str, Collection[int]],
    policy: SourcePolicy,
    holes: Callable[[str, Interval], Sequence[Interval]],
    start: int,
    end: int,
) -> list[Span]:
    """Return who speaks when, by source and time; the spans of one source don't overlap.

    The best source that covers a date speaks for all of it. Inside its recorded holes the next one
    speaks, too, and inside the holes of that the one after.

    Args:
        dates: UTC dates (days since 1970) that each source has a row on.
        policy: Which source is best.
        holes: Returns the holes of a source in a stretch of time.
        start: What was asked for, µs.
        end: Likewise, excluded.
    """
    ranked = sorted(dates, key=policy.rank)
    known = sorted(set().union(*dates.values()))
    found: list[Span] = []
    # Up to the next date that anybody has rows on, so that a weekend parts nothing.
    for date, following in pairwise([*known, end // DAY + 1]):
        speakers = [source for source in ranked if date in dates[source]]
        found.extend(_speaking(speakers, holes, (date * DAY, following * DAY)))
    clipped = (Span(max(start, s.start), min(end, s.end), s.source) for s in found)
    return _joined(span for span in clipped if span.start < span.end)


def _speaking(
    speakers: Sequence[str],
    holes: Callable[[str, Interval], Sequence[Interval]],
    window: Interval,
) -> Iterator[Span]:
    best, *others = speakers
    yield Span(*window, best)
    if others:
        for hole in _union(holes(best, window), window):
            yield from _speaking(others, holes, hole)


def _union(intervals: Sequence[Interval], window: Interval) -> list[Interval]:
    """Return intervals that don't overlap, and what of them lies inside a window."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        start, end = max(start, window[0]), min(end, window[1])  # noqa: PLW2901
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _joined(spans: Iterator[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.source or "", span.start)):
        before = joined[-1] if joined else None
        if before and before.source == span.source and before.end == span.start:
            joined[-1] = Span(before.start, span.end, span.source)
        else:
            joined.append(span)
    return joined
