"""What the commands share: answers for a screen or a program, and options that mean the same."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tickflight.coverage import Coverage, CoverageState
from tickflight.tables import Format, Heading, csv_text, json_lines, table

DONE: Final = 0
FAILED: Final = 1
MISUSED: Final = 2

_UNBOUNDED_COLUMNS: Final = 100_000  # output that goes to a program is not cut to a screen


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints, and its exit code."""

    text: str
    code: int = DONE


def add_format(parser: argparse.ArgumentParser) -> None:
    """Let the caller choose how rows are printed."""
    parser.add_argument(
        "--format",
        type=Format,
        choices=list(Format),
        default=Format.TABLE,
        metavar="{" + ",".join(Format) + "}",
        help="table for people, csv or json (one object a line) for programs",
    )


def positive(text: str) -> int:
    """Read a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def to_seconds(instant: datetime | None) -> str:
    """Return an instant to the second; nothing for none."""
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M:%SZ}"


def rows_text(names: list[str], rows: list[dict[str, object]], form: Format) -> str:
    """Return rows as the caller wants them."""
    values = [[row[name] for name in names] for row in rows]
    match form:
        case Format.TABLE:
            return screen_table(names, values)
        case Format.CSV:
            return csv_text(names, values)
        case Format.JSON:
            return json_lines(rows)


def screen_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table that fits the screen, where there is one."""
    heading = Heading.BOLD if has_colour() else Heading.PLAIN
    return table(names, rows, width=screen_width(), heading=heading)


def has_colour() -> bool:
    """Return whether what is printed may have colours: on a terminal that shows them."""
    to_screen = sys.stdout.isatty()
    return to_screen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def screen_width() -> int:
    """Return how wide a line may be."""
    bounded = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return shutil.get_terminal_size().columns if bounded else _UNBOUNDED_COLUMNS


def completeness(coverage: Coverage) -> str:
    """Return what is to be known about rows: nothing is said of those that were verified."""
    notes = []
    for symbol, one in coverage.symbols.items():
        if one.state is not CoverageState.VERIFIED:
            gaps = f", {one.gap_count} gaps" if one.gap_count else ""
            bad = f", {one.quarantined} quarantined" if one.quarantined else ""
            notes.append(f"{symbol}: {one.state}{gaps}{bad}")
    return "\n".join(notes)
