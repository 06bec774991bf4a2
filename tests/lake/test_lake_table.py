"""A table's commits: in order, durable, all or nothing, and readable without us."""

import contextlib
import errno
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from storage.errors import LakeCorruptError, LakeError, LakeFullError
from storage.lake import table as table_module
from storage.lake.layout import lake_schema
from storage.lake.row_hash import row_hash
from storage.lake.table import LakeTable
from storage.ports import SystemDisk
from storage.schemas import TICKS
from tests.lake.lake_making import (
    TODAY,
    FailingDisk,
    opened,
    tick_table,
    with_parts,
    written,
)
from tests.storage.conftest import NOON


def log_entry(root: Path, version: int) -> Path:
    return root / "_delta_log" / f"{version:020d}.json"


def state_of(table: LakeTable) -> tuple[object, ...]:
    return table.part, table.position, table.epoch, table.index.files


def test_a_table_that_was_never_written_is_empty(tmp_path: Path) -> None:
    table = opened(tmp_path / "ticks")
    assert state_of(table) == (0, 0, 0, ())
    assert table.parts() == []
    assert table.ledger() == {}
    assert not (tmp_path / "ticks").exists()


def test_the_next_life_finds_what_was_committed(tmp_path: Path) -> None:
    table = with_parts(tmp_path, [tick_table(3), tick_table(2, 4)])
    found = opened(tmp_path)
    assert state_of(found) == state_of(table)
    assert (found.part, found.position, found.epoch) == (2, 5, 1)
    file = next(file for file in found.index if file.part == 2)
    assert (file.symbol, file.date, file.source) == ("MNQ", TODAY, "demo")
    assert (file.rows, file.first, file.last, file.end) == (2, NOON + 4, NOON + 5, 5)


def test_the_log_tells_of_each_part_and_file(tmp_path: Path) -> None:
    parts = [tick_table(3), tick_table(2, 4)]
    table = with_parts(tmp_path, parts)
    records = table.parts()
    assert [(part.part, part.first, part.end, part.epoch) for part in records] == [
        (1, 0, 3, 1),
        (2, 3, 5, 1),
    ]
    assert [part.files[0].row_hash for part in records] == [row_hash(p, TICKS) for p in parts]
    assert [part.part for part in table.parts(after=1)] == [2]
    assert table.ledger() == {part.files[0].path: part.files[0] for part in records}


def test_parts_come_one_after_another(tmp_path: Path) -> None:
    table = with_parts(tmp_path, [tick_table(3)])
    file = written(table, tick_table(2, 4), 2, 5)
    for part, end in ((1, 5), (3, 5), (2, 2)):
        with pytest.raises(LakeError, match="can't follow"):
            table.commit_part(part, 3, end, 1, [file])
    table.commit_part(2, 3, 5, 1, [file])


