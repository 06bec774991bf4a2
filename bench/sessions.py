"""Sessions of one future, to measure the lake with: no two are alike, so nothing compresses free.

Instants are those of a Poisson process, three quarters of it while New York trades. The price walks
at random on a grid of a quarter of a point. Each day is drawn from its own number: the same in
every run, whichever days are made.
"""

import datetime as dt
from enum import Enum
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.ports import MICROSECONDS
from storage.schemas import DICTIONARY, TICKS, Flag, Side

SYMBOL: Final = "MNQ"
SESSIONS: Final = 252
"""In a year."""
FIRST_DAY: Final = 20_090
"""2025-01-02, in days since 1970."""
SATURDAY: Final = 5

_MINUTE: Final = 60 * MICROSECONDS
_DAY: Final = 1_440 * _MINUTE
_SESSION: Final = 1_380 * _MINUTE
"""23 hours, within one UTC date."""
_REGULAR: Final = (810 * _MINUTE, 1_200 * _MINUTE)
"""When New York trades, from midnight."""
_REGULAR_SHARE: Final = 0.75
_TICK: Final = 0.25
_FIRST_PRICE: Final = 21_000.0
_STEPS: Final = (0.58, 0.38, 0.04)
"""How often the price moves by 0, 1 or 2 ticks."""
_WIDE_SHARE: Final = 0.15
"""How often the spread is two ticks."""
_SIZE_SHARE: Final = 0.55
"""Of trades of one contract; of the others, as many have two, and so on."""
_DELAY: Final = (1_000, 50_000)
"""From the venue to the source, µs."""
_SEQUENCE_BITS: Final = 32

Numbers = npt.NDArray[np.int64]


class Numbering(Enum):
    """Where the sequence of a tick comes from."""

    FILE = "file"
    """Its row in an imported file."""
    DXFEED = "dxFeed"
    """The index of dxFeed: seconds, milliseconds and a counter of the channel in one number."""


def session_days(count: int = SESSIONS) -> list[int]:
    """Return the first days of trading, counted from 1970."""
    days = (FIRST_DAY + n for n in range(2 * count + 7))
    return list(islice((day for day in days if _weekday(day) < SATURDAY), count))


def session(day: int, count: int, numbering: Numbering = Numbering.FILE) -> pa.Table:
    """Return the ticks of one session in total order, in the wire schema.

    Args:
        day: UTC date, days since 1970.
        count: How many ticks.
        numbering: What their sequences are like.
    """
    random = np.random.default_rng(day)
    offsets = _offsets(random, count)
    instants = day * _DAY + offsets
    price, side, spread = _prices(random, count)
    is_buy = side == Side.BUY
    regular = (offsets >= _REGULAR[0]) & (offsets < _REGULAR[1])
    flags = np.where(regular, Flag.VALID_TICK, Flag.VALID_TICK | Flag.EXTENDED_HOURS)
    received = np.maximum.accumulate(instants + random.integers(*_DELAY, count))
    columns = {
        "ts_event": instants,
        "ts_recv": received,
        "price": price,
        "size": random.geometric(_SIZE_SHARE, count).astype(np.float64),
        "bid": np.where(is_buy, price - spread, price),
        "ask": np.where(is_buy, price, price + spread),
        "side": side,
        "kind": np.zeros(count, np.int8),
        "flags": flags.astype(np.uint16),
        "sequence": _sequences(random, instants, numbering),
    }
    texts = {"symbol": SYMBOL, "contract": "/MNQZ26:XCME", "exchange": "G", "source": "bench"}
    arrays = []
    for field in TICKS.wire_schema:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name]).cast(field.type))
        elif field.name in texts:
            arrays.append(_repeated(texts[field.name], count))
        else:
            arrays.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(arrays, schema=TICKS.wire_schema)


def _weekday(day: int) -> int:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).weekday()


def _offsets(random: np.random.Generator, count: int) -> Numbers:
    """Return instants from midnight on, in order, the regular hours more crowded than the rest."""
    arrivals = np.cumsum(random.standard_exponential(count + 1))
    share = arrivals[:-1] / arrivals[-1]
    start, end = _REGULAR
    before = (1 - _REGULAR_SHARE) * start / (_SESSION - (end - start))
    shares, offsets = (0, before, before + _REGULAR_SHARE, 1), (0, start, end, _SESSION - 1)
    instants: Numbers = np.interp(share, shares, offsets).astype(np.int64)
    return instants


def _prices(
    random: np.random.Generator, count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return price, aggressor and spread of each trade."""
    drawn = random.random(count)
    moves = (drawn >= _STEPS[0]).astype(np.int64) + (drawn >= _STEPS[0] + _STEPS[1])
    side = (2 * random.integers(0, 2, count) - 1).astype(np.int8)
    ways = 2 * random.integers(0, 2, count) - 1
    price = _FIRST_PRICE + _TICK * np.cumsum(moves * ways)
    spread = np.where(random.random(count) < _WIDE_SHARE, 2 * _TICK, _TICK)
    return price, side, spread


def _sequences(random: np.random.Generator, instants: Numbers, numbering: Numbering) -> Numbers:
    if numbering is Numbering.FILE:
        return (1 << _SEQUENCE_BITS) + np.arange(len(instants), dtype=np.int64)
    # Whatever else the channel has told of in between counts as well.
    counter = np.cumsum(random.integers(1, 4, len(instants))) % (1 << 22)
    seconds, rest = np.divmod(instants, MICROSECONDS)
    return (seconds << _SEQUENCE_BITS) + (rest // 1_000 << 22) + counter


def _repeated(text: str, count: int) -> pa.DictionaryArray:
    codes = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(codes, pa.array([text])).cast(DICTIONARY)
