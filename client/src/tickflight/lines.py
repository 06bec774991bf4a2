"""Rows that never end, as lines of a screen: columns keep their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

from tickflight.tables import printable

if TYPE_CHECKING:
    from datetime import date

SHOWN: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "ticks": ("symbol", "price", "size", "bid", "ask", "exchange", "condition", "source"),
        "quotes": ("symbol", "bid", "ask", "bid_size", "ask_size", "source"),
        "depth": ("symbol", "action", "side", "price", "size", "orders", "source"),
        "gex": ("symbol", "spot", "zero_gamma", "net_gex", "endpoint", "source"),
        "bars": ("symbol", "close", "open", "high", "low", "volume", "interval", "source"),
    }
)
"""What of a row gets a place on its line, the most important first; of other datasets, all."""
TIME: Final = "ts_event"
UNTOLD: Final = frozenset({TIME, "ts_recv"})
"""A line begins with the time, so these get no column of their own."""
TEXT_CHARS_MAX: Final = 32
"""Longest text in a column: a line is to be read at a glance."""
HEADING_EVERY_LINES: Final = 500
"""After so many lines the heading comes again: by then it has left the screen."""
WIDE_SCREEN: Final = 60
"""Narrower ones get times to the second."""
_DECIMALS_MAX: Final = 6
_NO_TIME: Final = datetime.fromtimestamp(0, UTC)
_GAP: Final = "  "
_BOLD: Final = "\x1b[1m"
_QUIET: Final = "\x1b[2m"
_RED: Final = "\x1b[31m"
_GREEN: Final = "\x1b[32m"
_YELLOW: Final = "\x1b[33m"
_END: Final = "\x1b[0m"


@final
class Lines:
    """Makes the lines of one dataset.

    Columns become wider as wider things come, and never narrower again, so that the eye finds a
    price where the one above it was. Those that find no place on the screen are left out.

    Args:
        dataset: whose rows come.
        has_colour: whether to colour buys, sells and notices.
    """

    def __init__(self, dataset: str, *, has_colour: bool) -> None:
        self._chosen = SHOWN.get(dataset)
        self._has_colour = has_colour
        # The mutable state: what columns have become, and what was printed before.
        self._widths: dict[str, int] = {}
        self._decimals: dict[str, int] = {}
        self._heading: tuple[str, ...] = ()
        self._day: date | None = None
        self._since_heading = 0

    def of(self, batch: pa.RecordBatch, screen: int) -> list[str]:
        """Return the lines of rows, headings among them; none is wider than the screen."""
        names = self._names(batch.schema)
        align = {name: _alignment(batch.schema.field(name).type) for name in names}
        texts = {name: self._texts(name, batch.column(name).to_pylist()) for name in names}
        for name, cells in texts.items():
            self._widths[name] = max(self._widths.get(name, len(name)), *map(len, cells))
        columns = batch.schema.names
        instants = batch.column(TIME).to_pylist() if TIME in columns else [None] * batch.num_rows
        sides = batch.column("side").to_pylist() if "side" in columns else [0] * batch.num_rows
        names = self._fitting(names, screen)
        lines: list[str] = []
        for row, instant in enumerate(instants):
            lines += self._headings(names, instant, screen)
            cells = [align[name](texts[name][row], self._widths[name]) for name in names]
            line = _GAP.join([_time(instant, screen), *cells])[:screen].rstrip()
            lines.append(self._painted(line, _of_side(sides[row])))
        return lines

    def notice(self, text: str) -> str:
        """Return something that is no row as a line."""
        return self._painted(f"! {printable(text)}", _YELLOW)

    def _names(self, schema: pa.Schema) -> list[str]:
        if self._chosen is not None:
            return [name for name in self._chosen if name in schema.names]
        return [field.name for field in schema if field.name not in UNTOLD]

    def _texts(self, name: str, values: Sequence[Any]) -> list[str]:
        floats = (value for value in values if isinstance(value, float))
        needed = max(map(_decimals, floats), default=0)
        decimals = self._decimals[name] = max(needed, self._decimals.get(name, 0))
        return [_text(value, decimals) for value in values]

    def _fitting(self, names: Sequence[str], screen: int) -> list[str]:
        """Return the columns that find a place behind the time, as many as do."""
        left = screen - len(_time(_NO_TIME, screen))
        fitting: list[str] = []
        for name in names:
            left -= len(_GAP) + self._widths[name]
            if left < 0 and fitting:
                break
            fitting.append(name)
        return fitting

    def _headings(
        self, names: Sequence[str], instant: datetime | None, screen: int
    ) -> Iterator[str]:
        """Yield the heading where it is new or has left the screen, and each day as it begins."""
        self._since_heading += 1
        if tuple(names) != self._heading or self._since_heading > HEADING_EVERY_LINES:
            self._heading, self._since_heading = tuple(names), 0
            blank = " " * len(_time(_NO_TIME, screen))
            cells = (name.ljust(self._widths[name]) for name in names)
            yield self._painted(_GAP.join([blank, *cells])[:screen].rstrip(), _BOLD)
        if instant is not None and instant.date() != self._day:
            self._day = instant.date()
            yield self._painted(f"{instant:%Y-%m-%d} UTC"[:screen], _QUIET)

    def _painted(self, line: str, colour: str | None) -> str:
        return f"{colour}{line}{_END}" if self._has_colour and colour else line


def _alignment(kind: pa.DataType) -> Callable[[str, int], str]:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return str.rjust if is_number else str.ljust


def _text(value: object, decimals: int) -> str:
    if value is None:
        return ""
    text = f"{value:.{decimals}f}" if isinstance(value, float) else printable(str(value))
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"


def _decimals(value: float) -> int:
    """Return the digits behind the point that a value needs."""
    return len(f"{value:.{_DECIMALS_MAX}f}".rstrip("0").partition(".")[2])


def _time(instant: datetime | None, screen: int) -> str:
    form = "%H:%M:%S.%f" if screen >= WIDE_SCREEN else "%H:%M:%S"
    text = f"{instant or _NO_TIME:{form}}"
    return text if instant is not None else " " * len(text)


def _of_side(side: int | None) -> str | None:
    """Return the colour of a trade: green where the buyer crossed the spread."""
    return {1: _GREEN, -1: _RED}.get(side or 0)
