"""Data files: in order, readable by anybody, and whole or not there at all."""

import errno
import random
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import LakeCorruptError, LakeError, LakeFullError
from storage.lake.files import FileKind
from storage.lake.layout import FileName, from_lake
from storage.lake.row_hash import row_hash
from storage.lake.writer import (
    GROUP_ROWS,
    WrittenFile,
    file_digest,
    verified_rows,
    write_file,
    writing,
)
from storage.ports import Disk, SystemDisk
from storage.schemas import GEX, QUARANTINE, TICKS, Dataset
from tests.lake.lake_making import TODAY, FailingDisk, table_of, tick_table
from tests.storage.conftest import NOON, gamma, rows_of

NAME = FileName(FileKind.PART, 10, 1, "a")


def write(root: Path, rows: pa.Table, disk: Disk | None = None) -> WrittenFile:
    return write_file(root, TICKS, "MNQ", TODAY, rows, NAME, disk or SystemDisk())


def read(root: Path, file: WrittenFile, dataset: Dataset = TICKS) -> pa.Table:
    symbol = "MNQ" if "symbol" in dataset.partition_by else None
    rows = pa.concat_tables(verified_rows(root / file.path, dataset))
    return from_lake(rows, dataset, symbol).cast(dataset.schema)


def test_a_file_holds_the_rows_it_was_given_in_total_order(tmp_path: Path) -> None:
    rows = tick_table(500, bid=[None, 1.5] * 250, condition=["@", None] * 250)
    shuffled = rows.take(random.Random(1).sample(range(500), 500))
    file = write(tmp_path, shuffled)
    assert read(tmp_path, file).equals(rows)
    assert (file.rows, file.first, file.last, file.source) == (500, NOON + 1, NOON + 500, "demo")
    assert file.row_hash == row_hash(rows, TICKS)
    assert file.bytes == (tmp_path / file.path).stat().st_size
    assert file.digest == file_digest(tmp_path / file.path)


def test_rows_of_one_instant_are_ordered_by_contract_sequence_and_kind(tmp_path: Path) -> None:
    keys = [("b", 1, 0), ("a", 2, 1), ("a", 2, 0), ("B", 3, 0), ("a", 1, 0)]
    contracts, sequences, kinds = (list(column) for column in zip(*keys, strict=True))
    rows = tick_table(5, ts_event=[NOON] * 5, contract=contracts, sequence=sequences, kind=kinds)
    found = read(tmp_path, write(tmp_path, rows))
    columns = (found[name].to_pylist() for name in ("contract", "sequence", "kind"))
    assert list(zip(*columns, strict=True)) == sorted(keys)


def test_rows_that_are_equal_in_the_order_stay_as_they_came(tmp_path: Path) -> None:
    rows = tick_table(4, ts_event=[NOON] * 4, sequence=[1] * 4, price=[3.0, 1.0, 4.0, 2.0])
    assert read(tmp_path, write(tmp_path, rows))["price"].to_pylist() == [3.0, 1.0, 4.0, 2.0]


def test_rows_of_many_symbols_lie_symbol_by_symbol(tmp_path: Path) -> None:
    defaults = {"ts_recv": NOON, "dataset": "ticks", "reason": "r", "payload": "{}"}
    symbols = ["NQ", None, "MNQ", "NQ"]
    instants = [NOON + n for n in (3, 0, 2, 1)]
    batch = rows_of(QUARANTINE, 4, defaults, symbol=symbols, ts_event=instants)
    rows = table_of(batch, dataset=QUARANTINE)
    file = write_file(tmp_path, QUARANTINE, None, TODAY, rows, NAME, SystemDisk())
    found = read(tmp_path, file, QUARANTINE)
    assert found["symbol"].to_pylist() == ["MNQ", "NQ", "NQ", None]
    assert found["ts_event"].cast(pa.int64()).to_pylist() == [NOON + n for n in (2, 1, 3, 0)]


def test_lists_come_back_as_they_went(tmp_path: Path) -> None:
    kind = GEX.schema.field("strikes").type
    strikes = [[{"strike": 1.0, "gex_vol": 2.0, "gex_oi": None}] * n for n in (0, 1, 3)]
    batches = [gamma(strikes=pa.array([each], kind), ts_event=NOON + 1) for each in strikes]
    rows = table_of(*batches, gamma(ts_event=NOON + 2), dataset=GEX).replace_schema_metadata()
    file = write_file(tmp_path, GEX, "NQ_NDX", TODAY, rows, NAME, SystemDisk())
    stored = pa.concat_tables(verified_rows(tmp_path / file.path, GEX))
    assert from_lake(stored, GEX, "NQ_NDX").cast(GEX.schema).equals(rows)


def test_row_groups_are_of_the_size_that_engines_like(tmp_path: Path) -> None:
    path = f"symbol=MNQ/date={TODAY}/{NAME}"
    with writing(tmp_path, TICKS, path, SystemDisk()) as writer:
        for first in range(0, 2 * GROUP_ROWS, 50_000):
            writer.write(tick_table(50_000, first + 1))
        file = writer.finish()
    metadata = pq.ParquetFile(tmp_path / file.path).metadata
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [GROUP_ROWS, GROUP_ROWS, 250_000 - 2 * GROUP_ROWS]


def test_several_sources_in_one_file_are_no_source(tmp_path: Path) -> None:
    assert write(tmp_path, tick_table(2, source=["demo", "sierra"])).source is None


def test_a_file_without_rows_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="at least one row"):
        write(tmp_path, tick_table(0))
    assert files_below(tmp_path) == []


def test_any_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    rows = tick_table(300)
    file = write(tmp_path, rows)
    path = tmp_path / file.path
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(150):
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        assert file_digest(path) != file.digest
        try:
            found = read(tmp_path, file)
        except (LakeCorruptError, LakeError, pa.ArrowException):
            continue
        assert found.equals(rows)  # a bit that nobody reads


def files_below(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, LakeFullError), (errno.EIO, LakeError)])
def test_a_disk_that_fails_at_any_call_leaves_no_half_file(
    tmp_path: Path, code: int, error: type[LakeError]
) -> None:
    counting = FailingDisk()
    write(tmp_path / "whole", tick_table(10), counting)
    for failing in range(1, counting.calls + 1):
        root = tmp_path / str(failing)
        disk = FailingDisk(failing=failing, code=code)
        with pytest.raises(error):
            write(root, tick_table(10), disk)
        assert not [name for name in files_below(root) if name.endswith(".tmp")]
        # The next attempt has another token; with the same one, it takes the place.
        assert read(root, write(root, tick_table(10))).num_rows == 10


@pytest.mark.root
def test_a_full_disk_is_told_as_full_and_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], check=True)
    try:
        noise = [random.Random(n).random() for n in range(20_000)]
        with pytest.raises(LakeFullError):
            write(root, tick_table(20_000, price=noise))
        assert files_below(root) == []
        assert write(root, tick_table(10)).rows == 10
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
