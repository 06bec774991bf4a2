"""The bars beside the ticks of a lake are those of its ticks, whatever came when."""

import errno
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import bars_keeper
from storage.errors import LakeCorruptError, LakeError
from storage.lake.files import FileKind
from storage.lake.table import TICKS_PART
from storage.schemas import Flag, Kind
from tests.bars.bar_lake import BarLake
from tests.bars.conftest import DAY, MIDNIGHT, MINUTE, TICKS, Bar, Tick, model_bars
from tests.lake.lake_making import FailingDisk

NUMBERS = itertools.count()
PARTS = st.lists(
    st.tuples(
        st.lists(TICKS, max_size=12),
        st.sampled_from([FileKind.PART, FileKind.BULK]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lakes")


@pytest.fixture
def lake(tmp_path: Path) -> BarLake:
    return BarLake(tmp_path)


def tick(second: float, **fields: Any) -> Tick:
    plain = Tick(0, "A", "best", "Z6", 1, Kind.NEW, 10.0, 1.0, 0, int(Flag.VALID_TICK))
    return replace(plain, ts=MIDNIGHT + int(second * 1e6), **fields)


def model(rows: list[Tick]) -> list[Bar]:
    return model_bars(
        rows, lambda ts: ts // MINUTE * MINUTE, apart=lambda row: (row.symbol, row.source)
    )


@given(PARTS)
@settings(max_examples=20)
def test_bars_follow_any_parts_in_any_order_through_any_restart(
    directory: Path, parts: list[tuple[list[Tick], FileKind, bool]]
) -> None:
    lake = BarLake(directory / str(next(NUMBERS)))
    told: list[Tick] = []
    for rows, kind, crashes in parts:
        files = lake.commit(rows, kind)
        told += rows
        if crashes:
            lake.open()
        else:
            lake.keeper.after_part("ticks", files)
            assert lake.kept() == model(told)
    lake.keeper.catch_up()
    assert lake.kept() == model(told)
    assert lake.keeper.part == lake.ticks.part == len(parts)


def test_a_correction_that_comes_hours_later_mends_its_minute(lake: BarLake) -> None:
    first, last = tick(1, sequence=1), tick(2, sequence=2, price=11.0)
    lake.commit([first, last])
    lake.commit([tick(7200, sequence=3)])
    lake.keeper.catch_up()
    lake.commit([replace(last, kind=Kind.CORRECTION, price=8.0)])
    lake.keeper.catch_up()
    bar, _ = lake.kept()
    assert (bar.open, bar.low, bar.close, bar.trades) == (10.0, 8.0, 8.0, 2)


def test_a_minute_whose_trades_are_all_cancelled_loses_its_bar(lake: BarLake) -> None:
    lake.commit([tick(1)])
    lake.keeper.catch_up()
    assert len(lake.kept()) == 1
    lake.commit([tick(1, kind=Kind.CANCEL)])
    lake.keeper.catch_up()
    assert lake.kept() == []
    assert len(lake.bars.index) == 0
    assert lake.keeper.part == 2


def test_a_symbol_month_and_source_is_one_file_replaced_as_a_whole(lake: BarLake) -> None:
    for day in range(3):
        rows = [tick(day * 86_400), tick(day * 86_400, symbol="B")]
        lake.commit([*rows, replace(rows[1], source="good")])
        lake.keeper.catch_up()
    assert sorted((file.symbol, file.source, file.rows, file.part) for file in lake.bars.index) == [
        ("A", "best", 3, 3),
        ("B", "best", 3, 3),
        ("B", "good", 3, 3),
    ]
    assert {(file.kind, file.end) for file in lake.bars.index} == {(FileKind.BARS, 0)}


def test_months_that_a_part_does_not_touch_are_left_alone(lake: BarLake) -> None:
    lake.commit([tick(0)])
    lake.keeper.catch_up()
    (old,) = lake.bars.index
    lake.commit([replace(tick(0), ts=MIDNIGHT + 40 * DAY)])
    lake.keeper.catch_up()
    assert old in tuple(lake.bars.index)
    assert len(lake.bars.index) == 2


def test_parts_of_other_datasets_are_not_followed(lake: BarLake) -> None:
    lake.commit([tick(0)])
    lake.keeper.after_part("quotes", ())
    assert lake.keeper.part == 0
    assert lake.shown == []


def test_a_part_without_rows_counts(lake: BarLake) -> None:
    lake.commit([])
    lake.keeper.catch_up()
    assert lake.bars.counter(TICKS_PART) == 1


def test_what_is_done_is_not_done_again(lake: BarLake) -> None:
    lake.commit([tick(0)])
    lake.keeper.catch_up()
    version = lake.bars.index.version
    lake.keeper.catch_up()
    lake.open()
    lake.keeper.catch_up()
    assert lake.bars.index.version == version
    assert lake.shown == [version]


def test_bars_of_many_ticks_are_made_by_a_process_of_their_own(
    lake: BarLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars_keeper, "HERE_ROWS_MAX", 0)
    monkeypatch.setattr(bars_keeper, "make_bars", None)
    told = [tick(0), tick(30, symbol="B", sequence=2), tick(90, sequence=3)]
    lake.commit(told)
    lake.keeper.catch_up()
    told.append(replace(told[0], kind=Kind.CANCEL))
    lake.commit(told[-1:])
    lake.keeper.catch_up()
    assert lake.kept() == model(told)
    assert lake.keeper.part == 2


def test_such_a_process_tells_which_file_is_damaged(
    lake: BarLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars_keeper, "HERE_ROWS_MAX", 0)
    (file,) = lake.commit([tick(0)])
    path = lake.ticks.root / file.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LakeCorruptError, match="lake verify") as raised:
        lake.keeper.catch_up()
    assert raised.value.path == path


def test_whichever_call_of_the_disk_fails_the_next_attempt_mends_it(tmp_path: Path) -> None:
    rows = [[tick(0)], [tick(1, sequence=2), tick(90, sequence=3), tick(0, symbol="B")]]
    for failing in itertools.count(1):
        disk = FailingDisk(code=errno.EIO)
        lake = BarLake(tmp_path / str(failing), disk)
        lake.commit(rows[0])
        lake.keeper.catch_up()
        lake.commit(rows[1])
        disk.failing = disk.calls + failing
        try:
            lake.keeper.catch_up()
        except LakeError:
            lake.keeper.catch_up()
        assert lake.kept() == model([row for part in rows for row in part])
        is_last, disk.failing = disk.calls < disk.failing, 0
        lake.open()
        assert lake.keeper.part == 2
        if is_last:
            break
    assert failing > 5
