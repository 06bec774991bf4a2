"""Writing data files: whole, durable and read back before anybody hears of them.

A file is written under a temporary name, synced, read back with its page checksums verified,
compared with what was meant to be in it, renamed, and its directory synced. Libraries write Parquet
without ever syncing it, so no other code of ours writes files of the lake.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import LakeCorruptError, LakeError
from storage.lake import layout
from storage.lake.layout import FileName
from storage.lake.outside import errors_as_ours
from storage.lake.row_hash import combine, row_hash
from storage.lake.total_order import sorted_rows
from storage.ports import Disk
from storage.schemas import Dataset

GROUP_ROWS: Final = 122_880
"""Rows a row group: DuckDB's own, so that each of its threads takes whole ones."""
COMPRESSION_LEVEL: Final = 3
DIGEST_BYTES: Final = 16
READ_BYTES: Final = 1 << 20

_DELTA_ENCODED: Final = ("ts_event", "ts_recv", "sequence")
"""Columns whose values lie close to the one before: the differences are what is stored."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A data file that is on disk, durable and read back, but not committed yet.

    Attributes:
        path: Where it lies below the table's root.
        rows: How many.
        bytes: Size on disk.
        first: Oldest ``ts_event``, µs.
        last: Newest ``ts_event``, µs.
        source: The one source of all rows; None where there are several, or none.
        row_hash: See ``row_hash``.
        digest: BLAKE2b of the file's bytes, hexadecimal.
    """

    path: str
    rows: int
    bytes: int
    first: int
    last: int
    source: str | None
    row_hash: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "WrittenFile":
        """Read what ``to_json`` has made."""
        return cls(**content)


def write_file(
    directory: Path,
    dataset: Dataset,
    symbol: str | None,
    date: str,
    rows: pa.Table,
    name: FileName,
    disk: Disk,
) -> WrittenFile:
    """Write one data file. Nothing is left of it where that fails, or a temporary name at worst.

    Args:
        directory: Root of the dataset's table.
        dataset: Whose rows they are.
        symbol: The symbol of all rows; None where the table isn't partitioned by symbol.
        date: The partition of all rows, see ``layout.partition_date``.
        rows: At least one, in any order; rows that are equal in the total order stay as they are.
            Strings may be in dictionaries, a ``symbol`` that is the partition's may be missing.
        name: Its name.
        disk: Where to.

    Raises:
        LakeFullError: There is no room.
        LakeCorruptError: What was read back is not what was written.
        LakeError: The disk refuses.
    """
    path = layout.file_path(dataset, symbol, date, name)
    with writing(directory, dataset, path, disk) as writer:
        writer.write(sorted_rows(rows, dataset))
        return writer.finish()


@contextmanager
def writing(directory: Path, dataset: Dataset, path: str, disk: Disk) -> Iterator["FileWriter"]:
    """Write one data file piece by piece; without ``finish`` nothing is left of it.

    Raises:
        LakeError: See ``write_file``.
    """
    target = directory / path
    with errors_as_ours(target):
        writer = FileWriter(directory, dataset, path, disk)
        try:
            yield writer
        finally:
            writer.discard()


class FileWriter:
    """One data file in the making. Its pieces come in the order of the file."""

    def __init__(self, directory: Path, dataset: Dataset, path: str, disk: Disk) -> None:
        self._path = path
        self._target = directory / path
        self._temporary = self._target.with_name(self._target.name + layout.TEMPORARY)
        self._dataset = dataset
        self._symbol = layout.FilePath.parse(path).symbol
        self._disk = disk
        disk.make_directory(self._target.parent)
        self._file: BinaryIO | None = disk.create(self._temporary)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._summary = RowSummary(dataset, self._symbol)

    def write(self, rows: pa.Table) -> None:
        """Append rows that come after those before."""
        if not rows.num_rows:
            return
        rows = layout.to_lake(rows, self._dataset)
        self._summary.add(rows)
        self._waiting.append(rows)
        count = sum(part.num_rows for part in self._waiting)
        if count >= GROUP_ROWS:
            self._flush(count - count % GROUP_ROWS)

    def finish(self) -> WrittenFile:
        """Make the file durable under its name, and return what it is.

        Raises:
            LakeCorruptError: What was read back is not what was written.
            LakeError: It would be empty.
        """
        self._flush(sum(part.num_rows for part in self._waiting))
        if self._writer is None or self._file is None:
            raise LakeError(f"{self._target}: a data file has at least one row")
        self._writer.close()
        self._file.close()
        self._disk.sync(self._temporary)
        expected = self._summary
        found = summary_of(self._temporary, self._dataset, self._symbol)
        if (found.rows, found.row_hash) != (expected.rows, expected.row_hash):
            raise LakeCorruptError(self._target, "what was read back is not what was written")
        written = WrittenFile(
            self._path,
            found.rows,
            self._disk.size(self._temporary),
            found.first,
            found.last,
            found.source,
            found.row_hash,
            file_digest(self._temporary),
        )
        self._disk.rename(self._temporary, self._target)
        self._disk.sync_directory(self._target.parent)
        self._file = None
        return written

    def discard(self) -> None:
        """Remove the temporary file of an attempt that was not finished."""
        if self._file is None:
            return
        try:
            self._file.close()
            self._disk.remove(self._temporary)
        except OSError:
            return  # the error that brought us here says more, and vacuum removes what is left

    def _flush(self, count: int) -> None:
        if not count:
            return
        rows = pa.concat_tables(self._waiting).unify_dictionaries()
        if self._writer is None:
            self._writer = _parquet_writer(self._file, rows.schema, self._dataset)
        self._writer.write_table(rows.slice(0, count), row_group_size=GROUP_ROWS)
        self._waiting = [rows.slice(count)] if count < rows.num_rows else []


