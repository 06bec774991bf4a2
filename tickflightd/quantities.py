"""Quantities as people write them in a settings file: ``1h``, ``2GiB``, ``30%``, ``MES,MNQ``."""

import re
from typing import Final

from storage.ports import MICROSECONDS

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B|%)?", re.ASCII | re.IGNORECASE)
_BYTES: Final = {
    "b": 1,
    **{f"{letter}b": 1_000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1_024**power for power, letter in enumerate("kmgt", start=1)},
}


def parse_duration(text: str) -> int:
    """Return the microseconds of ``90s``, ``15m``, ``1h`` or ``366d``.

    Raises:
        ValueError: The text is no duration, or it is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    microseconds = 0
    if match is not None:
        microseconds = round(float(match[1]) * _SECONDS[match[2]] * MICROSECONDS)
    if microseconds == 0:
        raise ValueError("write a duration such as 90s, 15m, 1h or 366d")
    return microseconds


def parse_bytes(text: str, *, whole: int) -> int:
    """Return the bytes of ``1500000``, ``512MiB``, ``2GB`` or ``30%`` (of ``whole``).

    Raises:
        ValueError: The text is no size, it is zero, or it is more than the whole.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        unit = (match[2] or "B").lower()
        size = round(float(match[1]) * (whole / 100 if unit == "%" else _BYTES[unit]))
    if size == 0:
        raise ValueError("write a size such as 512MiB, 2GiB or 30%")
    if size > whole:
        raise ValueError(f"that is more than there is ({whole} bytes)")
    return size


def parse_list(text: str) -> tuple[str, ...]:
    """Return the comma-separated words of ``text``, in order, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
