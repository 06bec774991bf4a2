"""Bars the slow way: row by row, in plain Python, as the rules are told."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st

from storage.schemas import Flag, Kind, Side

# The machine decides how long an example takes; what a test says is true at any speed.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

MINUTE = 60_000_000
DAY = 86_400_000_000
MIDNIGHT = 20_000 * DAY


@dataclass(frozen=True)
class Tick:
    """A row of the tape."""

    ts: int
    symbol: str
    source: str
    contract: str
    sequence: int
    kind: int
    price: float
    size: float
    side: int
    flags: int

    @property
    def order(self) -> tuple[object, ...]:
        return self.ts, self.source, self.contract, self.sequence, self.kind

    @property
    def event(self) -> tuple[object, ...]:
        return self.ts // MINUTE, self.symbol, self.source, self.contract, self.sequence


@dataclass(frozen=True)
class Bar:
    """What a reader gets, besides the name of the interval and the end."""

    start: int
    symbol: str
    source: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trades: int
    buy_volume: float
    sell_volume: float
    flags: int


TICKS = st.builds(
    Tick,
    # Both sides of borders of seconds, minutes, hours and days, and the borders themselves.
    ts=st.builds(
        lambda border, step: border + step,
        st.sampled_from([MIDNIGHT + one * MINUTE for one in (0, 1, 2, 60, 1380, 1440)]),
        st.sampled_from([-15_000_000, -1, 0, 1, 999_999, 1_000_000, 15_000_000, 59_999_999]),
    ),
    symbol=st.sampled_from(["A", "B"]),
    source=st.sampled_from(["best", "good"]),
    contract=st.sampled_from(["Z6", "H7"]),
    sequence=st.integers(0, 5),
    kind=st.sampled_from([Kind.NEW, Kind.NEW, Kind.NEW, Kind.CORRECTION, Kind.CANCEL]),
    # Halves add up without rounding, whatever the order.
    price=st.integers(-2, 200).map(lambda halves: halves / 2),
    size=st.integers(0, 9).map(float),
    side=st.integers(-1, 1),
    flags=st.sampled_from(
        [
            Flag.VALID_TICK,
            Flag.VALID_TICK | Flag.SYNTHETIC | Flag.END_OF_BATCH,
            Flag.VALID_TICK | Flag.SPREAD_LEG,
            Flag.SUSPICIOUS | Flag.EXTENDED_HOURS,
            Flag(0),
        ]
    ).map(int),
)


def events_of(rows: Iterable[Tick]) -> list[Tick]:
    """Apply cancellations and corrections."""
    told = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.order):
        told[row.event].append(row)
    events = []
    for versions in told.values():
        newest = versions[-1]
        place = min(versions, key=lambda row: row.kind)
        if newest.kind != Kind.CANCEL:
            events.append((place.order, Tick(**{**vars(newest), "ts": place.ts})))
    return [event for _, event in sorted(events, key=lambda event: event[0])]


def model_bars(
    rows: Iterable[Tick],
    starts: Callable[[int], int],
    *,
    apart: Callable[[Tick], object] = lambda row: row.symbol,
) -> list[Bar]:
    """Return the bars of ticks; rows of which ``apart`` differs get bars of their own."""
    groups = defaultdict(list)
    for event in events_of(rows):
        groups[starts(event.ts), apart(event)].append(event)
    bars = [_bar(start, group) for (start, _), group in groups.items()]
    return sorted(bars, key=lambda bar: (bar.start, bar.symbol, bar.source))


def _bar(start: int, trades: list[Tick]) -> Bar:
    valid = [row for row in trades if row.flags & Flag.VALID_TICK]
    makers = [row for row in valid if not row.flags & Flag.SPREAD_LEG]
    prices = [row.price for row in makers or trades]
    volume = sum(row.size for row in trades)
    turnover = sum(row.price * row.size for row in trades)
    flags = 0
    for row in trades:
        flags |= row.flags
    flags &= ~(Flag.END_OF_BATCH | Flag.VALID_TICK)
    return Bar(
        start=start,
        symbol=trades[0].symbol,
        source=trades[-1].source,
        open=prices[0],
        high=max(prices),
        low=min(prices),
        close=prices[-1],
        volume=volume,
        vwap=turnover / volume if volume else prices[-1],
        trades=len(trades),
        buy_volume=sum(row.size for row in trades if row.side == Side.BUY),
        sell_volume=sum(row.size for row in trades if row.side == Side.SELL),
        flags=int(flags | (Flag.VALID_TICK if makers else 0)),
    )
