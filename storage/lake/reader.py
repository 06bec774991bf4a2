"""Reading data files: verified page by page, a batch at a time, and no more than was asked for."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import LakeCorruptError
from storage.lake.files import LakeFile
from storage.ordering import instants_of
from storage.runs import Integers
from storage.schemas import Dataset, wire_projection
from storage.selection import Bound, Comparison

FOOTERS_MAX: Final = 512
"""Footers remembered, 20 to 40 kB each: the files of a day of every symbol, or of a year of one."""
BATCH_ROWS: Final = 61_440
"""Rows a batch, at most: half a row group, so that no batch is a remainder."""
PARTIAL_BATCH_ROWS: Final = 30_720
"""The same where not all of a file is wanted: what follows the last row wanted is not decoded."""
BATCH_BYTES_TARGET: Final = 4 << 20
"""Encoded bytes a batch: of ticks it is never reached, of lists it keeps batches below 16 MB."""
READ_AHEAD_BYTES: Final = 1 << 16
"""Bytes read at once of each column; without, all of a row group is read before its first row."""


_MAY_HOLD: Final[dict[Comparison, Callable[[Any, Any, Any], bool]]] = {
    Comparison.BELOW: lambda low, _, value: low < value,
    Comparison.AT_MOST: lambda low, _, value: low <= value,
    Comparison.EQUAL: lambda low, high, value: low <= value <= high,
    Comparison.AT_LEAST: lambda _, high, value: high >= value,
    Comparison.ABOVE: lambda _, high, value: high > value,
}


_Looks = tuple[int, int, int]
"""What tells a file from another one of its name: number, size, time of its last change."""


@dataclass(frozen=True, slots=True)
class Part:
    """What to read of a file.

    Attributes:
        names: Columns, in the order wanted.
        start: µs; rows before it are left out.
        end: µs; rows at or after it are left out.
        bounds: Row groups without a row inside of all of them are left out; others are whole.
        batch_rows: Rows a batch, at most.
        newest: Leave out all but so many of the last rows, where the file has more.
    """

    names: tuple[str, ...]
    start: int
    end: int
    bounds: tuple[Bound, ...] = ()
    batch_rows: int = BATCH_ROWS
    newest: int | None = None


class LakeReader:
    """Reads data files of any table; safe to share between threads.

    Args:
        lake: Directory of all tables.
    """

    def __init__(self, lake: Path) -> None:
        self._lake = lake
        self._footers: OrderedDict[Path, tuple[_Looks, pq.FileMetaData]] = OrderedDict()
        self._changing = threading.Lock()

    def batches(self, dataset: Dataset, file: LakeFile, part: Part) -> Iterator[pa.RecordBatch]:
        """Yield rows of a file in the wire schema, in the file's order.

        Raises:
            LakeCorruptError: The file is missing or damaged.
        """
        path = self._lake / dataset.name / file.path
        with _damage_told(path):
            yield from _batches(self._opened(path, dataset), dataset, file, part)

    def _opened(self, path: Path, dataset: Dataset) -> pq.ParquetFile:
        footer = self._footer(path)
        present = {footer.schema.column(i).path for i in range(footer.num_columns)}
        return pq.ParquetFile(
            path,
            metadata=footer,
            read_dictionary=[name for name in dataset.dictionary if name in present],
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=READ_AHEAD_BYTES,
        )

    def _footer(self, path: Path) -> pq.FileMetaData:
        looks = _looks_of(path)
        with self._changing:
            known = self._footers.get(path)
            # A damaged file may have been put back from a backup, under the same name.
            if known is not None and known[0] == looks:
                self._footers.move_to_end(path)
                return known[1]
        footer = pq.read_metadata(path)
        with self._changing:
            self._footers[path] = looks, footer
            self._footers.move_to_end(path)
            while len(self._footers) > FOOTERS_MAX:
                self._footers.popitem(last=False)
        return footer


def _looks_of(path: Path) -> _Looks:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        said = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        detail = f"{said.partition(chr(10))[0]}; run `tickflightd lake verify`"
        raise LakeCorruptError(path, detail) from error


def _batches(
    opened: pq.ParquetFile, dataset: Dataset, file: LakeFile, part: Part
) -> Iterator[pa.RecordBatch]:
    groups = _groups(opened.metadata, part)
    if not groups:
        return
    skipped = _rows_skipped(opened.metadata, groups, part.newest)
    is_whole = part.start <= file.first and file.last < part.end
    known = frozenset(opened.schema_arrow.names)
    present = [name for name in part.names if name in known]
    if not is_whole or not present:
        present = list(dict.fromkeys((*present, "ts_event")))
    at_once = BATCH_ROWS if is_whole else PARTIAL_BATCH_ROWS
    rows_max = min(part.batch_rows, at_once, _fitting_rows(opened.metadata, groups))
    schema = wire_projection(dataset.name, part.names)
    # Files of several symbols have these one after another.
    ends_in_it = file.symbol is not None and part.end <= file.last
    for batch in opened.iter_batches(rows_max, row_groups=groups, columns=present):
        rows = batch
        if skipped:
            rows = batch.slice(min(skipped, batch.num_rows))
            skipped -= batch.num_rows - rows.num_rows
        if not is_whole:
            rows = _within(rows, part.start, part.end)
        if rows.num_rows:
            yield _on_the_wire(rows, schema, file.symbol)
        if ends_in_it and instants_of(batch)[-1] >= part.end:
            return


def _groups(footer: pq.FileMetaData, part: Part) -> list[int]:
    """Return the row groups that may hold rows wanted."""
    at = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    span = (
        Bound("ts_event", Comparison.AT_LEAST, part.start),
        Bound("ts_event", Comparison.BELOW, part.end),
    )
    bounds = (*span, *part.bounds)
    groups = []
    for group in range(footer.num_row_groups):
        about = footer.row_group(group)
        if all(_may_hold(about, at, bound) for bound in bounds):
            groups.append(group)
    return groups if part.newest is None else _last_groups(footer, groups, part.newest)


def _may_hold(about: pq.RowGroupMetaData, at: dict[str, int], bound: Bound) -> bool:
    if bound.column not in at:
        return True
    statistics = about.column(at[bound.column]).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min_raw, statistics.max_raw
    return _MAY_HOLD[bound.comparison](low, high, bound.value)


def _last_groups(footer: pq.FileMetaData, groups: Sequence[int], rows: int) -> list[int]:
    kept: list[int] = []
    for group in reversed(groups):
        if rows <= 0:
            break
        kept.insert(0, group)
        rows -= footer.row_group(group).num_rows
    return kept


def _rows_skipped(footer: pq.FileMetaData, groups: Sequence[int], newest: int | None) -> int:
    if newest is None:
        return 0
    return max(0, sum(int(footer.row_group(group).num_rows) for group in groups) - newest)


def _fitting_rows(footer: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return how many rows of a file make a batch of a size that the wire carries well."""
    about = [footer.row_group(group) for group in groups]
    size = sum(int(group.total_byte_size) for group in about)
    rows = sum(int(group.num_rows) for group in about)
    return max(1, BATCH_BYTES_TARGET * rows // max(1, size))


def _within(batch: pa.RecordBatch, start: int, end: int) -> pa.RecordBatch:
    instants = instants_of(batch)
    if not len(instants) or (start <= instants[0] and instants[-1] < end and _rises(instants)):
        return batch
    if _rises(instants):
        first, last = instants.searchsorted((start, end)).tolist()
        return batch.slice(first, last - first)
    return batch.filter(pa.array((instants >= start) & (instants < end)))


def _rises(instants: Integers) -> bool:
    return bool((instants[1:] >= instants[:-1]).all())


def _on_the_wire(batch: pa.RecordBatch, schema: pa.Schema, symbol: str | None) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at >= 0:
            column = batch.column(at)
            arrays.append(column if column.type == field.type else column.cast(field.type))
        elif field.name == "symbol" and symbol is not None:
            arrays.append(_repeated(symbol, batch.num_rows))
        else:
            # The file is older than the column.
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _repeated(symbol: str, rows: int) -> pa.DictionaryArray:
    codes = pa.Array.from_buffers(pa.int32(), rows, [None, _ZEROS], offset=0)
    return pa.DictionaryArray.from_arrays(codes, pa.array([symbol], pa.string()), safe=False)


_ZEROS: Final = pa.py_buffer(bytes(4 * BATCH_ROWS))
"""The codes of a column with one string: no batch is longer."""
