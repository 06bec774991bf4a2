"""What callers say about symbols, instants and columns, as the server wants to read it."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from tickflight.errors import InvalidRequestError

Instant = str | datetime | int
"""A point in time: ISO 8601, ``"now"``, ``"-15m"`` (s, m, h, d), an aware datetime, or epoch µs."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Order(StrEnum):
    """How rows of several symbols are ordered."""

    TIME = "time"
    """By time across all symbols."""
    SYMBOL = "symbol"
    """One symbol after the other, each by time."""


class Compression(StrEnum):
    """How batches are packed on the wire: worth it on slow links, a loss on fast ones."""

    LZ4 = "lz4"
    ZSTD = "zstd"


class Session(StrEnum):
    """What the bars of a day are aligned to."""

    UTC = "utc"
    """Midnight, UTC."""
    CME = "cme"
    """Trade dates of CME: from 17:00 of the evening before to 16:00, Chicago's time."""


def symbol_list(symbols: str | Iterable[str]) -> list[str]:
    """One symbol or several, as a list."""
    names = [symbols] if isinstance(symbols, str) else list(symbols)
    if not all(names):
        raise InvalidRequestError("every symbol must be a non-empty text", field="symbols")
    return names


def column_list(columns: Iterable[str] | None) -> list[str] | None:
    """The columns asked for, None for all."""
    if columns is None:
        return None
    return [columns] if isinstance(columns, str) else list(columns)


def instant(value: Instant, field: str) -> str | int:
    """An instant as tickets carry it: text goes as it is, datetimes become epoch µs.

    Raises:
        InvalidRequestError: a datetime without a zone, which is another instant in every zone.
    """
    if isinstance(value, datetime):
        return microseconds(value, field)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRequestError(
            f"{field} must be a text, an aware datetime or epoch microseconds", field=field
        )
    return value


def microseconds(value: datetime, field: str) -> int:
    """Microseconds since 1970, UTC, of an aware datetime."""
    if value.tzinfo is None:
        raise InvalidRequestError(
            f"{field} has no time zone: use datetime(…, tzinfo=UTC) or .astimezone()",
            field=field,
        )
    return (value - EPOCH) // _MICROSECOND


def ticket(op: str, **fields: object) -> dict[str, object]:
    """A ticket of the fields that were given."""
    return {"op": op} | {name: value for name, value in fields.items() if value is not None}
