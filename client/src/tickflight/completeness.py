"""The commands ``gaps`` and ``coverage``: what is missing, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tickflight.coverage import Gap, Span, SymbolCoverage, as_datetime
from tickflight.errors import InvalidRequestError
from tickflight.screen import Answer, screen_table, screen_width, to_seconds
from tickflight.tables import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from tickflight.client import Client

DAYS_MAX: Final = 400
"""Days of one report: a year and some; each is a question of its own."""
UNFILLED: Final = ("open", "unfillable")
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US

_NO_ROWS: Final = "."
_HOLE: Final = "!"
_LEVELS: Final = 9
_LEGEND: Final = "hours: 1 to 9 is how busy, . no rows, ! rows are missing (UTC)"
_WIDE_COLUMNS: Final = 72  # what a day takes in one line
_GAP_COLUMNS: Final = (
    "start", "end", "lasted", "dataset", "symbols", "source", "reason", "state", "detail",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day of one symbol.

    Attributes:
        start_us: Its first microsecond.
        rows: Rows by hour of the day.
        known: What is known of its completeness.
    """

    start_us: int
    rows: tuple[int, ...]
    known: SymbolCoverage

    @property
    def date(self) -> str:
        """The day as ISO 8601."""
        return f"{as_datetime(self.start_us):%Y-%m-%d}"

    def heat(self, busiest: int) -> str:
        """Return a character an hour."""
        return "".join(self._hour(hour, rows, busiest) for hour, rows in enumerate(self.rows))

    def _hour(self, hour: int, rows: int, busiest: int) -> str:
        start = self.start_us + hour * HOUR_US
        if any(_overlaps(gap, start, start + HOUR_US) for gap in self.known.gaps):
            return _HOLE
        return str(-(-rows * _LEVELS // busiest)) if rows else _NO_ROWS


def add_gaps(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``gaps``."""
    parser.add_argument("symbols", nargs="*", metavar="SYMBOL", help="all when left out")
    parser.add_argument("--from", dest="start", metavar="WHEN", help="ISO 8601, -7d, -15m, now")
    parser.add_argument("--to", dest="end", metavar="WHEN", help="likewise")
    parser.add_argument("--dataset", help="this one alone")
    parser.add_argument("--all", action="store_true", help="also gaps that were filled")
    parser.add_argument("--json", action="store_true", help="one object a gap and line")
    parser.set_defaults(run=run_gaps)


def add_coverage(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``coverage``."""
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL")
    parser.add_argument("--from", dest="start", default="-7d", metavar="WHEN", help="(-7d)")
    parser.add_argument("--to", dest="end", default="now", metavar="WHEN", help="(now)")
    parser.add_argument("--dataset", default="ticks", help="ticks, quotes, depth, … (ticks)")
    parser.add_argument("--source", help="rows of this source alone")
    parser.add_argument("--json", action="store_true", help="one object a symbol and day")
    parser.set_defaults(run=run_coverage)


def run_gaps(client: Client, options: argparse.Namespace) -> Answer:
    """Answer ``gaps``."""
    found = client.gaps(
        options.symbols,
        options.start,
        options.end,
        dataset=options.dataset,
        states=() if options.all else UNFILLED,
    )
    if options.json:
        return Answer("\n".join(json.dumps(_gap_json(gap)) for gap in found))
    if not found.count:
        return Answer("no gaps are known" if options.all else "no unfilled gaps are known")
    parts = [_gap_table(found)]
    if found.count > len(found):
        parts.append(f"the last {len(found):,} of {found.count:,}; name a shorter time for others")
    return Answer("\n".join(parts))


def run_coverage(client: Client, options: argparse.Namespace) -> Answer:
    """Answer ``coverage``."""
    whole = client.coverage(
        options.symbols, options.start, options.end, dataset=options.dataset, source=options.source
    )
    reports: list[str] = []
    for symbol, known in whole.symbols.items():
        days = _days(client, symbol, known, options)
        if options.json:
            reports.extend(json.dumps(_day_json(symbol, day)) for day in days)
        else:
            reports.append(_report(symbol, known, days, options.dataset))
    if options.json:
        return Answer("\n".join(reports))
    return Answer("\n\n".join([*reports, _fitted(_LEGEND)]))


def _days(
    client: Client, symbol: str, known: SymbolCoverage, options: argparse.Namespace
) -> list[Day]:
    asked = known.requested
    # Where there is nothing at all, there is nothing to draw a day for.
    span = None if asked is None else _clipped(asked, known)
    if span is None or span.end_us <= span.start_us:
        return []
    firsts = range(span.start_us // DAY_US * DAY_US, span.end_us, DAY_US)
    if len(firsts) > DAYS_MAX:
        raise InvalidRequestError(
            f"{len(firsts)} days are too many for a report: name at most {DAYS_MAX}", field="start"
        )
    rows = _rows_by_hour(client, symbol, span, options)
    days = []
    for first in firsts:
        start, end = max(first, span.start_us), min(first + DAY_US, span.end_us)
        of_day = client.coverage(
            symbol, start, end, dataset=options.dataset, source=options.source
        )[symbol]
        hours = tuple(rows[first // HOUR_US + hour] for hour in range(24))
        days.append(Day(first, hours, of_day))
    return days


def _clipped(asked: Span, known: SymbolCoverage) -> Span:
    """Return the part of a span that has rows or gaps."""
    starts = [gap.start_us for gap in known.gaps]
    ends = [asked.end_us if gap.end_us is None else gap.end_us for gap in known.gaps]
    if known.gap_count > len(known.gaps):  # those that are not named may lie anywhere
        return asked
    if known.available is not None:
        starts.append(known.available.start_us)
        ends.append(known.available.end_us)
    if not starts:
        return Span(asked.start_us, asked.start_us)
    start, end = max(asked.start_us, min(starts)), min(asked.end_us, max(ends))
    return Span(start, max(start, end))


def _rows_by_hour(
    client: Client, symbol: str, span: Span, options: argparse.Namespace
) -> Counter[int]:
    """Count rows by hour since 1970, a batch in memory at a time."""
    answer = client.range(
        options.dataset,
        symbol,
        span.start_us,
        span.end_us,
        columns=["ts_event"],
        source=options.source,
    )
    counts: Counter[int] = Counter()
    for batch in answer:
        hours = pc.divide(batch.column(0).cast(pa.int64()), HOUR_US)
        for one in pc.value_counts(hours).to_pylist():
            counts[one["values"]] += one["counts"]
    return counts


def _report(symbol: str, known: SymbolCoverage, days: Sequence[Day], dataset: str) -> str:
    rows = sum(sum(day.rows) for day in days)
    facts = [f"{rows:,} rows"]
    if known.gap_count:
        facts.append(f"{known.gap_count:,} gaps")
    if known.quarantined:
        facts.append(f"{known.quarantined:,} quarantined")
    parts = [_fitted(f"{symbol} {dataset}: {known.state}, {', '.join(facts)}")]
    if days:
        parts.append(_day_lines(days))
    if known.gaps:
        parts.append(_gap_table(known.gaps))
    if known.gap_count > len(known.gaps):
        parts.append(_fitted(f"… and more: tickflight gaps {symbol}"))
    return "\n".join(parts)


def _day_lines(days: Sequence[Day]) -> str:
    busiest = max((rows for day in days for rows in day.rows), default=0) or 1
    if screen_width() >= _WIDE_COLUMNS:
        lines = [
            (day.date, sum(day.rows), str(day.known.state), day.known.gap_count, day.heat(busiest))
            for day in days
        ]
        return screen_table(["day", "rows", "state", "gaps", "hours 0 to 23 UTC"], lines)
    # A heat line that is cut short would tell less hours than there are: it gets a line of its own.
    return "\n".join(
        f"{_fitted(f'{day.date} {day.known.state} {sum(day.rows):,}')}\n  {day.heat(busiest)}"
        for day in days
    )


def _gap_table(gaps: Iterable[Gap]) -> str:
    """One line an outage: it is a gap in each of its symbols."""
    symbols: dict[tuple[object, ...], list[str]] = {}
    for gap in gaps:
        columns = (
            to_seconds(gap.start),
            to_seconds(gap.end),
            _lasted(gap),
            gap.dataset or "",
            gap.source or "",
            gap.reason or "",
            gap.state or "",
            gap.detail,
        )
        symbols.setdefault(columns, []).append(gap.symbol or "all")
    lines = [
        (*columns[:4], " ".join(sorted(set(names))), *columns[4:])
        for columns, names in symbols.items()
    ]
    # What no gap has a word for takes no room.
    used = [any(line[at] for line in lines) for at in range(len(_GAP_COLUMNS))]
    names = [name for name, use in zip(_GAP_COLUMNS, used, strict=True) if use]
    rows = [[cell for cell, use in zip(line, used, strict=True) if use] for line in lines]
    return screen_table(names, rows)


def _lasted(gap: Gap) -> str:
    if gap.end_us is None:
        return "lasts"
    length = timedelta(microseconds=gap.end_us - gap.start_us)
    if length < timedelta(minutes=1):
        return f"{length.total_seconds():.1f} s"
    return str(timedelta(seconds=round(length.total_seconds())))


def _overlaps(gap: Gap, start: int, end: int) -> bool:
    return gap.start_us < end and (gap.end_us is None or gap.end_us > start)


def _fitted(line: str) -> str:
    text, width = printable(line), screen_width()
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _iso(us: int | None) -> str | None:
    if us is None:
        return None
    instant: datetime = as_datetime(us).astimezone(UTC)
    return instant.isoformat().replace("+00:00", "Z")


def _gap_json(gap: Gap) -> dict[str, Any]:
    return {
        "gap_id": gap.gap_id,
        "dataset": gap.dataset,
        "symbol": gap.symbol,
        "source": gap.source,
        "start": _iso(gap.start_us),
        "end": _iso(gap.end_us),
        "reason": gap.reason,
        "state": gap.state,
        "rows_recovered": gap.rows_recovered,
        "detail": gap.detail,
    }


def _day_json(symbol: str, day: Day) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "day": day.date,
        "rows": sum(day.rows),
        "hours": list(day.rows),
        "state": str(day.known.state),
        "gap_count": day.known.gap_count,
        "quarantined": day.known.quarantined,
        "gaps": [_gap_json(gap) for gap in day.known.gaps],
    }
