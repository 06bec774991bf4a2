"""Between Arrow's batches and the columns that bars are computed on, both ways."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from storage.bar_sessions import Grid
from storage.bars import SHOWN, Bars, Ticks
from storage.dictionary import Codes
from storage.runs import Integers
from storage.schemas import BARS, DICTIONARY, Flag
from storage.selection import ALL_SOURCES
from storage.validation import Column, fixed_width_values, storage_type

TICK_COLUMNS: Final = (
    "ts_event",
    "symbol",
    "source",
    "contract",
    "sequence",
    "kind",
    "price",
    "size",
    "side",
    "flags",
)
"""What bars are made of, in the order of ``Ticks`` with names instead of numbers."""

_NUMBERS: Final = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "trades",
    "buy_volume",
    "sell_volume",
    "flags",
)
BAR_COLUMNS: Final = ("ts_event", "symbol", "source", *_NUMBERS)
"""What longer bars are made of."""
_NAME_BITS: Final = 21
"""Three names are packed into one int64: two million of them are more than a lake holds."""
_NAME_MASK: Final = (1 << _NAME_BITS) - 1
_FLAGS: Final = np.uint16(SHOWN)
_VALID: Final = np.uint16(Flag.VALID_TICK)


class BarCodec:
    """Numbers the names of one answer as it meets them.

    Args:
        source: As in ``Selection``: with ``"all"``, every source of a symbol gets bars of its own.
    """

    def __init__(self, source: str | None) -> None:
        self._apart = source == ALL_SOURCES
        self._codes: dict[str, int] = {}
        self._names: list[str] = []

    def ticks(self, batch: pa.RecordBatch) -> Ticks:
        """Read ticks that come with ``TICK_COLUMNS`` of the wire schema."""
        instants, symbols, sources, contracts, *values = batch.columns
        symbol, source, contract = (self._encode(one) for one in (symbols, sources, contracts))
        feed = symbol | source << _NAME_BITS | contract << 2 * _NAME_BITS
        columns = (_values(one) for one in values)
        return Ticks(_values(instants), self._series(symbol, source), source, feed, *columns)

    def bars(self, batch: pa.RecordBatch) -> Bars:
        """Read bars that come with ``BAR_COLUMNS`` of the wire schema."""
        columns = {name: batch.column(name) for name in batch.schema.names}
        symbol, source = self._encode(columns["symbol"]), self._encode(columns["source"])
        numbers = {name: _values(columns[name]) for name in ("ts_event", *_NUMBERS)}
        start = numbers.pop("ts_event")
        flags = numbers.pop("flags") & _FLAGS
        turnover = numbers.pop("vwap") * numbers["volume"]
        series = self._series(symbol, source)
        return Bars(start, start, series, source, turnover=turnover, flags=flags, **numbers)

    def candles(self, batch: pa.RecordBatch) -> Bars:
        """Read bars that somebody has told; their prices count, whatever made them."""
        told = self.bars(batch)
        return told._replace(flags=told.flags | _VALID)

    def batch(self, bars: Bars, grid: Grid) -> pa.RecordBatch:
        """Return bars in the wire schema, by time, symbol and source."""
        if not (bars.start[1:] > bars.start[:-1]).all():
            bars = bars.take(self._order(bars))
        columns = {
            "ts_event": bars.start,
            "ts_recv": grid.ends(bars.start, bars.last),
            "symbol": bars.series & _NAME_MASK,
            "source": bars.source,
            "vwap": bars.vwap,
            **{name: getattr(bars, name) for name in _NUMBERS if name != "vwap"},
        }
        arrays = []
        for field in BARS.wire_schema:
            if field.name == "interval":
                interval = np.zeros(len(bars.start), np.int32)
                arrays.append(_dictionary(interval, [grid.interval.text]))
            elif field.name in BARS.dictionary:
                arrays.append(_dictionary(*self._decode(columns[field.name])))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=BARS.wire_schema)

    def _order(self, bars: Bars) -> Integers:
        symbol, _ = self._decode(bars.series & _NAME_MASK)
        source, _ = self._decode(bars.source)
        return np.lexsort((source, symbol, bars.start))

    def _series(self, symbol: Integers, source: Integers) -> Integers:
        return symbol | source << _NAME_BITS if self._apart else symbol

    def _encode(self, column: pa.DictionaryArray) -> Integers:
        at = _values(column.indices)
        codes = np.zeros(len(column.dictionary), np.int64)
        for used in np.flatnonzero(np.bincount(at, minlength=len(codes))).tolist():
            codes[used] = self._code(column.dictionary[used].as_py())
        return codes[at]

    def _code(self, name: str) -> int:
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        return code

    def _decode(self, codes: Integers) -> tuple[Codes, Sequence[str]]:
        """Return for every code the rank of its name, and the names in use, sorted."""
        used = np.flatnonzero(np.bincount(codes)).tolist()
        used.sort(key=self._names.__getitem__)
        ranks = np.zeros(len(self._names), np.int32)
        ranks[used] = np.arange(len(used))
        return ranks[codes], [self._names[code] for code in used]


def _values(array: pa.Array) -> Column:
    return fixed_width_values(array, np.dtype(storage_type(array.type)))


def _dictionary(codes: Codes, names: Sequence[str]) -> pa.DictionaryArray:
    values = pa.array(names, DICTIONARY.value_type)
    return pa.DictionaryArray.from_arrays(pa.array(codes, DICTIONARY.index_type), values)
