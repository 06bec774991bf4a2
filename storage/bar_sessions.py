"""How time is divided into bars: intervals, and the trade dates of CME.

All borders are instants in µs since 1970, UTC, and all borders of a minute or longer fall on whole
minutes.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from storage.errors import InvalidDataError
from storage.ports import MICROSECONDS
from storage.runs import Integers

MINUTE: Final = 60 * MICROSECONDS
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_TEXT: Final = re.compile(r"([1-9]\d{0,4})([smhd])")
_UNITS: Final = {"s": MICROSECONDS, "m": MINUTE, "h": HOUR, "d": DAY}
_CHICAGO: Final = "America/Chicago"
_OPENS: Final = time(17)
"""When a trade date of CME begins, on the evening before."""
_MAINTENANCE: Final = HOUR
"""Between the close of a trade date and the next one's opening."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Session(Enum):
    """What the bars of a day are aligned to."""

    UTC = "utc"
    """Midnight, UTC."""
    CME = "cme"
    """Trade dates of CME: from 17:00 of the evening before to 16:00, Chicago's time."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The length of a bar.

    Attributes:
        text: As answers name it, in the largest unit that needs no fraction: ``60s`` is ``1m``.
        step: µs.
    """

    text: str
    step: int

    @property
    def base(self) -> int:
        """The longest length, in µs, whose bars make up both this interval's and minutes."""
        return math.gcd(self.step, MINUTE)


def parse_interval(text: str) -> Interval:
    """Read an interval: a number and ``s``, ``m``, ``h`` or ``d``.

    Raises:
        InvalidDataError: It is none, or a day can't be divided by it.
    """
    found = _TEXT.fullmatch(text)
    step = int(found[1]) * _UNITS[found[2]] if found else 0
    if not step or DAY % step:
        message = (
            f"interval {text[:20]!r} does not divide a day: send a number and s, m, h or d,"
            " such as 1s, 30s, 1m, 5m, 1h or 1d"
        )
        raise InvalidDataError(message, field="interval")
    unit = max((name for name in _UNITS if step % _UNITS[name] == 0), key=_UNITS.__getitem__)
    return Interval(f"{step // _UNITS[unit]}{unit}", step)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the bars of an interval begin and end.

    A trade date of CME is divided from its opening on; the night in which clocks are set back
    makes its last bar longer. It closes an hour before the next one opens, and what is printed in
    that hour of maintenance belongs to it too.
    """

    interval: Interval
    session: Session = Session.UTC

    def starts(self, instants: Integers) -> Integers:
        """Return the start of the bar that each instant belongs to."""
        step = self.interval.step
        if self.session is Session.UTC or not len(instants):
            return instants // step * step
        opened = _openings(instants)[0]
        starts: Integers = opened + np.minimum((instants - opened) // step, DAY // step - 1) * step
        return starts

    def ends(self, starts: Integers, last: Integers) -> Integers:
        """Return the ends of bars.

        Args:
            starts: Their starts.
            last: Instants of their last rows.
        """
        ends: Integers = starts + self.interval.step
        if self.session is Session.UTC or not len(starts):
            return ends
        opened, following = _openings(starts)
        closed = np.where(last < following - _MAINTENANCE, following - _MAINTENANCE, following)
        # Of the night with an hour more, the last bar has it.
        longer = ends == opened + DAY
        ends[longer] = closed[longer]
        shut: Integers = np.minimum(ends, closed)
        return shut

    def border(self, instant: int) -> int:
        """Return the first start of a bar at or after an instant."""
        start = self._start(instant)
        if start == instant:
            return start
        following = start + self.interval.step
        if self._start(following) == following:
            return following
        return int(_openings(np.array([instant]))[1][0])

    def _start(self, instant: int) -> int:
        return int(self.starts(np.array([instant]))[0])


def _openings(instants: Integers) -> tuple[Integers, Integers]:
    """Return when the trade date of each instant opened, and when the next one did."""
    first, last = int(instants.min()) // DAY - 1, int(instants.max()) // DAY + 2
    openings = np.array([_opening(day) for day in range(first, last + 1)])
    at = np.searchsorted(openings, instants, side="right") - 1
    return openings[at], openings[at + 1]


@lru_cache(maxsize=10_000)
def _opening(day: int) -> int:
    """Return the opening on the evening of a date, counted in days since 1970."""
    evening = date(1970, 1, 1) + timedelta(days=day)
    since = datetime.combine(evening, _OPENS, ZoneInfo(_CHICAGO)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * MICROSECONDS
