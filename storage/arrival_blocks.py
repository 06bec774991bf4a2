"""Blocks of rows in the order they came: cut out of memory, a column at a time."""

from dataclasses import dataclass
from typing import Final, Self, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.batched import BatchedState
from storage.columnar_state import ColumnarState
from storage.columnar_view import plain_numbers
from storage.dictionary import Dictionary
from storage.merge import BLOCK_ROWS_TARGET
from storage.ordering import instants_of
from storage.published import HotState
from storage.runs import Integers, Mask
from storage.schemas import plain_projection
from storage.validation import Column

SCAN_ROWS_MAX: Final = 1 << 18
"""Rows looked at for one block: a reader of a rare symbol must not be silent for long."""
BLOCK_BYTES_MAX: Final = 8 << 20
"""Bytes of a block whose rows have lists or text, about what as many ticks take."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows of a dataset, as they come.

    Attributes:
        dataset: Its name.
        names: Columns in the order wanted.
        symbols: Whose rows; None is everybody's, and rows without a symbol.
    """

    dataset: str
    names: tuple[str, ...]
    symbols: frozenset[str] | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns to read: those wanted, and those that say whether a row is."""
        return tuple(dict.fromkeys((*self.names, "ts_event", "symbol")))


@dataclass(frozen=True, slots=True)
class Block:
    """Those of the rows ``[start, stop)`` that are wanted.

    Attributes:
        start: Position of the first row looked at.
        stop: Position after the last.
        rows: Those that are wanted, with plain strings.
        instants: ``ts_event`` of each of them, µs.
        span: The earliest and the latest of these; 0 for both where there are none.
    """

    start: int
    stop: int
    rows: pa.RecordBatch
    instants: Integers
    span: tuple[int, int]

    @classmethod
    def of(cls, start: int, stop: int, rows: pa.RecordBatch, instants: Integers) -> Self:
        """Return a block; what every one of its readers asks is looked up once."""
        span = (int(instants.min()), int(instants.max())) if len(instants) else (0, 0)
        return cls(start, stop, rows, instants, span)

    def within(self, since: int, until: int) -> pa.RecordBatch:
        """Return the rows with ``since <= ts_event < until``, in µs."""
        first, last = self.span
        if (first >= since and last < until) or not self.rows.num_rows:
            return self.rows
        instants = self.instants
        return self.rows.filter(pa.array((instants >= since) & (instants < until)))


@final
class Feed:
    """The arrivals that several readers want: what is read for one serves them all."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._newest: tuple[int, int, Block] | None = None
        self._symbols = _SymbolMask(wanted.symbols)

    def read(self, state: HotState, start: int, stop: int) -> Block:
        """Return rows from ``start`` on, which is in memory, up to ``stop`` at most."""
        newest = self._newest
        if newest is not None and newest[:2] == (start, stop):
            return newest[2]
        if isinstance(state, ColumnarState):
            block = self._columnar(state, start, stop)
        else:
            block = self._batched(state, start, stop)
        self._newest = (start, stop, block)
        return block

    def _columnar(self, state: ColumnarState, start: int, stop: int) -> Block:
        wanted = self.wanted
        if wanted.symbols is None:
            stop = min(stop, start + BLOCK_ROWS_TARGET)
            positions = np.arange(start, stop)
        else:
            stop = min(stop, start + SCAN_ROWS_MAX)
            codes = state.gather(np.arange(start, stop), state.columns.at["symbol"])
            mask = self._symbols.of(state.columns.dictionaries["symbol"])
            positions = np.flatnonzero(mask[codes]) + start
            if len(positions) > BLOCK_ROWS_TARGET:
                positions = positions[:BLOCK_ROWS_TARGET]
                stop = int(positions[-1]) + 1
        located = state.locate(positions)
        arrays = []
        for name in wanted.names:
            spec = state.columns.specs[state.columns.at[name]]
            values = located.values(state.columns.at[name], spec.width)
            if spec.dictionary is None:
                arrays.append(plain_numbers(values, spec.field))
            else:
                arrays.append(plain_strings(values, spec.dictionary))
        rows = pa.RecordBatch.from_arrays(
            arrays, schema=plain_projection(wanted.dataset, wanted.names)
        )
        return Block.of(start, stop, rows, located.values(0, np.dtype(np.int64)))

    def _batched(self, state: BatchedState, start: int, stop: int) -> Block:
        parts: list[pa.RecordBatch] = []
        end, room = start, BLOCK_BYTES_MAX
        for batch in state.batches(start, min(stop, start + BLOCK_ROWS_TARGET)):
            rows = _rows_within(batch, room)
            if rows == 0 and parts:
                break
            parts.append(batch.slice(0, max(1, rows)))
            end += parts[-1].num_rows
            room -= parts[-1].nbytes
        return filtered(self.wanted, start, end, pa.concat_batches(parts))


def filtered(wanted: Wanted, start: int, stop: int, rows: pa.RecordBatch) -> Block:
    """Return those of the rows ``[start, stop)`` that are wanted.

    Args:
        wanted: Which, and their columns.
        start: Position of the first.
        stop: Position after the last.
        rows: All of them, with plain strings and at least the columns ``wanted.needed``.
    """
    if wanted.symbols is not None:
        chosen = pa.array(sorted(wanted.symbols), pa.string())
        rows = rows.filter(pc.is_in(rows.column("symbol"), value_set=chosen))
    kept = pa.RecordBatch.from_arrays(
        [rows.column(name) for name in wanted.names],
        schema=plain_projection(wanted.dataset, wanted.names),
    )
    return Block.of(start, stop, kept, instants_of(rows))


def plain_strings(codes: Column, dictionary: Dictionary) -> pa.Array:
    """Return the strings of some codes."""
    absent = codes < 0
    indices = pa.array(codes, mask=absent) if absent.any() else pa.array(codes)
    return dictionary.array().take(indices)


class _SymbolMask:
    """Tells codes of wanted symbols from others; the last slot is that of no symbol."""

    def __init__(self, symbols: frozenset[str] | None) -> None:
        self._symbols = symbols or frozenset()
        self._mask: Mask = np.zeros(1, bool)

    def of(self, dictionary: Dictionary) -> Mask:
        """Return whether each code is wanted."""
        mask, size = self._mask, len(dictionary) + 1
        if len(mask) != size:
            codes = np.array([dictionary.code(symbol) for symbol in self._symbols], np.int64)
            mask = np.zeros(size, bool)
            mask[codes[(codes >= 0) & (codes < size - 1)]] = True
            self._mask = mask
        return mask


def _rows_within(batch: pa.RecordBatch, size: int) -> int:
    """Return how many rows of a batch take at most so many bytes."""
    if batch.nbytes <= size:
        return int(batch.num_rows)
    return int(max(0, size) * batch.num_rows // batch.nbytes)
