"""How a dataset lies in the lake: types, partitions, names of files.

    <table>/symbol=MNQ/date=2026-11-20/part-0000000000012345-00000007-5f3a….parquet

The columns a table is partitioned by are not in its files, as Delta Lake and Hive have it. Delta
knows no unsigned integers: ``flags`` is an int32 in the lake.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow as pa

from storage.errors import LakeError
from storage.lake.files import FileKind
from storage.ports import MICROSECONDS
from storage.schemas import DATASETS, DICTIONARY, Dataset

SUFFIX: Final = ".parquet"
TEMPORARY: Final = ".tmp"
"""Ends the name of a file that is being written: no reader's ``*.parquet`` finds it."""
DAY_US: Final = 86_400 * MICROSECONDS

_TIME_PARTITIONS: Final = {"date": pa.date32(), "month": pa.string()}
_NAME: Final = re.compile(r"([a-z]+)-(\d{16})-(\d{8})-([0-9a-z]+)\.parquet")


@dataclass(frozen=True, slots=True)
class FileName:
    """What the name of a data file says.

    Attributes:
        kind: What made the file.
        end: Position that all its rows lie below; 0 for rows that never had one.
        part: Number of the part that brought it; of a joined file, the newest it was joined from.
        token: Unique among all files of the table: lower-case letters and digits.
    """

    kind: FileKind
    end: int
    part: int
    token: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.end:016d}-{self.part:08d}-{self.token}{SUFFIX}"

    @classmethod
    def parse(cls, text: str) -> "FileName":
        """Read the name of a data file.

        Raises:
            LakeError: It is not a name of ours.
        """
        found = _NAME.fullmatch(text)
        if found is None or found[1] not in set(FileKind):
            raise LakeError(f"{text!r} is not the name of a data file of the lake")
        return cls(FileKind(found[1]), int(found[2]), int(found[3]), found[4])


@dataclass(frozen=True, slots=True)
class FilePath:
    """Where a data file lies below its table's root, taken apart.

    Attributes:
        symbol: The one symbol of its rows, None where the table isn't partitioned by symbol.
        date: Its partition: a UTC date ``2026-11-20``, or a month ``2026-11``.
        name: Its name.
    """

    symbol: str | None
    date: str
    name: FileName

    @classmethod
    def parse(cls, text: str) -> "FilePath":
        """Read the path of a data file.

        Raises:
            LakeError: It is not a path of ours.
        """
        *directories, name = PurePosixPath(text).parts or ("",)
        values = dict(part.split("=", 1) for part in directories if "=" in part)
        date = values.get("date", values.get("month"))
        if date is None or len(values) != len(directories):
            raise LakeError(f"{text!r} is not the path of a data file of the lake")
        return cls(values.get("symbol"), date, FileName.parse(name))


def table_root(lake: Path, dataset: Dataset) -> Path:
    """Return the directory of a dataset's table."""
    return lake / dataset.name


def file_path(dataset: Dataset, symbol: str | None, date: str, name: FileName) -> str:
    """Return where a data file lies below its table's root."""
    partitions = partition_values(dataset, symbol, date)
    return "/".join([*(f"{key}={value}" for key, value in partitions.items()), str(name)])


def partition_values(dataset: Dataset, symbol: str | None, date: str) -> dict[str, str]:
    """Return the values of the columns that a file's table is partitioned by, as Delta has them."""
    if "symbol" in dataset.partition_by and symbol is None:
        raise LakeError(f"{dataset.name} is partitioned by symbol: its files are of one each")
    return {name: symbol or "" if name == "symbol" else date for name in dataset.partition_by}


def has_one_source_a_file(dataset: Dataset) -> bool:
    """Whether the rows of a symbol and date are kept apart by source.

    The statistics of a file then say who covers its date without opening it.
    """
    return "symbol" in dataset.partition_by and "source" in dataset.schema.names


def partition_date(dataset: Dataset, day: int) -> str:
    """Return the partition of a UTC day, counted from 1970: a date, or a month."""
    text = f"{datetime.fromtimestamp(day * DAY_US // MICROSECONDS, UTC):%Y-%m-%d}"
    return text[:7] if "month" in dataset.partition_by else text


def first_day(date: str) -> int:
    """Return the first UTC day of a partition, counted from 1970."""
    began = datetime.strptime(f"{date}-01"[:10], "%Y-%m-%d").replace(tzinfo=UTC)
    return int(began.timestamp()) * MICROSECONDS // DAY_US


def last_day(date: str) -> int:
    """Return the last UTC day of a partition, counted from 1970."""
    if len(date) > len("2026-11"):
        return first_day(date)
    year, month = (int(part) for part in date.split("-"))
    return first_day(f"{year + month // 12:04d}-{month % 12 + 1:02d}") - 1


@lru_cache(maxsize=4 * len(DATASETS))
def lake_schema(dataset: Dataset) -> pa.Schema:
    """Return the schema of a dataset's table, with the columns it is partitioned by.

    Every column may be null: a table only ever gains columns.
    """
    fields = [pa.field(field.name, lake_type(field.type)) for field in dataset.schema]
    added = [name for name in dataset.partition_by if name not in dataset.schema.names]
    return pa.schema([*fields, *(pa.field(name, _TIME_PARTITIONS[name]) for name in added)])


@lru_cache(maxsize=4 * len(DATASETS))
def file_schema(dataset: Dataset) -> pa.Schema:
    """Return the schema of a dataset's data files: without what its table is partitioned by."""
    return pa.schema(
        field.with_type(lake_type(field.type))
        for field in dataset.schema
        if field.name not in dataset.partition_by
    )


def lake_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type that Delta Lake keeps a column of ours in."""
    return pa.int32() if data_type == pa.uint16() else data_type


def to_lake(rows: pa.Table, dataset: Dataset) -> pa.Table:
    """Return rows of a dataset as its files hold them, low-cardinality strings in dictionaries.

    Args:
        rows: In the dataset's types or the lake's. Nullable columns may be missing.
        dataset: Whose they are.
    """
    columns, fields = [], []
    for field in file_schema(dataset):
        kept_as = DICTIONARY if field.name in dataset.dictionary else field.type
        columns.append(_column_or_nulls(rows, field).cast(kept_as))
        fields.append(field.with_type(kept_as))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def from_lake(rows: pa.Table, dataset: Dataset, symbol: str | None) -> pa.Table:
    """Return rows of a data file in the dataset's wire schema.

    Args:
        rows: As they are in the file.
        dataset: Whose they are.
        symbol: The symbol of the file's partition.
    """
    columns = []
    for field in dataset.wire_schema:
        if field.name == "symbol" and field.name in dataset.partition_by:
            column = pa.chunked_array([_repeated(symbol, rows.num_rows, field.type)])
        else:
            column = _column_or_nulls(rows, field).cast(field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=dataset.wire_schema)


def _column_or_nulls(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    at = rows.schema.get_field_index(field.name)
    if at >= 0:
        return rows.column(at)
    return pa.chunked_array([pa.nulls(rows.num_rows, field.type)])


def _repeated(value: str | None, rows: int, data_type: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(data_type):
        return pa.repeat(pa.scalar(value, data_type), rows)
    codes = pa.repeat(pa.scalar(0, data_type.index_type), rows)
    return pa.DictionaryArray.from_arrays(codes, pa.array([value], data_type.value_type))
