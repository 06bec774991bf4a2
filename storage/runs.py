"""Growing arrays of integers: the bricks of the hot store's indexes."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BLOCK_ROWS: Final = 1 << 16
"""Integers a block: growing never copies what is there, so an append never stalls."""
LOWEST: Final = -(1 << 63)
"""Below every int64 that a source can send."""


class GrowingArray:
    """An append-only array of int64 in blocks; what lies below a length once seen never changes.

    One thread appends; any thread reads below a length it has read.
    """

    __slots__ = ("_blocks", "_skipped", "length")

    def __init__(self) -> None:
        self._blocks: list[Integers] = []
        self._skipped = 0  # of the first block
        self.length = 0

    def extend(self, values: Integers) -> None:
        """Append ``values``."""
        taken, count = 0, len(values)
        while taken < count:
            offset = (self._skipped + self.length) % BLOCK_ROWS
            if offset == 0:
                self._blocks.append(np.empty(BLOCK_ROWS, np.int64))
            part = min(BLOCK_ROWS - offset, count - taken)
            self._blocks[-1][offset : offset + part] = values[taken : taken + part]
            taken += part
            self.length += part

    def without_first(self, count: int) -> "GrowingArray":
        """Return what follows the first ``count``, sharing its memory.

        Append to the new one only: the last block is the same.
        """
        rest = GrowingArray()
        rest.length = self.length - count
        if rest.length:
            dropped, rest._skipped = divmod(self._skipped + count, BLOCK_ROWS)
            rest._blocks = self._blocks[dropped:]
        return rest

    def __getitem__(self, index: int) -> int:
        index += self._skipped
        return int(self._blocks[index // BLOCK_ROWS][index % BLOCK_ROWS])

    def slice(self, start: int, stop: int) -> Integers:
        """Return the integers of ``[start, stop)``, without copying where one block holds them."""
        if stop <= start:
            return np.empty(0, np.int64)
        start, stop = start + self._skipped, stop + self._skipped
        first, last = start // BLOCK_ROWS, (stop - 1) // BLOCK_ROWS
        parts = [
            self._blocks[i][max(start - i * BLOCK_ROWS, 0) : stop - i * BLOCK_ROWS]
            for i in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def newest_blocks(self) -> Iterator[Integers]:
        """Yield the filled part of each block, newest first."""
        for i in range(len(self._blocks) - 1, -1, -1):
            first = 0 if i else self._skipped
            yield self._blocks[i][first : self._skipped + self.length - i * BLOCK_ROWS]

    @property
    def nbytes(self) -> int:
        """Bytes held: what is not filled of a block is address space, not memory."""
        return self.length * 8


class SequenceSet:
    """The recent sequences of one feed, to tell a repeat from a new row.

    Sequences almost always grow: the set is a growing sorted run, plus the few that came late.
    """

    REMEMBERED_MAX: Final = 1 << 22
    """Sequences remembered, 32 MB: a day of one busy contract, far more than feeds send again."""

    __slots__ = ("_late", "_older", "_run", "last")

    def __init__(self) -> None:
        self._run = GrowingArray()
        self._older = GrowingArray()  # the run before, so that a half is always remembered
        self._late: set[int] = set()
        self.last = LOWEST

    def admit(self, sequences: Integers) -> Mask | None:
        """Add ``sequences`` (at least one); return which are new, or None when all are."""
        if sequences[0] > self.last and (sequences[1:] > sequences[:-1]).all():
            self._extend(sequences)
            return None
        return self._admit_unsorted(sequences)

    def _extend(self, sequences: Integers) -> None:
        self._run.extend(sequences)
        self.last = int(sequences[-1])
        if self._run.length > self.REMEMBERED_MAX // 2:
            self._older, self._run = self._run, GrowingArray()

    def _admit_unsorted(self, sequences: Integers) -> Mask | None:
        new = np.zeros(len(sequences), bool)
        new[np.unique(sequences, return_index=True)[1]] = True
        new &= ~self._known(sequences)
        fresh = np.sort(sequences[new])
        late = int(np.searchsorted(fresh, self.last, side="right"))
        self._late.update(fresh[:late].tolist())
        if len(self._late) > self.REMEMBERED_MAX:
            self._late = set(sorted(self._late)[len(self._late) // 2 :])
        if late < len(fresh):
            self._extend(fresh[late:])
        return None if new.all() else new

    def _known(self, sequences: Integers) -> Mask:
        known = np.zeros(len(sequences), bool)
        if self._late:
            known |= np.fromiter((s in self._late for s in sequences.tolist()), bool, len(known))
        lowest = sequences.min()
        for run in (self._run, self._older):
            for block in run.newest_blocks():
                if not len(block) or block[-1] < lowest:
                    break
                at = np.minimum(np.searchsorted(block, sequences), len(block) - 1)
                known |= block[at] == sequences
        return known

    @property
    def nbytes(self) -> int:
        """Bytes held, about."""
        return self._run.nbytes + self._older.nbytes + 64 * len(self._late)
