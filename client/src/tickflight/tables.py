"""Rows as text: aligned for people, CSV and JSON lines for programs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

_GAP: Final = "  "
_MIN_WIDTH: Final = 8  # of a text that gives way: enough to know what it is
_MAX_DECIMALS: Final = 6
_BOLD: Final = "\x1b[1m{}\x1b[0m"


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class Heading(StrEnum):
    """How a table's heading is set apart."""

    BOLD = "bold"
    PLAIN = "plain"


def table(
    names: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    width: int,
    heading: Heading = Heading.PLAIN,
) -> str:
    """Aligned columns in lines no wider than ``width``, numbers to the right.

    Texts that are too long are shortened, the widest first; columns that still find no place are
    left out, and the last line names them.
    """
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    texts = [_texts(column) for column in columns]
    natural = [max(map(len, (name, *cells))) for name, cells in zip(names, texts, strict=True)]
    firm = [_is_numeric(column) for column in columns]
    widths = _fitted(natural, [len(name) for name in names], firm, width)
    shown = len(widths)
    lines = [_line(names[:shown], widths, firm)]
    if heading is Heading.BOLD:
        lines[0] = _BOLD.format(lines[0])
    lines.extend(_line(row, widths, firm) for row in zip(*texts[:shown], strict=True))
    if shown < len(names):
        lines.append(_shortened(f"… and {', '.join(names[shown:])}", width))
    return "\n".join(lines)


def csv_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values with a heading; times are ISO 8601, nothing is nothing."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return output.getvalue().rstrip("\n")


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    """One JSON object a line; times are ISO 8601."""
    return "\n".join(json.dumps(row, default=_plain) for row in rows)


def byte_size(size: int | None) -> str:
    """Bytes in the unit that leaves the fewest digits."""
    if size is None:
        return ""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def printable(text: str) -> str:
    """Text without what would break a line or command a terminal: rows hold other people's text."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _fitted(natural: list[int], least: list[int], firm: list[bool], width: int) -> list[int]:
    """Widths that fit, of as many columns as can; a ``firm`` one is whole or not there."""
    widths = list(natural)
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width and len(widths) > 1:
        soft = [
            index
            for index, one in enumerate(widths)
            if not firm[index] and one > max(_MIN_WIDTH, least[index])
        ]
        if soft:
            widths[max(soft, key=widths.__getitem__)] -= 1
        else:
            widths = natural[: len(widths) - 1]
    return widths


def _line(cells: Iterable[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if right else _shortened(cell, width).ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=False)
    )
    return _GAP.join(padded).rstrip()


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _is_numeric(column: Sequence[object]) -> bool:
    values = [value for value in column if value is not None]
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _texts(column: Sequence[object]) -> list[str]:
    decimals = max((_decimals(one) for one in column if isinstance(one, float)), default=0)
    return [
        f"{one:.{decimals}f}" if isinstance(one, float) else printable(_plain(one))
        for one in column
    ]


def _decimals(value: float) -> int:
    """Digits behind the point that this value needs."""
    return len(f"{value:.{_MAX_DECIMALS}f}".rstrip("0").partition(".")[2])


def _plain(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            instant = value if value.tzinfo is None else value.astimezone(UTC)
            return instant.replace(tzinfo=None).isoformat(" ", "microseconds") + "Z"
        case list() | dict():
            return json.dumps(value, default=_plain)
        case _:
            return str(value)
