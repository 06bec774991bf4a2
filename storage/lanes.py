"""Lanes: the rows of one feed of one contract, kept in total order as they come.

Rows of a lane almost always arrive in order, so a lane is one growing run of positions plus a few
runs of rows that came late. Late runs merge as a log-structured tree does: each is at least twice
as long as the next, so a lane never holds more than a few dozen whatever the order of arrival.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from storage.runs import LOWEST, GrowingArray, Integers


class LaneKey(NamedTuple):
    """Dictionary codes of what makes a lane; ``name`` is the contract, or a bar's interval."""

    symbol: int
    source: int
    name: int


class Keys(NamedTuple):
    """The sort key of some rows of one lane."""

    ts_event: Integers
    sequence: Integers
    kind: Integers

    def order(self) -> Integers | None:
        """Return the permutation that sorts the rows, or None when they are sorted."""
        ts, sequence = self.ts_event, self.sequence
        later = ts[1:] > ts[:-1]
        if later.all() or (later | ((ts[1:] == ts[:-1]) & (sequence[1:] > sequence[:-1]))).all():
            return None
        return np.lexsort((self.kind, sequence, ts))

    def take(self, rows: Integers) -> "Keys":
        """Return the keys of ``rows``."""
        return Keys(*(column[rows] for column in self))

    def at(self, row: int) -> tuple[int, int, int]:
        """Return one row's key, comparable with any other."""
        return int(self.ts_event[row]), int(self.sequence[row]), int(self.kind[row])


KeysOf = Callable[[Integers], Keys]
"""Finds the keys of rows by their positions."""


class SortedRows(Protocol):
    """Positions of rows in total order."""

    def __getitem__(self, index: int) -> int:
        """Return one position."""

    def slice(self, start: int, stop: int) -> Integers:
        """Return the positions of ``[start, stop)``."""


@dataclass(frozen=True, slots=True)
class SortedPositions:
    """Positions in total order; never changes."""

    positions: Integers

    def __getitem__(self, index: int) -> int:
        return int(self.positions[index])

    def slice(self, start: int, stop: int) -> Integers:
        """Return the positions of ``[start, stop)``."""
        return self.positions[start:stop]


@dataclass(frozen=True, slots=True)
class LateRun(SortedPositions):
    """Positions that came late, and the highest of them."""

    newest: int


class Lane:
    """Positions of one lane's rows. One thread appends; any thread reads."""

    __slots__ = ("_last", "key", "late", "run")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.run = GrowingArray()
        self.late: tuple[LateRun, ...] = ()
        self._last = (LOWEST, LOWEST, LOWEST)

    def __repr__(self) -> str:
        return f"<Lane {tuple(self.key)} {self.run.length} rows, {len(self.late)} late runs>"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.run.nbytes + sum(run.positions.nbytes for run in self.late)

    def append(self, positions: Integers, keys: Keys, fetch_keys: KeysOf) -> None:
        """Index rows that have just been written, in any order.

        ``fetch_keys`` is not kept: it leads to all other rows, whose memory would then stay until
        the garbage collector comes by.
        """
        order = keys.order()
        if order is not None:
            positions, keys = positions[order], keys.take(order)
        split = self._late_rows(keys)
        if split < len(positions):
            self._last = keys.at(-1)
            self.run.extend(positions[split:])
        if split:
            self._add_late(positions[:split], fetch_keys)

    def trimmed(self, base: int) -> "Lane | None":
        """Return the lane without the rows below ``base``, None when none is left.

        The run's rows below ``base`` come first, because ``base`` lies between two appends.
        """
        run = self.run
        first = bisect_left(range(run.length), 1, key=lambda index: int(run[index] >= base))
        left = [late.positions[late.positions >= base] for late in self.late]
        lane = Lane(self.key)
        lane.run = run.without_first(first)
        lane.late = tuple(LateRun(rows, int(rows.max())) for rows in left if len(rows))
        lane._last = self._last
        return lane if lane.run.length or lane.late else None

    def _late_rows(self, keys: Keys) -> int:
        if keys.at(0) >= self._last:
            return 0
        rows = range(len(keys.ts_event))
        return bisect_left(rows, self._last, key=keys.at)

    def _add_late(self, positions: Integers, fetch_keys: KeysOf) -> None:
        runs = list(self.late)
        while runs and len(runs[-1].positions) < 2 * len(positions):
            positions = np.concatenate((runs.pop().positions, positions))
            order = fetch_keys(positions).order()
            if order is not None:
                positions = positions[order]
        self.late = (*runs, LateRun(positions.copy(), int(positions.max())))
