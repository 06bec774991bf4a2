"""Compaction: the same rows in one file, or nothing has changed."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import child_process
from storage.errors import LakeCorruptError, LakeError
from storage.lake import layout
from storage.lake.compaction import Joined, JoinTask, compact, groups_to_join, join
from storage.lake.files import FileKind
from storage.lake.merging import merged
from storage.lake.row_hash import row_hash
from storage.lake.table import LakeTable
from storage.lake.total_order import sorted_rows
from storage.lake.writer import WrittenFile, verified_rows
from storage.ports import SystemDisk
from storage.schemas import QUARANTINE, TICKS
from tests.lake.lake_making import (
    FailingDisk,
    opened,
    table_of,
    tick_table,
    with_parts,
    written,
)
from tests.storage.conftest import NOON, rows_of


def here(task: JoinTask) -> WrittenFile:
    return join(task, SystemDisk())


def compacted(table: LakeTable, base: int | None = None) -> list[Joined]:
    end = table.position if base is None else base
    return list(compact(table, end, here, lambda _: None))


def rows_in(table: LakeTable) -> pa.Table:
    pieces = [
        layout.from_lake(rows, table.dataset, file.symbol).cast(table.dataset.schema)
        for file in table.index
        for rows in verified_rows(table.root / file.path, table.dataset)
    ]
    return pa.concat_tables(pieces)


def overlapping_parts() -> list[pa.Table]:
    """Return parts whose rows lie between each other's."""
    rows = tick_table(900)
    numbers = random.Random(3).sample(range(900), 900)
    return [rows.take(sorted(numbers[start : start + 300])) for start in (0, 300, 600)]


