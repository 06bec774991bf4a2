"""Names, partitions and types of what lies in the lake."""

import pyarrow as pa
import pytest
from deltalake import Schema

from storage.errors import LakeError
from storage.lake import layout
from storage.lake.files import FileKind
from storage.lake.layout import FileName, FilePath
from storage.schemas import BARS, DATASETS, QUARANTINE, SEGMENTS, TICKS, Dataset
from tests.lake.lake_making import DAY, tick_table

NAME = FileName(FileKind.PART, 12_345, 7, "5f3a")


def test_the_path_of_a_file_says_what_is_in_it() -> None:
    path = layout.file_path(TICKS, "MNQ", "2026-11-20", NAME)
    assert path == "symbol=MNQ/date=2026-11-20/part-0000000000012345-00000007-5f3a.parquet"
    assert FilePath.parse(path) == FilePath("MNQ", "2026-11-20", NAME)


def test_tables_without_a_symbol_in_their_paths_have_none() -> None:
    path = layout.file_path(QUARANTINE, None, "2026-11-20", NAME)
    assert path.startswith("date=2026-11-20/")
    assert FilePath.parse(path).symbol is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "part-0000000000012345-00000007-5f3a.parquet",
        "symbol=MNQ/part-0000000000012345-00000007-5f3a.parquet",
        "symbol=MNQ/date=2026-11-20/other-0000000000012345-00000007-5f3a.parquet",
        "symbol=MNQ/date=2026-11-20/part-12345-7-5f3a.parquet",
        "symbol=MNQ/date=2026-11-20/part-0000000000012345-00000007-5f3a.parquet.tmp",
        "symbol=MNQ/old/date=2026-11-20/part-0000000000012345-00000007-5f3a.parquet",
    ],
)
def test_a_path_of_another_make_is_refused(path: str) -> None:
    with pytest.raises(LakeError):
        FilePath.parse(path)


def test_a_file_of_a_table_by_symbol_needs_its_symbol() -> None:
    with pytest.raises(LakeError, match="partitioned by symbol"):
        layout.file_path(TICKS, None, "2026-11-20", NAME)


def test_days_are_partitions_of_dates_and_of_months() -> None:
    day = layout.first_day("2026-12-31")
    assert layout.partition_date(TICKS, day) == "2026-12-31"
    assert layout.partition_date(BARS, day) == layout.partition_date(SEGMENTS, day) == "2026-12"
    assert layout.first_day("2026-12") == day - 30
    assert layout.last_day("2026-12") == layout.last_day("2026-12-31") == day
    assert layout.DAY_US == DAY


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=str)
def test_every_dataset_has_a_schema_that_delta_takes(dataset: Dataset) -> None:
    schema = layout.lake_schema(dataset)
    assert len(set(schema.names)) == len(schema.names)
    assert set(dataset.partition_by) <= set(schema.names)
    assert set(dataset.schema.names) <= set(schema.names)
    assert not set(dataset.partition_by) & set(layout.file_schema(dataset).names)
    Schema.from_arrow(schema)


def test_rows_come_back_as_they_went() -> None:
    rows = tick_table(3, bid=[None, 1.0, 2.0], flags=[0, 1, 65_535])
    stored = layout.to_lake(rows, TICKS)
    assert stored["flags"].type == pa.int32()
    assert layout.from_lake(stored, TICKS, "MNQ").cast(TICKS.schema).equals(rows)


def test_a_file_without_a_newer_column_has_nulls_in_it() -> None:
    rows = tick_table(2).drop_columns(["condition"])
    back = layout.from_lake(layout.to_lake(rows, TICKS), TICKS, "MNQ")
    assert back["condition"].null_count == 2
