"""From ticks to bars, and from bars to longer ones: arithmetic on columns, nothing else.

Rows of one feed (symbol, source, contract) and sequence within one minute are one event: the last
of them by total order says what happened. A cancellation removes it, a correction replaces it where
it stood, a repeat changes nothing. Each carries the ``ts_event`` of what it amends, as dxFeed's do.

All trades count in ``volume``, ``vwap`` and ``trades``. Prices are made by valid trades that are
not legs of spreads; only where a bar has none of those, by all there are, and then its ``flags``
lack VALID_TICK. Suspicious trades count, and are seen in ``flags``: the tape is what the venue
said.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from storage.bar_sessions import MINUTE
from storage.runs import Integers, Mask
from storage.schemas import Flag, Kind, Side
from storage.validation import Column

Floats = npt.NDArray[np.float64]
Rows = Integers | Mask | slice

SHOWN: Final = int(
    Flag.VALID_TICK
    | Flag.EXTENDED_HOURS
    | Flag.SPREAD_LEG
    | Flag.BACKFILLED
    | Flag.SUSPICIOUS
    | Flag.SYNTHETIC
)
"""Bits that a bar has when one of its trades has them; the others say something of a batch."""


class Ticks(NamedTuple):
    """Ticks in total order.

    ``series`` numbers what gets bars of its own, ``feed`` each (series, source, contract).
    """

    ts_event: Integers
    series: Integers
    source: Integers
    feed: Integers
    sequence: Integers
    kind: Column
    price: Floats
    size: Floats
    side: Column
    flags: Column

    def take(self, rows: Rows) -> "Ticks":
        """Return some rows: a slice, a mask or numbers."""
        return Ticks._make(column[rows] for column in self)


class Bars(NamedTuple):
    """Bars, or what they are made of, by ``start``; ``last`` is the instant of the last row.

    ``turnover`` is price times size: it adds up, as a mean does not.
    """

    start: Integers
    last: Integers
    series: Integers
    source: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    turnover: Floats
    trades: Integers
    buy_volume: Floats
    sell_volume: Floats
    flags: Column

    def take(self, rows: Rows) -> "Bars":
        """Return some rows: a slice, a mask or numbers."""
        return Bars._make(column[rows] for column in self)

    @property
    def vwap(self) -> Floats:
        """The mean price by volume; where nothing was traded, as of an index, the close."""
        traded = self.volume > 0
        return np.divide(self.turnover, self.volume, out=self.close.copy(), where=traded)


_Columns = TypeVar("_Columns", Ticks, Bars)


def joined(parts: Sequence[_Columns]) -> _Columns:
    """Return the rows of several ``Ticks`` or ``Bars``, at least one, as one."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return type(parts[0])._make(np.concatenate(column) for column in columns)