def test_the_files_of_a_day_become_one_with_the_same_rows(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    newest_came = max(table.came(file) for file in table.index)
    (done,) = compacted(table)
    assert (done.files, done.rows, done.symbol) == (3, 900, "MNQ")
    (file,) = table.index
    assert (file.kind, file.end, file.part) == (FileKind.COMPACT, 900, 3)
    assert rows_in(table).equals(tick_table(900))
    assert opened(tmp_path / "ticks").index.files == (file,)
    assert table.came(file) == newest_came
    assert pl.read_delta(str(tmp_path / "ticks")).height == 900


def test_compacting_again_changes_nothing(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    compacted(table)
    index = table.index
    assert compacted(table) == []
    assert table.index is index


def test_a_joined_file_is_joined_with_what_comes_later(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts()[:2])
    compacted(table)
    file = written(table, overlapping_parts()[2], 3, 900)
    table.commit_part(3, 600, 900, 1, [file])
    compacted(table)
    assert len(table.index) == 1
    assert rows_in(table).equals(tick_table(900))


def test_files_that_memory_still_has_rows_of_are_left_alone(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    assert compacted(table, base=300) == []
    (done,) = compacted(table, base=600)
    assert done.files == 2
    assert sorted(file.end for file in table.index) == [600, 900]


def test_symbols_dates_and_sources_stay_apart(tmp_path: Path) -> None:
    table = opened(tmp_path / "ticks")
    part = 0
    for source in ("demo", "sierra", "demo", "sierra"):
        for symbol in ("MNQ", "NQ"):
            part += 1
            rows = tick_table(2, 10 * part, source=source, symbol=symbol)
            file = written(table, rows, part, 2 * part, symbol=symbol)
            table.commit_part(part, 2 * part - 2, 2 * part, 1, [file])
    assert len(compacted(table)) == 4
    found = sorted((str(file.symbol), str(file.source)) for file in table.index)
    assert found == [("MNQ", "demo"), ("MNQ", "sierra"), ("NQ", "demo"), ("NQ", "sierra")]


def test_bars_are_not_joined(tmp_path: Path) -> None:
    table = opened(tmp_path / "ticks")
    files = [
        written(table, tick_table(2, n), n, 0, kind=kind)
        for n, kind in ((1, FileKind.BARS), (2, FileKind.BARS), (3, FileKind.PART))
    ]
    table.replace([], files)
    assert groups_to_join(table.index, TICKS) == []


def test_rows_without_a_symbol_are_joined_by_date(tmp_path: Path) -> None:
    table = opened(tmp_path / "quarantine", QUARANTINE)
    for part, (symbol, source) in enumerate([("NQ", "a"), (None, None), ("MNQ", "b")], start=1):
        columns = {"ts_event": NOON + part, "ts_recv": NOON, "symbol": symbol, "source": source}
        batch = rows_of(QUARANTINE, 1, {**columns, "dataset": "d", "reason": "r", "payload": "{}"})
        rows = table_of(batch, dataset=QUARANTINE)
        file = written(table, rows, part, part, symbol=None)
        table.commit_part(part, part - 1, part, 1, [file])
    compacted(table)
    assert rows_in(table)["symbol"].to_pylist() == ["MNQ", "NQ", None]


def test_rows_that_are_equal_in_the_order_stay_as_they_came(tmp_path: Path) -> None:
    parts = [
        tick_table(2, ts_event=[NOON] * 2, sequence=[1] * 2, price=[n, n + 0.5])
        for n in (3.0, 1.0, 2.0)
    ]
    table = with_parts(tmp_path / "ticks", parts)
    compacted(table)
    assert rows_in(table)["price"].to_pylist() == [3.0, 3.5, 1.0, 1.5, 2.0, 2.5]


def test_a_child_joins_as_well(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    stop = threading.Event()
    list(compact(table, 900, lambda task: child_process.join(task, stop), lambda _: None))
    assert rows_in(table).equals(tick_table(900))


def test_a_damaged_file_is_named_and_nothing_is_replaced(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    before = table.index
    damaged = table.root / before.files[1].path
    content = bytearray(damaged.read_bytes())
    content[200] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(LakeCorruptError, match=damaged.name):
        compacted(table)
    assert table.index is before
    assert {path.name for path in damaged.parent.iterdir()} == {
        Path(file.path).name for file in before
    }


def test_a_file_exchanged_for_another_is_noticed(tmp_path: Path) -> None:
    table = with_parts(tmp_path / "ticks", overlapping_parts())
    one, other, _ = (table.root / file.path for file in table.index)
    one.write_bytes(other.read_bytes())
    with pytest.raises(LakeCorruptError, match="other rows than were committed"):
        compacted(table)
    assert len(table.index) == 3


def test_a_disk_that_fails_at_any_call_changes_nothing_or_joins_all(tmp_path: Path) -> None:
    def life(root: Path, disk: FailingDisk) -> None:
        with_parts(root, overlapping_parts())
        table = opened(root)
        table._disk = table._log._disk = disk
        list(compact(table, 900, lambda task: join(task, disk), lambda _: None))

    counting = FailingDisk()
    life(tmp_path / "whole" / "ticks", counting)
    assert counting.calls > 5
    for failing in range(1, counting.calls + 1):
        root = tmp_path / str(failing) / "ticks"
        with pytest.raises(LakeError):
            life(root, FailingDisk(failing=failing))
        table = opened(root)
        assert len(table.index) in (1, 3)
        assert sorted_rows(rows_in(table), TICKS).equals(tick_table(900))
        compacted(table)
        assert len(table.index) == 1


parts_of_rows = st.lists(st.lists(st.integers(0, 30), max_size=25), min_size=1, max_size=4)


@given(parts_of_rows, st.integers(1, 6))
def test_merging_piece_by_piece_is_sorting_all_at_once(parts: list[list[int]], size: int) -> None:
    def table(instants: list[int], part: int) -> pa.Table:
        count = len(instants)
        sizes = [float(n + 100 * part) for n in range(count)]
        columns = {"ts_event": sorted(instants), "sequence": [1] * count, "size": sizes}
        return tick_table(count, 1, **columns)

    def pieces(rows: pa.Table) -> Iterator[pa.Table]:
        for start in range(0, rows.num_rows, size):
            yield rows.slice(start, size)

    tables = [table(instants, part) for part, instants in enumerate(parts)]
    whole = sorted_rows(pa.concat_tables(tables), TICKS)
    found = list(merged([pieces(rows) for rows in tables], TICKS))
    joined = pa.concat_tables(found) if found else whole.slice(0, 0)
    assert joined.equals(whole)
    assert row_hash(joined, TICKS) == row_hash(whole, TICKS)
