"""The command ``bars``: how prices moved, a row an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickflight.screen import Answer, add_format, completeness, rows_text
from tickflight.tables import Format
from tickflight.tickets import Session

if TYPE_CHECKING:
    import argparse

    from tickflight.client import Client

_NOT_ON_SCREEN: Final = frozenset({"ts_recv", "interval", "flags"})
"""What the question says already, or only programs read."""


def add_bars(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bars``."""
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL")
    parser.add_argument("--interval", default="1m", help="1s, 30s, 1m, 5m, 1h, 1d, … (1m)")
    parser.add_argument(
        "--from", "--start", dest="start", default="-1h", metavar="WHEN", help="ISO 8601, -7d (-1h)"
    )
    parser.add_argument(
        "--to", "--end", dest="end", default="now", metavar="WHEN", help="likewise (now)"
    )
    parser.add_argument(
        "--session",
        type=Session,
        choices=list(Session),
        metavar="{" + ",".join(Session) + "}",
        help="what days and hours are aligned to: midnight UTC, or CME's trade dates (utc)",
    )
    parser.add_argument("--source", help="made of the ticks of this source alone")
    add_format(parser)
    parser.set_defaults(run=run_bars)


def run_bars(client: Client, options: argparse.Namespace) -> Answer:
    """Answer ``bars``."""
    result = client.bars(
        options.symbols,
        options.interval,
        options.start,
        options.end,
        session=options.session,
        source=options.source,
    )
    rows = result.arrow().to_pylist()
    if options.format is not Format.TABLE:
        return Answer(rows_text(result.schema.names, rows, options.format))
    names = [name for name in result.schema.names if name not in _NOT_ON_SCREEN]
    text = rows_text(names, rows, options.format)
    return Answer("\n".join(filter(None, (text, completeness(result.coverage)))))
