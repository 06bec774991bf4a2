"""What the feed sent, on its way from the socket to the rows: a bounded queue of whole frames."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

HELD_VALUES_MAX: Final = 4_000_000
"""Values held while rows can't be written, about 200,000 trades or 200 MB: two minutes of a wild
open. Beyond it the socket is not read, so the feed waits, or hangs up; both are seen."""


SIGN_OF_LIFE: Final = ""
"""The kind of a frame without events: the feed is there and has nothing to say."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Events of one kind, as they came.

    Attributes:
        kind: Such as ``TimeAndSale``, or ``SIGN_OF_LIFE``.
        fields: Names of the values of one event.
        values: One event after the other.
        received: When they came, µs since 1970.
    """

    kind: str
    fields: tuple[str, ...]
    values: Sequence[Any]
    received: int


class Intake:
    """Frames that came and are not written yet, from all connections, in the order they came."""

    def __init__(self, held_values_max: int = HELD_VALUES_MAX) -> None:
        self._held_max = held_values_max
        self._frames: list[Frame] = []
        self._held = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self.newest = 0
        """When the last event was received, µs since 1970; signs of life are none."""

    async def put(self, frame: Frame) -> None:
        """Take a frame; waits while too much is held."""
        while self._held > self._held_max:
            self._room.clear()
            await self._room.wait()
        self._frames.append(frame)
        self._held += len(frame.values)
        if frame.values:
            self.newest = frame.received
        self._filled.set()

    async def take(self) -> list[Frame]:
        """Return all that is held, at least one frame; none once the intake has ended."""
        while not self._frames and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        frames, self._frames, self._held = self._frames, [], 0
        self._room.set()
        return frames

    def end(self) -> None:
        """Say that no more come."""
        self._ended = True
        self._filled.set()
