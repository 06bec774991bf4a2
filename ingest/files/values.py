"""Values of files as ours: every column becomes one exact type, or the row that can't is named."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ingest.errors import BadValueError
from storage.schemas import TIMESTAMP, Side

_DIGITS: Final = re.compile(r"[+-]?\d+")
_ZONE: Final = re.compile(r"(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$")


@dataclass(frozen=True, slots=True)
class _EpochUnit:
    """A unit of integer instants: the magnitudes that are in it, and its ratio to µs."""

    name: str
    least: int
    below: int
    multiply: int = 1
    divide: int = 1


_EPOCH_UNITS: Final = (
    _EpochUnit("seconds", 0, 10**11, multiply=1_000_000),
    _EpochUnit("milliseconds", 10**11, 10**14, multiply=1_000),
    _EpochUnit("microseconds", 10**14, 10**17),
    _EpochUnit("nanoseconds", 10**17, 2**63 - 1, divide=1_000),
)
"""From March 1973 on an integer is an instant in one unit only: 10¹¹ s would be the year 5138."""

_MISSING: Final = pa.array(["", "NA", "N/A", "null", "NULL", "None"])
_SIDES: Final = {
    "buy": Side.BUY,
    "b": Side.BUY,
    "1": Side.BUY,
    "+1": Side.BUY,
    "sell": Side.SELL,
    "s": Side.SELL,
    "-1": Side.SELL,
    "unknown": Side.UNKNOWN,
    "n": Side.UNKNOWN,
    "0": Side.UNKNOWN,
    "": Side.UNKNOWN,
}
_SIDE_WORDS: Final = pa.array(list(_SIDES))
_SIDE_VALUES: Final = pa.array([int(side) for side in _SIDES.values()], pa.int8())


def numbers(values: pa.Array) -> pa.Array:
    """Return any kind of number, or text of one, as float64; refuse one that would lose digits."""
    return _cast(_trimmed(values), pa.float64(), "a number")


def texts(values: pa.Array) -> pa.Array:
    """Return codes as dictionary-encoded text, exactly as they are."""
    return _cast(values, pa.string(), "text").dictionary_encode()


def sides(values: pa.Array) -> pa.Array:
    """Return aggressor sides as int8: ±1, B/S, buy/sell in any case; missing is unknown."""
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        values = _cast(values, pa.int8(), "a side: 1, -1 or 0")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(_cast(values, pa.string(), "text")))
    index = pc.index_in(words, _SIDE_WORDS)
    _refuse_where(
        pc.and_(pc.is_null(index), pc.is_valid(words)),
        values,
        "is no side; take 1, -1, 0, B, S, buy or sell",
    )
    return pc.fill_null(_SIDE_VALUES.take(index), int(Side.UNKNOWN))


class InstantColumn:
    """Reads one column of instants of one file as µs UTC, whatever it holds them as.

    Timestamps of any unit, ISO 8601 text, and integers (or digits) since 1970, whose unit follows
    from their magnitude: below 10¹¹ seconds, 10¹⁴ milliseconds, 10¹⁷ microseconds, above that
    nanoseconds. The first value settles the unit for the whole file.

    Args:
        timezone: Name of the zone that instants without one are in; None refuses them.
    """

    def __init__(self, timezone: str | None) -> None:
        self._timezone = timezone
        # The mutable state: what the first value was, and how much finer than ours the rest were.
        self._unit: _EpochUnit | None = None
        self.truncated_rows = 0

    def read(self, values: pa.Array) -> pa.Array:
        """Return ``values`` as ``timestamp[us, UTC]``.

        Raises:
            BadValueError: One of them is no instant, or has no zone, or another unit.
        """
        kind = values.type
        if pa.types.is_timestamp(kind):
            return self._from_timestamps(values)
        if pa.types.is_integer(kind):
            return self._from_integers(_cast(values, pa.int64(), "a 64-bit integer"))
        return self._from_texts(_cast(_trimmed(values), pa.string(), "an instant"))

    def _from_timestamps(self, values: pa.Array) -> pa.Array:
        if values.type.tz is None:
            values = self._localised(values)
        if values.type.unit != "ns":
            return _cast(values, TIMESTAMP, "an instant that fits 64-bit microseconds")
        return self._scaled(values.cast(pa.int64()), _EPOCH_UNITS[-1])

    def _localised(self, values: pa.Array) -> pa.Array:
        timezone = self._timezone
        if timezone is None:
            raise BadValueError(
                0,
                f"{_first(values)} has no time zone; say which one it is in, such as "
                "--tz America/New_York (or UTC)",
            )
        return _each(
            values,
            lambda some: pc.assume_timezone(some, timezone),
            f"is not one instant in {timezone}: clocks were set then; convert the file to UTC",
        )

    def _from_texts(self, values: pa.Array) -> pa.Array:
        first = _first(values)
        if first is None:
            return pa.nulls(len(values), TIMESTAMP)
        if _DIGITS.fullmatch(first):
            return self._from_integers(_cast(values, pa.int64(), "an integer like those before"))
        if _ZONE.search(first.partition(":")[2]):
            return self._from_timestamps(
                _cast(values, pa.timestamp("ns", "UTC"), "an ISO 8601 instant with a zone")
            )
        naive = _cast(values, pa.timestamp("ns"), "an ISO 8601 instant without a zone")
        return self._from_timestamps(naive)

    def _from_integers(self, values: pa.Array) -> pa.Array:
        if self._unit is None:
            first = _first(values)
            if first is None:
                return pa.nulls(len(values), TIMESTAMP)
            self._unit = next((u for u in _EPOCH_UNITS if abs(first) < u.below), _EPOCH_UNITS[-1])
        size = pc.abs(values)
        strange = pc.or_(pc.less(size, self._unit.least), pc.greater_equal(size, self._unit.below))
        _refuse_where(
            strange,
            values,
            f"is not in {self._unit.name} since 1970 as the file's first instant is;"
            " a file has one unit",
        )
        return self._scaled(values, self._unit)

    def _scaled(self, values: pa.Array, unit: _EpochUnit) -> pa.Array:
        if unit.divide == 1:
            return pc.multiply_checked(values, unit.multiply).view(TIMESTAMP)
        micros = pc.divide(values, unit.divide)
        finer = pc.not_equal(pc.multiply(micros, unit.divide), values)
        self.truncated_rows += pc.sum(finer).as_py() or 0
        return micros.view(TIMESTAMP)


def _trimmed(values: pa.Array) -> pa.Array:
    """Text without blanks around it, and None where it says that there is nothing."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return values
    text = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.is_in(text, _MISSING), pa.scalar(None, text.type), text)


def _first(values: pa.Array) -> Any:  # noqa: ANN401 - a value of any type
    valid = values.drop_null()
    return valid[0].as_py() if len(valid) else None


def _cast(values: pa.Array, target: pa.DataType, what: str) -> pa.Array:
    return _each(values, lambda some: pc.cast(some, target), f"is not {what}")


def _each(values: pa.Array, convert: Callable[[pa.Array], pa.Array], complaint: str) -> pa.Array:
    """Convert all values, or name the first that can't be."""
    try:
        return convert(values)
    except pa.ArrowException:
        row = _first_failure(values, convert)
        raise BadValueError(row, f"{values[row].as_py()!r} {complaint}") from None


def _first_failure(values: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> int:
    """Number of the first value that can't be converted, by halving."""
    start, end = 0, len(values)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            convert(values[start:middle])
        except pa.ArrowException:
            end = middle
        else:
            start = middle
    return start


def _refuse_where(bad: pa.Array, values: pa.Array, complaint: str) -> None:
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise BadValueError(row, f"{values[row].as_py()!r} {complaint}")
