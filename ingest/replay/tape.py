"""Files of ticks as one tape: all of their rows in the order of ``ts_event``.

Files whose rows are in order, one file after the other, are streamed. Others are sorted, which
takes memory, so there is a limit to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingest.errors import ImportFileError
from ingest.files.columns import ColumnPlan, plan_columns
from ingest.files.conversion import check_options, convert_rows
from ingest.files.reading import open_file, rebatch
from ingest.files.ticks import TickConverter

BATCH_ROWS: Final = 16_384
"""Rows converted at a time."""
SORTED_ROWS_MAX: Final = 10_000_000
"""Rows that are put in order in memory: about a gigabyte."""

Report = Callable[[Path, int], None]
"""Told of a file and how many of its rows were read."""


@dataclass(frozen=True, slots=True)
class _Reel:
    """One file."""

    path: Path
    plan: ColumnPlan
    converter: TickConverter

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows as ticks."""
        row = 0
        for rows in rebatch(open_file(self.path).batches(self.plan.columns), BATCH_ROWS):
            yield convert_rows(self.path, self.converter, rows, row, 0)
            row += rows.num_rows


@dataclass(frozen=True, slots=True)
class _Extent:
    """What was found when a file was read through; instants in µs."""

    reel: _Reel
    rows: int
    untimed: int
    first: int
    last: int
    in_order: bool


@dataclass(frozen=True, slots=True)
class Tape:
    """Ticks in the order of ``ts_event``; ``open_tape`` makes one.

    Attributes:
        symbol: Whose ticks they are.
        rows: How many.
        untimed: Rows of the files that name no time, and are left out.
        first: Earliest ``ts_event``, µs.
        last: Latest.
    """

    symbol: str
    rows: int
    untimed: int
    first: int
    last: int
    _files: tuple[_Extent, ...]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read the ticks, in order.

        Raises:
            ImportFileError: A file has changed since it was looked at, and can't be read any more.
        """
        rows = (_timed(batch) for file in self._files for batch in file.reel.batches())
        if self._is_in_order:
            yield from rows
        else:
            yield from _sorted(rows)

    @property
    def _is_in_order(self) -> bool:
        one_by_one = all(one.last <= other.first for one, other in pairwise(self._files))
        return one_by_one and all(file.in_order for file in self._files)


def open_tape(
    paths: Sequence[Path],
    *,
    symbol: str,
    contract: str | None = None,
    mapping: Mapping[str, str] | None = None,
    timezone: str | None = None,
    report: Report = lambda *_: None,
) -> Tape:
    """Read files through, so that no bad value turns up in the middle of a replay.

    Args:
        paths: Parquet, CSV (plain, gzip or zstd), Arrow IPC or Feather files, in any order.
        symbol: What people will ask for.
        contract: What traded; the symbol when None.
        mapping: Column by field where their names differ, such as ``{"price": "px"}``.
        timezone: Zone of instants that name none.
        report: Called after each batch.

    Raises:
        ConfigurationError: The symbol or time zone is none.
        ColumnMappingError: A file's columns do not give a tick.
        ImportFileError: A file can't be read, a value in it is not what it must be, no row names a
            time, or there are too many rows that are not in order.
    """
    check_options(symbol, timezone)
    plans = [plan_columns(path, open_file(path).columns, mapping or {}) for path in paths]
    converters = (
        TickConverter(plan, symbol=symbol, contract=contract or symbol, timezone=timezone)
        for plan in plans
    )
    reels = map(_Reel, paths, plans, converters)
    found = [_read_through(reel, report) for reel in reels]
    files = sorted((file for file in found if file.rows), key=lambda file: file.first)
    if not files:
        raise ImportFileError(paths[0], "no row names a time: there is nothing to replay")
    tape = Tape(
        symbol=symbol,
        rows=sum(file.rows for file in files),
        untimed=sum(file.untimed for file in found),
        first=files[0].first,
        last=max(file.last for file in files),
        _files=tuple(files),
    )
    if tape.rows > SORTED_ROWS_MAX and not tape._is_in_order:  # noqa: SLF001 - of this module
        detail = f"rows are not in order of time, and {tape.rows:,} are too many to sort here"
        raise ImportFileError(paths[0], f"{detail} ({SORTED_ROWS_MAX:,}); sort by ts_event first")
    return tape


def instants_of(batch: pa.RecordBatch, column: str = "ts_event") -> npt.NDArray[np.int64]:
    """Return the instants of a column without nulls, µs."""
    return np.asarray(batch.column(column).cast(pa.int64()).to_numpy())


def _read_through(reel: _Reel, report: Report) -> _Extent:
    rows = untimed = 0
    first, last, in_order = 0, 0, True
    for batch in reel.batches():
        instants = instants_of(_timed(batch))
        untimed += batch.num_rows - len(instants)
        if len(instants):
            in_order &= bool((np.diff(instants) >= 0).all()) and (not rows or instants[0] >= last)
            first = int(instants.min()) if not rows else min(first, int(instants.min()))
            last = max(last, int(instants.max()))
            rows += len(instants)
        report(reel.path, rows + untimed)
    return _Extent(reel, rows, untimed, first, last, in_order)


def _timed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows that name a time: others have no place on a tape."""
    times = batch.column("ts_event")
    return batch.filter(times.is_valid()) if times.null_count else batch


def _sorted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Put rows in order; those of one instant stay as they were."""
    whole = pa.concat_batches([batch for batch in batches if batch.num_rows])
    order = np.argsort(instants_of(whole), kind="stable")
    for at in range(0, len(order), BATCH_ROWS):
        yield whole.take(pa.array(order[at : at + BATCH_ROWS]))
