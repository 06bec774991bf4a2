"""Rows on their way to bars, a block at a time: what begins together comes together."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import pyarrow as pa

from storage.bar_columns import BarCodec
from storage.bar_sessions import MINUTE
from storage.bars import Bars, Ticks, bars_of, condensed, joined, settled
from storage.runs import Integers

_Columns = TypeVar("_Columns", Ticks, Bars)


def short_bars(batches: Iterable[pa.RecordBatch], codec: BarCodec, step: int) -> Iterator[Bars]:
    """Yield the bars of ticks, of a minute or less, whole minutes at a time.

    Args:
        batches: Ticks of whole minutes in total order, with ``TICK_COLUMNS``.
        codec: Knows their names.
        step: Length of a bar, µs; divides a minute.
    """
    for part in whole(map(codec.ticks, batches), minutes_of):
        ticks = settled(part)
        if len(ticks.ts_event):
            yield condensed(bars_of(ticks), ticks.ts_event // step * step)


def whole(parts: Iterable[_Columns], starts: Callable[[Integers], Integers]) -> Iterator[_Columns]:
    """Cut rows anew, so that all that begin together come together.

    Args:
        parts: Rows in order of time, some in each.
        starts: Returns what begins together, never decreasing, of the first column.
    """
    held: list[_Columns] = []
    held_start = 0
    for part in parts:
        begun = starts(part[0])
        cut = int(np.searchsorted(begun, begun[-1]))
        if held and held_start < begun[-1]:
            held.append(part.take(slice(0, cut)))
            yield joined(held)
            held = []
        elif cut:
            yield part.take(slice(0, cut))
        held.append(part.take(slice(cut, None)))
        held_start = int(begun[-1])
    if held:
        yield joined(held)


def minutes_of(instants: Integers) -> Integers:
    """Return the minute of each instant."""
    return instants // MINUTE
