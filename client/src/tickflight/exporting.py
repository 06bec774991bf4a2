"""The command ``export``: a slice into a file, with its progress and how complete it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickflight.export import Existing, Exported, FileFormat, export, format_of
from tickflight.screen import Answer, completeness
from tickflight.tables import byte_size, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tickflight.client import Client
    from tickflight.coverage import Coverage, Span

PROGRESS_SECONDS: Final = 0.2
"""Between lines of progress: often enough to look alive."""
SYMBOLS_NAMED_MAX: Final = 4
"""Symbols in the name of a file; of more, how many there are."""


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``export``."""
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL")
    parser.add_argument("--from", dest="start", required=True, metavar="WHEN", help="ISO 8601, -7d")
    parser.add_argument("--to", dest="end", default="now", metavar="WHEN", help="likewise (now)")
    parser.add_argument("--dataset", default="ticks", help="ticks, quotes, depth, … (ticks)")
    parser.add_argument("--source", help="rows of this source alone")
    parser.add_argument(
        "--format",
        type=FileFormat,
        choices=list(FileFormat),
        metavar="{" + ",".join(FileFormat) + "}",
        help="by default what the file's name says, else parquet",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="named after the slice by default")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=run_export)


def run_export(client: Client, options: argparse.Namespace) -> Answer:
    """Answer ``export``."""
    out: Path | None = options.out
    named = None if out is None else format_of(out)
    form: FileFormat = options.format or named or FileFormat.PARQUET
    path = out or Path(_name(options.symbols, options.dataset, form))
    result = client.range(
        options.dataset,
        options.symbols,
        options.start,
        options.end,
        source=options.source,
    )
    try:
        done = export(
            result,
            path,
            form,
            existing=Existing.REPLACE if options.force else Existing.REFUSE,
            progress=_Progress(_requested(result.coverage)),
        )
    finally:
        result.close()
    return Answer("\n".join(filter(None, (_done(done), completeness(result.coverage)))))


class _Progress:
    """A line on the screen that says how far it is, by the time of the rows."""

    def __init__(self, span: Span | None) -> None:
        self._span = span
        self._began = self._told = time.monotonic()

    def __call__(self, rows: int, instant: int | None) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or now < self._told + PROGRESS_SECONDS:
            return
        self._told = now
        pace = rows / max(now - self._began, 1e-9)
        line = f"{self._share(instant)}{rows:,} rows, {pace:,.0f} a second"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201 - progress

    def _share(self, instant: int | None) -> str:
        if instant is None or self._span is None or self._span.end_us <= self._span.start_us:
            return ""
        share = (instant - self._span.start_us) / (self._span.end_us - self._span.start_us)
        return f"{min(max(share, 0.0), 1.0):4.0%}  "


def _requested(coverage: Coverage) -> Span | None:
    """Return the part of what was asked for that has rows, over all symbols."""
    spans = [
        (one.requested, one.available)
        for one in coverage.symbols.values()
        if one.requested is not None and one.available is not None
    ]
    if not spans:
        return None
    start = max(spans[0][0].start_us, min(available.start_us for _, available in spans))
    end = min(spans[0][0].end_us, max(available.end_us for _, available in spans))
    return type(spans[0][0])(start, end)


def _name(symbols: Sequence[str], dataset: str, form: FileFormat) -> str:
    named = "-".join(symbols[:SYMBOLS_NAMED_MAX])
    more = f"-and-{len(symbols) - SYMBOLS_NAMED_MAX}" if len(symbols) > SYMBOLS_NAMED_MAX else ""
    return f"{named}{more}-{dataset}.{form}".replace("/", "_")


def _done(done: Exported) -> str:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201 - wipes the progress
    return f"{printable(str(done.path))}: {done.rows:,} rows, {byte_size(done.bytes)}"