def test_a_part_whose_rows_were_all_left_out_counts(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.commit_part(1, 0, 7, 3, [])
    found = opened(tmp_path)
    assert (found.part, found.position, found.epoch, len(found.index)) == (1, 7, 3, 0)
    assert [(part.part, part.files) for part in found.parts()] == [(1, ())]


def test_other_engines_read_what_was_written(tmp_path: Path) -> None:
    parts = [tick_table(3, bid=[None, 1.0, -0.0]), tick_table(4, 4, flags=[0, 1, 256, 511])]
    with_parts(tmp_path, parts)
    rows = pa.concat_tables(parts)
    expected = rows.append_column("date", pa.array([TODAY] * 7)).cast(
        lake_schema(TICKS).remove_metadata()
    )
    columns = ", ".join(expected.schema.names)
    names = expected.schema.names

    polars = pl.scan_delta(str(tmp_path)).sort("ts_event").select(names).collect()
    assert polars.rows() == [tuple(row.values()) for row in expected.to_pylist()]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(
            f"SELECT {columns} FROM read_parquet('{tmp_path}/symbol=*/date=*/*.parquet',"
            " hive_partitioning = true) ORDER BY ts_event"
        ).to_arrow_table()
    assert found.cast(expected.schema).to_pylist() == expected.to_pylist()


def test_files_are_replaced_in_one_commit(tmp_path: Path) -> None:
    table = with_parts(tmp_path, [tick_table(3), tick_table(2, 4)])
    before = table.index.files
    joined = written(table, tick_table(5), 3, 5)
    table.replace(before, [joined], transactions={"tickflight.test": 9}, same_rows=True)
    found = opened(tmp_path)
    assert [file.path for file in found.index] == [joined.path]
    assert found.counter("tickflight.test") == 9
    assert (found.part, found.position) == (2, 5)
    assert found.removed_since(0) == {file.path for file in before}
    assert found.removed_since(1 << 60) == set()
    assert all((tmp_path / file.path).exists() for file in before)
    assert len(found.parts()) == 2
    with pytest.raises(LakeError, match="no file"):
        found.replace(before, [])


def test_a_table_gains_the_columns_its_dataset_has_gained(tmp_path: Path) -> None:
    fields = [field for field in TICKS.schema if field.name != "condition"]
    older = replace(TICKS, schema=pa.schema(fields))
    table = opened(tmp_path, older)
    rows = tick_table(2).drop_columns(["condition"])
    table.commit_part(1, 0, 2, 1, [written(table, rows, 1, 2)])
    newer = opened(tmp_path)
    newer.commit_part(2, 2, 4, 1, [written(newer, tick_table(2, 3, condition="@"), 2, 4)])
    found = pl.scan_delta(str(tmp_path)).sort("ts_event").collect()
    assert found["condition"].to_list() == [None, None, "@", "@"]


def test_checkpoints_change_nothing_and_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "CHECKPOINT_COMMITS", 2)
    table = with_parts(tmp_path, [tick_table(2, 1 + 2 * n) for n in range(5)])
    checkpoints = list((tmp_path / "_delta_log").glob("*.checkpoint.parquet"))
    assert checkpoints
    assert state_of(opened(tmp_path)) == state_of(table)
    assert len(table.parts()) == 5
    for checkpoint in checkpoints:
        checkpoint.write_bytes(b"")
    assert state_of(opened(tmp_path)) == state_of(table)
    assert not list((tmp_path / "_delta_log").glob("*.checkpoint.parquet"))


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -20])
def test_a_commit_that_was_cut_off_by_a_power_failure_never_was(tmp_path: Path, cut: int) -> None:
    table = with_parts(tmp_path, [tick_table(3)])
    before = state_of(table)
    file = written(table, tick_table(2, 4), 2, 5)
    table.commit_part(2, 3, 5, 1, [file])
    entry = log_entry(tmp_path, 1)
    content = entry.read_bytes()
    for torn in (content[:cut], content[:cut].ljust(len(content), b"\0")):
        entry.write_bytes(torn)
        found = opened(tmp_path)
        assert state_of(found) == before
    found.commit_part(2, 3, 5, 2, [file])
    assert state_of(opened(tmp_path))[:3] == (2, 5, 2)


def test_a_commit_cut_off_after_a_whole_action_never_was(tmp_path: Path) -> None:
    table = with_parts(tmp_path, [tick_table(3)])
    table.commit_part(2, 3, 5, 1, [written(table, tick_table(2, 4), 2, 5)])
    entry = log_entry(tmp_path, 1)
    lines = entry.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    for kept in range(len(lines)):
        entry.write_bytes(b"".join(lines[:kept]))
        assert opened(tmp_path).part == 1


