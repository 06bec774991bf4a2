"""Removing journal files whose time is over."""

from collections.abc import Callable
from typing import Final

from storage.journal_file import remove
from storage.ports import MICROSECONDS, Clock, Disk
from storage.segments import Segment, SegmentLine

KEPT: Final = 24 * 3_600 * MICROSECONDS
"""How long a file stays once the lake has its rows, µs: spot-checks compare the two."""
LOOK_SECONDS: Final = 30.0


class JournalExpiry:
    """Removes files, the oldest first, once nobody needs them any more.

    Args:
        segments: The files there are.
        limit_bytes: Bytes of finished files beyond which the oldest goes before its time.
        clock: Where time comes from.
        disk: Where the files lie.
    """

    def __init__(self, segments: SegmentLine, limit_bytes: int, clock: Clock, disk: Disk) -> None:
        self._segments = segments
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._disk = disk
        self._next = 0.0

    def remove_old(self, is_free: Callable[[Segment], bool]) -> None:
        """Remove what may go, now and then; ``is_free``: the lake has it all, and memory nothing.

        Raises:
            OSError: The disk refuses.
        """
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        sizes = [(segment, self._disk.size(segment.path)) for segment in self._segments]
        excess = sum(size for _, size in sizes) - self._limit_bytes
        for segment, size in sizes:
            old = segment.arrival + KEPT <= self._clock.now()
            if not (old or excess > 0) or not is_free(segment):
                return
            remove(segment.path, self._disk)
            self._segments.remove_oldest()
            excess -= size
