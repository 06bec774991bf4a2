"""Instants as people and programs write them."""

import re
from datetime import UTC, datetime
from typing import Final

from flight_server.errors import InvalidTicketError
from storage.ports import MICROSECONDS

RELATIVE: Final = re.compile(r"([+-])(\d{1,6})([smhd])")
INSTANT_MAX: Final = 253_402_300_799 * MICROSECONDS
"""The end of the year 9999, the last instant that ISO 8601 and Arrow's readers agree on."""

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_instant(value: str | int, *, now: int, field: str) -> int:
    """Return microseconds since 1970, UTC.

    Args:
        value: ISO 8601 with an offset or ``Z`` (a date alone is its midnight, UTC), microseconds
            since 1970, ``now``, how long ago (``-15m``; s, m, h, d), or in what time (``+15m``).
        now: Microseconds since 1970.
        field: What an error names.

    Raises:
        InvalidTicketError: The value is none of these.
    """
    if isinstance(value, int):
        return _bounded(value, field)
    text = value.strip()
    if text == "now":
        return now
    if relative := RELATIVE.fullmatch(text):
        amount, unit = int(f"{relative[1]}{relative[2]}"), relative[3]
        return _bounded(max(0, now + amount * _UNIT_SECONDS[unit] * MICROSECONDS), field)
    return _bounded(_parse_iso(text, field), field)


def _parse_iso(text: str, field: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        message = (
            f"{field} {text[:40]!r} is no instant: send ISO 8601 such as 2026-11-20T14:30:00Z, "
            "microseconds since 1970, now, or -15m"
        )
        raise InvalidTicketError(message, field=field) from error
    if moment.tzinfo is None:
        if len(text) > len("2026-11-20"):
            message = f"{field} {text!r} has no time zone: add Z for UTC, or an offset"
            raise InvalidTicketError(message, field=field)
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * MICROSECONDS + since.microseconds


def _bounded(instant: int, field: str) -> int:
    if not 0 <= instant <= INSTANT_MAX:
        message = f"{field} lies outside 1970 to 9999; integers are microseconds since 1970"
        raise InvalidTicketError(message, field=field)
    return instant
