"""The feed's own count of the day against the ticks that came: the one witness of a lossless feed.

``TimeAndSale`` sequences need not be dense, so a missing tick shows in none of them. ``Trade``
tells the volume of the day up to the time of a trade. What was traded between two such times must
have come as ticks, those of both times included: one count may stand between trades of one moment.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ingest.tastytrade.contracts import Instrument
from ingest.tastytrade.events import Events

SETTLING_US: Final = 5_000_000
"""Every tick of a count has come so much after it: their channels are milliseconds apart."""
SPACING_US: Final = 5_000_000
"""Between counts that are compared: the ticks of their own moments blur each comparison."""
SPACING_MAX_US: Final = 160_000_000
"""A feed that falls short again and again is compared less and less often, down to this: what it
lacks is told as well by a gap of minutes as by many of seconds."""
TOLERATED_SHARE: Final = 0.001
"""Of the volume between two counts: corrections move the one and not the other."""
TOLERATED_SIZE: Final = 0.5
"""Sizes are whole, or fractions of a share that no count of a day knows."""
TICKS_MAX: Final = 500_000
"""Ticks of one contract that wait for a count; hours with trades and without counts have more."""
COUNTS_MAX: Final = 8
"""Counts of one contract that wait to settle; spaced as they are, two do."""
_MILLISECOND_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Ticks that never came; instants in µs since 1970, by the venue's clock.

    Attributes:
        symbol: Of the contract they are missing from.
        start: Time of the count before.
        end: Behind the time of the count that shows it.
        size: How much of the volume is missing.
    """

    symbol: str
    start: int
    end: int
    size: float


@dataclass(frozen=True, slots=True)
class _Count:
    """The volume of a day up to a time, in milliseconds; received in µs."""

    received: int
    day: int
    time: int
    volume: float


@dataclass(slots=True)
class _Tally:
    """What came of one contract since the count before: times and sizes, piece by piece."""

    pieces: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = field(default_factory=list)
    held: int = 0
    before: _Count | None = None
    waiting: deque[_Count] = field(default_factory=lambda: deque(maxlen=COUNTS_MAX))
    newest: int = 0
    spacing: int = field(default_factory=lambda: SPACING_US)


class VolumeWatch:
    """Compares counts and ticks, contract by contract, from its making on.

    Args:
        followed: What to compare; indices are left out.
    """

    def __init__(self, followed: Sequence[Instrument]) -> None:
        traded = [one for one in followed if not one.is_index]
        self._symbols = {one.contract: one.symbol for one in traded}
        self._tallies = {one.contract: _Tally() for one in traded}

    def add_ticks(self, events: Events) -> None:
        """Add what came of ``TimeAndSale``."""
        contracts = np.array(events.needed("eventSymbol"), object)
        new = np.array([kind == "NEW" for kind in events.column("type", "NEW")], bool)
        times, sizes = events.integers("time"), np.nan_to_num(events.numbers("size"), nan=0.0)
        for contract in set(contracts.tolist()) & self._tallies.keys():
            rows = new & (contracts == contract)
            if self._tallies[contract].held > TICKS_MAX:
                self._tallies[contract] = _Tally()  # and begin anew
            tally = self._tallies[contract]
            tally.pieces.append((times[rows], sizes[rows]))
            tally.held += int(rows.sum())

    def add_counts(self, events: Events) -> None:
        """Add what came of ``Trade``; of hours without a regular trade it tells no time."""
        volumes, times = events.numbers("dayVolume"), events.numbers("time")
        days, extended = events.numbers("dayId"), events.column("extendedTradingHours")
        for row, contract in enumerate(events.needed("eventSymbol")):
            tally, received = self._tallies.get(contract), int(events.received[row])
            known = np.isfinite([volumes[row], times[row], days[row]]).all()
            if tally is None or not known or extended[row] is True:
                continue
            if received - tally.newest >= tally.spacing:
                tally.newest = received
                count = _Count(received, int(days[row]), int(times[row]), float(volumes[row]))
                tally.waiting.append(count)

    def shortfalls(self, now: int) -> list[Shortfall]:
        """Return what is missing, each once, by the counts that have settled at ``now``."""
        found = []
        for contract, tally in self._tallies.items():
            while tally.waiting and now - tally.waiting[0].received >= SETTLING_US:
                missing = _compared(tally, tally.waiting.popleft(), self._symbols[contract])
                found += [missing] if missing is not None else []
        return found


def _compared(tally: _Tally, count: _Count, symbol: str) -> Shortfall | None:
    """Compare a count with the one before; the next is compared with it."""
    before, tally.before = tally.before, count
    times, sizes = _taken(tally, count.time)
    if before is None or before.day != count.day or before.time >= count.time:
        return None
    traded = count.volume - before.volume
    missing = traded - float(sizes[(times >= before.time) & (times <= count.time)].sum())
    if missing <= max(TOLERATED_SIZE, TOLERATED_SHARE * traded):
        tally.spacing = SPACING_US
        return None
    tally.spacing = min(2 * tally.spacing, SPACING_MAX_US)
    end = (count.time + 1) * _MILLISECOND_US
    return Shortfall(symbol, before.time * _MILLISECOND_US, end, missing)


def _taken(tally: _Tally, until: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return times and sizes of what came; what is needed again for the next count is kept."""
    if not tally.pieces:
        return np.empty(0, np.int64), np.empty(0)
    times = np.concatenate([times for times, _ in tally.pieces])
    sizes = np.concatenate([sizes for _, sizes in tally.pieces])
    later = times >= until
    tally.pieces = [(times[later], sizes[later])]
    tally.held = int(later.sum())
    return times, sizes