class RowSummary:
    """What some rows are, whatever file they are in: how many, their hash and their reach."""

    def __init__(self, dataset: Dataset, symbol: str | None) -> None:
        self.rows = 0
        self.row_hash = 0
        self.first = self.last = 0
        self._dataset = dataset
        self._symbol = symbol
        self._sources: set[str | None] = set()

    @property
    def source(self) -> str | None:
        """The one source of all rows."""
        return next(iter(self._sources)) if len(self._sources) == 1 else None

    def add(self, rows: pa.Table) -> None:
        """Count more rows; at least one."""
        reach = pc.min_max(rows["ts_event"].cast(pa.int64())).as_py()
        self.first = min(self.first, reach["min"]) if self.rows else reach["min"]
        self.last = max(self.last, reach["max"])
        self.rows += rows.num_rows
        self.row_hash = combine((self.row_hash, row_hash(rows, self._dataset, self._symbol)))
        if "source" in rows.schema.names:
            self._sources.update(rows["source"].unique().to_pylist())


def summary_of(path: Path, dataset: Dataset, symbol: str | None) -> "RowSummary":
    """Read a whole data file, verifying the checksum of every page; return what its rows are.

    Args:
        path: The file.
        dataset: Whose rows they are.
        symbol: The symbol of its partition.

    Raises:
        LakeCorruptError: A page is not what was written.
        LakeError: It can't be read.
    """
    summary = RowSummary(dataset, symbol)
    for rows in verified_rows(path, dataset):
        summary.add(rows)
    return summary


def verified_rows(path: Path, dataset: Dataset) -> Iterator[pa.Table]:
    """Yield the row groups of a data file, verifying the checksum of every page.

    Raises:
        LakeCorruptError: The file is not what was written.
        LakeError: It can't be read.
    """
    schema = layout.file_schema(dataset)
    try:
        footer = pq.read_metadata(path)
        present = {footer.schema.column(at).path for at in range(footer.num_columns)}
        with pq.ParquetFile(
            path,
            metadata=footer,
            page_checksum_verification=True,
            read_dictionary=[name for name in dataset.dictionary if name in present],
            pre_buffer=False,
        ) as file:
            _require_known(path, file.schema_arrow, schema)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise LakeCorruptError(path, str(error).partition("\n")[0]) from error
    except OSError as error:
        # Arrow tells of a wrong page by the same class as of a disk that fails; only the latter
        # comes with a number.
        if error.errno is None:
            raise LakeCorruptError(path, str(error).partition("\n")[0]) from error
        raise LakeError(f"{path}: {error}") from error


def _require_known(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    """Check that a file has a dataset's columns: a footer has no checksum of its own."""
    unknown = set(found.names) - set(schema.names)
    missing = {field.name for field in schema if not field.nullable} - set(found.names)
    for name in sorted(unknown | missing):
        detail = "is missing" if name in missing else "is unknown to this version"
        raise LakeCorruptError(path, f"column {name!r} {detail}")


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes, hexadecimal."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            state.update(block)
    return state.hexdigest()


def _parquet_writer(file: BinaryIO | None, schema: pa.Schema, dataset: Dataset) -> pq.ParquetWriter:
    differences = [name for name in schema.names if name in _DELTA_ENCODED]
    texts = [field.name for field in dataset.schema if _is_free_text(field, dataset)]
    leaves = [
        leaf
        for field in schema
        if field.name not in (*differences, *texts)
        for leaf in _leaves(field.name, field.type)
    ]
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=leaves,
        column_encoding=dict.fromkeys(differences, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
        # Each page costs a decompressor of its own: with pyarrow's 20,000 rows that is a quarter of
        # what reading takes. The limit of bytes still holds.
        max_rows_per_page=GROUP_ROWS,
        store_schema=False,
        version="2.6",
    )


def _is_free_text(field: pa.Field, dataset: Dataset) -> bool:
    return pa.types.is_string(field.type) and field.name not in (*dataset.dictionary, "symbol")


def _leaves(path: str, data_type: pa.DataType) -> Iterator[str]:
    """Yield the paths of what a column holds, as Parquet names them."""
    if pa.types.is_list(data_type):
        yield from _leaves(f"{path}.list.element", data_type.value_type)
    elif pa.types.is_struct(data_type):
        for field in data_type:
            yield from _leaves(f"{path}.{field.name}", field.type)
    else:
        yield path
