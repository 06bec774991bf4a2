"""When to open a new connection although the old one works: in the daily break of the futures.

A connection's token lives a day, and what becomes of a connection that outlives it nobody says.
"""

from datetime import UTC, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

EXCHANGE_ZONE: Final = ZoneInfo("America/New_York")
BREAK_BEGINS: Final = time(17, 5)
"""Futures rest from 17:00 to 18:00; a few minutes for what comes late."""
BREAK_SECONDS: Final = 45 * 60
"""Connections spread over this long, so that not everybody comes at once."""


def seconds_to_rotation(now: int, jitter: float) -> float:
    """Return how long it is from ``now`` (µs since 1970) to the moment in the next break.

    Args:
        now: A moment within a break belongs to that break no more.
        jitter: Uniform in [0, 1).
    """
    local = datetime.fromtimestamp(now / 1_000_000, UTC).astimezone(EXCHANGE_ZONE)
    begins = datetime.combine(local.date(), BREAK_BEGINS, EXCHANGE_ZONE)
    if local >= begins:
        begins = datetime.combine(local.date() + timedelta(days=1), BREAK_BEGINS, EXCHANGE_ZONE)
    # Through UTC: wall times of one zone subtract without its clock changes.
    return (begins.astimezone(UTC) - local.astimezone(UTC)).total_seconds() + jitter * BREAK_SECONDS
