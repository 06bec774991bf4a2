"""Merging sorted rows into one total order, a block at a time."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from storage.lanes import SortedRows
from storage.runs import Integers

BLOCK_ROWS_TARGET: Final = 1 << 16
"""Rows merged at a time: the size that the wire carries best, and a few MB of scratch memory."""


@dataclass(slots=True)
class Cursor:
    """What is left to merge of some sorted rows."""

    rows: SortedRows
    at: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.at


def between(
    rows: SortedRows, count: int, instant: Callable[[int], int], start: int, end: int
) -> Cursor:
    """Return a cursor over the rows with ``start <= ts_event < end``."""
    found = Cursor(rows, 0, count)
    instant_at = _instant_at(found, instant)
    found.stop = bisect_left(range(count), end, key=instant_at)
    found.at = bisect_left(range(found.stop), start, key=instant_at)
    return found


def merged(
    cursors: Sequence[Cursor],
    instant: Callable[[int], int],
    instants: Callable[[Integers], Integers],
) -> Iterator[Integers]:
    """Yield positions in total order, a block at a time.

    Rows of equal ``ts_event`` come in the order of ``cursors``, so cursors are given in the order
    of what follows ``ts_event`` in the total order; each is sorted in itself.
    """
    left = [cursor for cursor in cursors if len(cursor)]
    while len(left) > 1:
        yield _next_block(left, instant, instants)
        left = [cursor for cursor in left if len(cursor)]
    for cursor in left:
        while len(cursor):
            stop = min(cursor.at + BLOCK_ROWS_TARGET, cursor.stop)
            yield cursor.rows.slice(cursor.at, stop)
            cursor.at = stop


def _next_block(
    cursors: Sequence[Cursor],
    instant: Callable[[int], int],
    instants: Callable[[Integers], Integers],
) -> Integers:
    """Take from every cursor what lies at or before one instant, chosen to make a block."""
    share = max(1, BLOCK_ROWS_TARGET // len(cursors))
    until = min(instant(c.rows[min(c.at + share, c.stop) - 1]) for c in cursors)
    parts = []
    for cursor in cursors:
        stop = bisect_right(range(cursor.stop), until, cursor.at, key=_instant_at(cursor, instant))
        parts.append(cursor.rows.slice(cursor.at, stop))
        cursor.at = stop
    positions = np.concatenate(parts)
    return positions[np.argsort(instants(positions), kind="stable")]


def _instant_at(cursor: Cursor, instant: Callable[[int], int]) -> Callable[[int], int]:
    rows = cursor.rows
    return lambda index: instant(rows[index])
