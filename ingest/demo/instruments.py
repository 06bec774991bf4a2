"""What the synthetic market trades: grids, price levels, venues and the front futures contract."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Final

from ingest.demo import noise

_QUARTER_CODES: Final = {3: "H", 6: "M", 9: "U", 12: "Z"}
_FRIDAY: Final = 4
_ROLL_BEFORE_EXPIRY: Final = timedelta(days=4)
"""Volume moves to the next quarter on the Monday before the third Friday."""


class InstrumentClass(Enum):
    """Decides sizes, sale conditions and whether the contract carries a month."""

    FUTURE = "future"
    STOCK = "stock"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One symbol of the synthetic market.

    Attributes:
        symbol: What people ask for.
        instrument_class: Future, stock or index.
        ticks_per_point: Price grid, as steps in one point (4 means 0.25).
        level: Price the instrument swings around.
        factor: What it shares its own moves with: NQ and MNQ follow one index.
        beta: Response to the whole market's move.
        own: Response to its factor's move.
        weight: Share of the ticks, relative to the other symbols.
        venues: Exchange codes, one drawn for each trade.
    """

    symbol: str
    instrument_class: InstrumentClass
    ticks_per_point: int
    level: float
    factor: str
    beta: float
    own: float
    weight: float
    venues: tuple[str, ...]


_TAPE: Final = ("D", "K", "N", "P", "Q", "V", "Z")
_CME: Final = ("XCME",)
_FUTURE: Final = InstrumentClass.FUTURE
_STOCK: Final = InstrumentClass.STOCK

_KNOWN: Final = {
    known.symbol: known
    for known in (
        Instrument("MES", _FUTURE, 4, 6_400.0, "SPX", 1.0, 0.15, 22.0, _CME),
        Instrument("MNQ", _FUTURE, 4, 23_000.0, "NDX", 1.15, 0.30, 30.0, _CME),
        Instrument("NQ", _FUTURE, 4, 23_000.0, "NDX", 1.15, 0.30, 12.0, _CME),
        Instrument("SPY", _STOCK, 100, 638.0, "SPX", 1.0, 0.15, 20.0, _TAPE),
        Instrument("QQQ", _STOCK, 100, 560.0, "NDX", 1.15, 0.30, 14.0, _TAPE),
        Instrument("VIX", InstrumentClass.INDEX, 100, 18.0, "VIX", -1.6, 0.30, 2.0, ("XCBO",)),
    )
}

_DEFAULT_LEVEL_MIN: Final = 20
_DEFAULT_LEVEL_SPAN: Final = 280


def instrument(symbol: str) -> Instrument:
    """Return the instrument behind ``symbol``; an unknown one is a stock at a price of its own."""
    known = _KNOWN.get(symbol)
    if known is not None:
        return known
    level = _DEFAULT_LEVEL_MIN + noise.key(0, "level", symbol) % _DEFAULT_LEVEL_SPAN
    return Instrument(symbol, _STOCK, 100, float(level), symbol, 1.0, 0.8, 5.0, _TAPE)


def contract(instrument: Instrument, day: date) -> str:
    """Return what trades under the symbol on ``day``, such as ``/MNQZ26:XCME``."""
    if instrument.instrument_class is not InstrumentClass.FUTURE:
        return instrument.symbol
    expiry = _expiry(day)
    return f"/{instrument.symbol}{_QUARTER_CODES[expiry.month]}{expiry:%y}:{instrument.venues[0]}"


def next_roll(day: date) -> date:
    """Return the first day after ``day`` on which another quarterly month is the front one."""
    return _expiry(day) - _ROLL_BEFORE_EXPIRY


def day_of(instant: int) -> date:
    """Return the UTC date of an instant in microseconds since 1970."""
    return datetime.fromtimestamp(instant // 1_000_000, UTC).date()


def midnight(day: date) -> int:
    """Return the first instant of a UTC date, in microseconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _expiry(day: date) -> date:
    """Third Friday of the quarterly month that is in front on ``day``."""
    year, month = day.year, -(-day.month // 3) * 3
    expiry = _third_friday(year, month)
    if day < expiry - _ROLL_BEFORE_EXPIRY:
        return expiry
    return _third_friday(year + month // 12, month % 12 + 3)


def _third_friday(year: int, month: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(_FRIDAY - first.weekday()) % 7 + 14)