def test_an_entry_that_was_damaged_later_is_named(tmp_path: Path) -> None:
    with_parts(tmp_path, [tick_table(2, 1 + 2 * n) for n in range(3)])
    entry = log_entry(tmp_path, 1)
    entry.write_bytes(entry.read_bytes().replace(b'{"add"', b'{"ad"', 1)[:-3])
    with pytest.raises(LakeCorruptError, match="_delta_log"):
        opened(tmp_path).parts()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call_of_a_commit_leaves_all_or_nothing(
    tmp_path: Path, code: int
) -> None:
    def life(root: Path, disk: FailingDisk) -> LakeTable:
        table = opened(root, disk=disk)
        for part in (table.part + 1, table.part + 2):
            end = 2 * part
            rows = tick_table(2, end - 1)
            file = written(table, rows, part, end, disk=disk)
            table.commit_part(part, end - 2, end, 1, [file])
        return table

    counting = FailingDisk()
    life(tmp_path / "whole", counting)
    kinds: set[type[LakeError]] = set()
    for failing in range(1, counting.calls + 1):
        root = tmp_path / str(failing)
        with pytest.raises(LakeError) as caught:
            life(root, FailingDisk(failing=failing, code=code))
        kinds.add(type(caught.value))
        found = opened(root)
        assert found.part in (0, 1, 2)
        assert found.position == 2 * found.part == sum(file.rows for file in found.index)
        assert all((root / file.path).exists() for file in found.index)
        again = life(root, FailingDisk())
        assert sum(file.rows for file in again.index) == again.position
    assert kinds == {LakeFullError if code == errno.ENOSPC else LakeError}


def test_a_commit_whose_sync_failed_is_there_once_the_table_is_read_again(tmp_path: Path) -> None:
    disk = FailingDisk()
    table = opened(tmp_path, disk=disk)
    table.commit_part(1, 0, 1, 1, [])
    disk.failing = disk.calls + 1
    with pytest.raises(LakeError, match="was to fail"):
        table.commit_part(2, 1, 2, 1, [])
    assert disk.made[-1] == "sync"
    assert table.part == 1
    disk.made.clear()
    table.refresh()
    assert table.part == 2
    assert disk.made == [
        "create",
        "sync",
        "rename",
        "sync_directory",
    ]  # a copy, for it was in doubt


def test_the_log_is_synced_by_every_commit(tmp_path: Path) -> None:
    disk = FailingDisk()
    table = opened(tmp_path, disk=disk)
    table.commit_part(1, 0, 1, 1, [])
    disk.made.clear()
    table.commit_part(2, 1, 2, 1, [])
    assert disk.made == ["sync", "sync_directory"]


def test_statistics_are_exact_to_the_microsecond(tmp_path: Path) -> None:
    instants = [999_999, 86_399_999_999]
    table = opened(tmp_path)
    file = written(table, tick_table(2, ts_event=instants), 1, 2, date="1970-01-01")
    table.commit_part(1, 0, 2, 1, [file])
    (found,) = opened(tmp_path).index
    assert [found.first, found.last] == instants
    (line,) = (line for line in log_entry(tmp_path, 0).read_text().splitlines() if '"add"' in line)
    statistics = json.loads(json.loads(line)["add"]["stats"])
    assert statistics["minValues"]["ts_event"] == "1970-01-01T00:00:00.999999Z"


def test_a_table_that_somebody_else_keeps_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_delta(str(tmp_path))
    with pytest.raises(LakeError, match="not the path of a data file"):
        opened(tmp_path)
    assert SystemDisk().size(log_entry(tmp_path, 0)) > 0


@pytest.mark.root
def test_a_commit_on_a_full_disk_did_not_take_place(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mounted], check=True)
    try:
        root, ballast = mounted / "ticks", mounted / "ballast"
        with_parts(root, [tick_table(3)])
        table = opened(root)
        file = written(table, tick_table(2, 4), 2, 5)
        with ballast.open("wb", buffering=0) as blocks, contextlib.suppress(OSError):
            while True:
                blocks.write(bytes(4096))
        with pytest.raises(LakeFullError):
            table.commit_part(2, 3, 5, 1, [file])
        ballast.unlink()
        table.refresh()
        assert (table.part, len(table.index)) == (1, 1)
        table.commit_part(2, 3, 5, 1, [file])
        assert opened(root).position == 5
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)
