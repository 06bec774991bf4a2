"""The synthetic market: ticks and quotes as a pure function of (seed, symbol, time).

Time is cut into slots, as many a second as the symbol has ticks, and each slot holds one tick at a
hashed moment inside it. Everything else about the tick is hashed from that moment alone, so two
runs, at whatever rate, that meet in one moment say the same thing about it; ``sequence`` is the
moment itself. No state is kept: a restart continues the market it left.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.demo import noise
from ingest.demo.instruments import (
    Instrument,
    InstrumentClass,
    contract,
    day_of,
    instrument,
    midnight,
    next_roll,
)
from ingest.demo.prices import PriceField
from ingest.errors import ConfigurationError
from storage.schemas import DICTIONARY, QUOTES, SYMBOL_PATTERN, TICKS, TIMESTAMP, Flag, Side

SOURCE: Final = "demo"
RATE_MIN: Final = 20
"""Ticks a second every symbol has at least, so that a page that shows any of them moves."""
RATE_MAX: Final = 1_000_000
"""Ticks a second of one symbol at most: a slot is then one microsecond, our resolution."""
QUOTE_RATE_MAX: Final = 200
"""Quotes a second a symbol at most: the top of book of a liquid future changes about that often,
and the rate asked for is one of ticks."""

_SECOND_US: Final = 1_000_000
_SPREAD_BUCKET_US: Final = 500_000  # the spread keeps its width this long
_WIDE_SPREAD_PARTS: Final = 26  # of 256: a tenth of the time it is two steps
_INSIDE_PARTS: Final = 64  # of 256: a quarter of the trades in a wide market meet in its middle
_FUTURE_MEAN_LOTS: Final = 1.4
_STOCK_MEAN_LOTS: Final = 0.8
_STOCK_LOT: Final = 100
_REGULAR, _ODD_LOT = 0, 1
_CONDITIONS: Final = pa.array(["@", "I"])  # sale conditions of the consolidated tape
_FLAGS: Final = int(Flag.VALID_TICK | Flag.SYNTHETIC)


def split_rate(rate: int, weights: Sequence[float]) -> list[int]:
    """Divide ``rate`` ticks a second by weight, no share below ``RATE_MIN``.

    The shares add up to ``rate``, or to the minimum of all where that is more.
    """
    spare = max(0, rate - RATE_MIN * len(weights))
    total = sum(weights)
    # Rounding the running sum instead of each share keeps the total exact.
    marks = [round(spare * part / total) for part in accumulate(weights, initial=0.0)]
    return [RATE_MIN + after - before for before, after in pairwise(marks)]


class Market:
    """Ticks and quotes of some symbols for any window of time.

    Args:
        symbols: What trades; symbols without an entry of their own get a stock's habits.
        rate: Ticks a second over all symbols; each has at least ``RATE_MIN``.
        seed: Another seed is another market.

    Raises:
        ConfigurationError: No or malformed symbols, or a rate out of range.
    """

    def __init__(self, symbols: Sequence[str], *, rate: int, seed: int = 0) -> None:
        _check(symbols, rate)
        self._instruments = [instrument(symbol) for symbol in dict.fromkeys(symbols)]
        weights = [item.weight for item in self._instruments]
        self.rates: Final[Mapping[str, int]] = dict(
            zip(self.symbols, split_rate(rate, weights), strict=True)
        )
        self._tick_rates = np.array(list(self.rates.values()))
        self._quote_rates = np.minimum(self._tick_rates, QUOTE_RATE_MAX)
        self._prices = PriceField(seed, self._instruments)
        self._keys = {
            purpose: np.array(
                [noise.key(seed, purpose, symbol) for symbol in self.symbols], np.uint64
            )
            for purpose in ("tick slot", "quote slot", "tick", "quote", "spread")
        }
        self._grid = np.array([item.ticks_per_point for item in self._instruments])
        self._is_stock = np.array(
            [item.instrument_class is InstrumentClass.STOCK for item in self._instruments]
        )
        self._is_index = np.array(
            [item.instrument_class is InstrumentClass.INDEX for item in self._instruments]
        )
        self._venues, self._venue_start, self._venue_count = _venues(self._instruments)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols, each once, in the order given."""
        return tuple(item.symbol for item in self._instruments)

    def ticks(self, start: int, end: int, *, received: int) -> pa.RecordBatch:
        """Return the ticks with ``start`` ≤ ``ts_event`` < ``end``, in the order of their time.

        Args:
            start: Microseconds since 1970.
            end: Microseconds since 1970.
            received: What ``ts_recv`` says, microseconds since 1970.
        """
        rows, instants = self._moments("tick slot", self._tick_rates, start, end)
        random_bits = noise.bits(self._keys["tick"][rows], instants)
        bid, ask = self._book(rows, instants)
        side, price = _trade(bid, ask, random_bits)
        size, condition = self._sizes(rows, random_bits)
        venue = self._venue_start[rows] + noise.field(random_bits, 16, 8) % self._venue_count[rows]
        grid = self._grid[rows]
        columns = {
            **self._shared(rows, instants, received),
            "price": pa.array(price / grid),
            "size": pa.array(size),
            "bid": pa.array(bid / grid),
            "ask": pa.array(ask / grid),
            "side": pa.array(side),
            "kind": pa.array(np.zeros(len(rows), np.int8)),
            "exchange": pa.DictionaryArray.from_arrays(pa.array(venue, pa.int32()), self._venues),
            "condition": pa.DictionaryArray.from_arrays(
                pa.array(condition, pa.int32(), mask=~self._is_stock[rows]), _CONDITIONS
            ),
        }
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in TICKS.schema.names], schema=TICKS.wire_schema
        )

    def quotes(self, start: int, end: int, *, received: int) -> pa.RecordBatch:
        """Return the quotes of a window; see ``ticks``."""
        rows, instants = self._moments("quote slot", self._quote_rates, start, end)
        random_bits = noise.bits(self._keys["quote"][rows], instants)
        bid, ask = self._book(rows, instants)
        lot = np.where(self._is_stock[rows], _STOCK_LOT, 1)
        grid = self._grid[rows]
        columns = {
            **self._shared(rows, instants, received),
            "bid": pa.array(bid / grid),
            "bid_size": pa.array((lot * (1 + noise.field(random_bits, 0, 5))).astype(np.float64)),
            "ask": pa.array(ask / grid),
            "ask_size": pa.array((lot * (1 + noise.field(random_bits, 5, 5))).astype(np.float64)),
        }
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in QUOTES.schema.names], schema=QUOTES.wire_schema
        )

    def _moments(
        self, purpose: str, rates: NDArray[np.int64], start: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which instrument has something at which instant of the window, in order of time."""
        if end <= start:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        first = _slot_of(start, rates)
        counts = _slot_of(end - 1, rates) - first + 1
        rows = np.repeat(np.arange(len(rates)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        slots = first[rows] + offsets
        begin = _slot_start(slots, rates[rows])
        width = _slot_start(slots + 1, rates[rows]) - begin
        jitter = noise.unit(noise.bits(self._keys[purpose][rows], slots))
        instants = begin + (width * jitter).astype(np.int64)
        inside = np.flatnonzero((instants >= start) & (instants < end))
        order = inside[np.argsort(instants[inside], kind="stable")]
        return rows[order], instants[order]

    def _book(
        self, rows: NDArray[np.int64], instants: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bid and ask, in steps of each instrument's grid."""
        bid = np.floor(self._prices.at(rows, instants) * self._grid[rows]).astype(np.int64)
        mood = noise.bits(self._keys["spread"][rows], instants // _SPREAD_BUCKET_US)
        return bid, bid + 1 + (noise.field(mood, 0, 8) < _WIDE_SPREAD_PARTS)

    def _sizes(
        self, rows: NDArray[np.int64], random_bits: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Size and index of the sale condition: futures in lots, stocks half in odd lots."""
        stock = self._is_stock[rows]
        mean = np.where(stock, _STOCK_MEAN_LOTS, _FUTURE_MEAN_LOTS)
        depth = -np.log1p(-(noise.field(random_bits, 32, 32) * 2.0**-32))
        lots = 1 + np.floor(depth * mean) * ~self._is_index[rows]
        odd = stock & (noise.field(random_bits, 24, 1) == 1)
        odd_size = 1 + noise.field(random_bits, 25, 7) % (_STOCK_LOT - 1)
        size = np.where(odd, odd_size, lots * np.where(stock, _STOCK_LOT, 1))
        return size.astype(np.float64), np.where(odd, _ODD_LOT, _REGULAR)

    def _shared(
        self, rows: NDArray[np.int64], instants: NDArray[np.int64], received: int
    ) -> dict[str, pa.Array]:
        """The columns that ticks and quotes have in common."""
        count = len(rows)
        symbol = pa.array(rows, pa.int32())
        return {
            "ts_event": pa.array(instants).view(TIMESTAMP),
            "ts_recv": pa.array(np.full(count, received)).view(TIMESTAMP),
            "symbol": pa.DictionaryArray.from_arrays(symbol, pa.array(self.symbols)),
            "contract": self._contracts(rows, instants),
            "flags": pa.array(np.full(count, _FLAGS, np.uint16)),
            "sequence": pa.array(instants),
            "source": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(count, np.int32)), pa.array([SOURCE])
            ),
        }

    def _contracts(self, rows: NDArray[np.int64], instants: NDArray[np.int64]) -> pa.Array:
        if not len(rows):
            return pa.array([], DICTIONARY)
        day, last = day_of(int(instants[0])), day_of(int(instants[-1]))
        fronts = [contract(item, day) for item in self._instruments]
        months = np.zeros(len(rows), np.int64)
        while (day := next_roll(day)) <= last:
            fronts += [contract(item, day) for item in self._instruments]
            months += instants >= midnight(day)
        # Symbols without months keep their name over a roll, and a dictionary names a value once.
        names = list(dict.fromkeys(fronts))
        index = np.array([names.index(name) for name in fronts], np.int32)
        return pa.DictionaryArray.from_arrays(
            pa.array(index[rows + months * len(self._instruments)]), pa.array(names)
        )


def _check(symbols: Sequence[str], rate: int) -> None:
    if not symbols:
        raise ConfigurationError("the demo has no symbols; name at least one")
    for symbol in symbols:
        if not SYMBOL_PATTERN.fullmatch(symbol):
            raise ConfigurationError(
                f"{symbol!r} is no symbol: 1 to 32 of A-Z 0-9 . _ -, a letter or digit first"
            )
    if not 1 <= rate <= RATE_MAX:
        raise ConfigurationError(f"the demo's rate is {rate} ticks/s; take 1 to {RATE_MAX}")


def _venues(
    instruments: Sequence[Instrument],
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """All venues in one dictionary, and where each instrument's begin and how many they are."""
    groups = list(dict.fromkeys(item.venues for item in instruments))
    starts = dict(zip(groups, accumulate((len(g) for g in groups), initial=0), strict=False))
    return (
        pa.array([venue for group in groups for venue in group]),
        np.array([starts[item.venues] for item in instruments]),
        np.array([len(item.venues) for item in instruments]),
    )


def _slot_of(instant: int, rates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number, since 1970, of the slot that holds ``instant``."""
    second, rest = divmod(instant, _SECOND_US)
    return second * rates + rest * rates // _SECOND_US


def _slot_start(slots: NDArray[np.int64], rates: NDArray[np.int64]) -> NDArray[np.int64]:
    """First instant of each slot; rounded up, which makes it the inverse of ``_slot_of``.

    Seconds and their parts are apart because a slot's number times a million would not fit 64 bits.
    """
    second, part = np.divmod(slots, rates)
    return second * _SECOND_US - (-part * _SECOND_US // rates)


def _trade(
    bid: NDArray[np.int64], ask: NDArray[np.int64], random_bits: NDArray[np.uint64]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Aggressor and price: a buyer pays the ask, a seller takes the bid, a middle is neither's."""
    buys = noise.field(random_bits, 0, 1) == 1
    inside = (ask - bid > 1) & (noise.field(random_bits, 8, 8) < _INSIDE_PARTS)
    side = np.where(inside, int(Side.UNKNOWN), np.where(buys, int(Side.BUY), int(Side.SELL)))
    return side.astype(np.int8), np.where(inside, bid + 1, np.where(buys, ask, bid))