def settled(ticks: Ticks) -> Ticks:
    """Return what happened in some whole minutes: one row an event, in total order."""
    disputed = np.flatnonzero(_disputed(ticks))
    if not len(disputed):
        return ticks
    minute, feed, sequence, kind = (
        column[disputed]
        for column in (ticks.ts_event // MINUTE, ticks.feed, ticks.sequence, ticks.kind)
    )
    order = np.lexsort((kind, sequence, feed, minute))
    first = _changes(minute[order], feed[order], sequence[order])
    place = disputed[order[first]]
    newest = disputed[np.maximum.reduceat(order, first)]
    content = np.arange(len(ticks.ts_event))
    content[disputed] = -1
    content[place] = np.where(ticks.kind[newest] == Kind.CANCEL, -1, newest)
    kept = content >= 0
    return ticks.take(content[kept])._replace(ts_event=ticks.ts_event[kept])


def _disputed(ticks: Ticks) -> Mask:
    """Return the rows of minutes in which events may have several rows.

    Where the sequences of every feed grow, all are different.
    """
    feed, sequence = ticks.feed, ticks.sequence
    order = None if _is_constant(feed) else np.argsort(feed, kind="stable")
    if order is not None:
        feed, sequence = feed[order], sequence[order]
    repeats = 1 + np.flatnonzero((sequence[1:] <= sequence[:-1]) & (feed[1:] == feed[:-1]))
    doubtful: Mask = ticks.kind != Kind.NEW
    doubtful[repeats if order is None else order[repeats]] = True
    if not doubtful.any():
        return doubtful
    minutes = ticks.ts_event // MINUTE
    disputed: Mask = np.isin(minutes, minutes[doubtful])
    return disputed


def bars_of(ticks: Ticks) -> Bars:
    """Return each of some settled ticks as a bar of its own, to be condensed."""
    flags = ticks.flags & SHOWN
    makes_no_price = (flags & Flag.SPREAD_LEG) != 0
    flags = np.where(makes_no_price, flags & (SHOWN & ~Flag.VALID_TICK), flags)
    nothing = np.zeros(len(ticks.size))
    return Bars(
        start=ticks.ts_event,
        last=ticks.ts_event,
        series=ticks.series,
        source=ticks.source,
        open=ticks.price,
        high=ticks.price,
        low=ticks.price,
        close=ticks.price,
        volume=ticks.size,
        turnover=ticks.price * ticks.size,
        trades=np.ones(len(ticks.size), np.int64),
        buy_volume=np.where(ticks.side == Side.BUY, ticks.size, nothing),
        sell_volume=np.where(ticks.side == Side.SELL, ticks.size, nothing),
        flags=flags,
    )


def condensed(bars: Bars, starts: Integers) -> Bars:
    """Return longer bars, by start and series.

    Args:
        bars: In order of time.
        starts: The start of the longer bar that each belongs to.
    """
    if not len(starts):
        return bars
    bars = bars._replace(start=starts)
    if not _is_constant(bars.series):
        order = np.lexsort((bars.series, bars.start))
        bars = bars.take(order)
    first = _changes(bars.start, bars.series)
    final = np.append(first[1:], len(starts)) - 1
    open_, high, low, close = _prices(bars, first)
    return Bars(
        start=bars.start[first],
        last=bars.last[final],
        series=bars.series[first],
        source=bars.source[final],
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=np.add.reduceat(bars.volume, first),
        turnover=np.add.reduceat(bars.turnover, first),
        trades=np.add.reduceat(bars.trades, first),
        buy_volume=np.add.reduceat(bars.buy_volume, first),
        sell_volume=np.add.reduceat(bars.sell_volume, first),
        flags=np.bitwise_or.reduceat(bars.flags, first),
    )


def distinct(bars: Bars) -> Bars:
    """Return the first of the bars that begin together, by start and series."""
    order = np.lexsort((bars.series, bars.start))
    return bars.take(order[_changes(bars.start[order], bars.series[order])])


def _prices(bars: Bars, first: Integers) -> tuple[Floats, Floats, Floats, Floats]:
    """Return open, high, low and close of the groups that begin at ``first``."""
    valid = (bars.flags & Flag.VALID_TICK) != 0
    if not valid.all():
        all_of = np.diff(np.append(first, len(valid)))
        valid_of = np.add.reduceat(valid.astype(np.int64), first)
        valid |= np.repeat(valid_of == 0, all_of)
        bars = bars.take(valid)
        first = np.append(0, np.cumsum(np.where(valid_of == 0, all_of, valid_of))[:-1])
    final = np.append(first[1:], len(bars.open)) - 1
    high = np.maximum.reduceat(bars.high, first)
    low = np.minimum.reduceat(bars.low, first)
    return bars.open[first], high, low, bars.close[final]


def _changes(*columns: Integers) -> Integers:
    """Return the first row of every run of equal values, of at least one row."""
    new = np.zeros(len(columns[0]), bool)
    new[0] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def _is_constant(values: Integers) -> bool:
    return not len(values) or bool((values == values[0]).all())
