"""Scrub: whatever became of a file, it is noticed, and the file is named."""

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import child_process
from storage.lake.log import LOG
from storage.lake.scrub import FileReport, ScrubTask, scrub
from storage.lake.table import LakeTable
from storage.lake.verified import NAME, Verified
from storage.ports import SystemDisk
from tests.lake.lake_making import opened, tick_table, with_parts, written


@pytest.fixture
def table(tmp_path: Path) -> LakeTable:
    return with_parts(tmp_path / "ticks", [tick_table(300, 1 + 300 * n) for n in range(3)])


def found(table: LakeTable) -> dict[str, str]:
    """What is wrong, by path."""
    reports = scrub(ScrubTask(str(table.root.parent), "ticks"))
    return {report.path: report.damage for report in reports if report.damage}


def path_of(table: LakeTable, number: int = 1) -> tuple[str, Path]:
    name = table.index.files[number].path
    return name, table.root / name


def test_files_as_they_were_written_are_in_order(table: LakeTable) -> None:
    reports = list(scrub(ScrubTask(str(table.root.parent), "ticks")))
    assert [report.path for report in reports[:1]] == [LOG]
    assert {(report.rows, report.damage) for report in reports[1:]} == {(300, None)}
    assert len(reports) == 4


def test_only_what_is_asked_for_is_read(table: LakeTable) -> None:
    name, _ = path_of(table)
    task = ScrubTask(str(table.root.parent), "ticks", (name, "symbol=X/date=gone"))
    assert [report.path for report in scrub(task)] == [LOG, name]


def test_a_table_that_is_not_there_has_nothing_to_report(tmp_path: Path) -> None:
    assert list(scrub(ScrubTask(str(tmp_path), "ticks"))) == []
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 7), at=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_is_found_and_named(table: LakeTable, bit: int, at: float) -> None:
    name, path = path_of(table)
    whole = path.read_bytes()
    content = bytearray(whole)
    content[int(at * len(content))] ^= 1 << bit
    path.write_bytes(content)
    damage = found(table)
    path.write_bytes(whole)
    assert damage == {name: "its bytes are not those that were committed"}


def test_a_file_that_is_cut_short_or_missing_is_named(table: LakeTable) -> None:
    name, path = path_of(table)
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes, and" in found(table)[name]
    path.unlink()
    assert found(table) == {name: "it is missing"}


def test_a_file_that_cannot_be_read_is_named(table: LakeTable) -> None:
    name, path = path_of(table)
    path.unlink()
    path.mkdir()
    assert found(table) == {name: "it can't be read: Is a directory"}


def test_a_file_in_the_place_of_another_is_noticed(table: LakeTable) -> None:
    (one, path), (other, there) = path_of(table, 0), path_of(table, 1)
    content = path.read_bytes()
    path.write_bytes(there.read_bytes())
    there.write_bytes(content)
    assert set(found(table)) == {one, other}


def test_a_file_that_the_log_tells_two_things_of_is_named(tmp_path: Path) -> None:
    table = opened(tmp_path / "ticks")
    file = written(table, tick_table(5), 1, 5)
    table.commit_part(1, 0, 5, 1, [file])
    entry = table.root / LOG / f"{0:020d}.json"
    entry.write_text(entry.read_text().replace('"rows":5', '"rows":6'))
    assert found(table) == {file.path: "the log says two different things about it"}


def test_a_log_that_cannot_be_read_is_named(table: LakeTable) -> None:
    entry = table.root / LOG / f"{1:020d}.json"
    entry.write_bytes(entry.read_bytes()[:-5])
    assert list(found(table)) == [LOG]
    name, _ = path_of(table)  # and nobody can tell what the files were meant to be
    reports = scrub(ScrubTask(str(table.root.parent), "ticks", (name,)))
    assert [report.path for report in reports if report.damage] == [LOG, name]


def test_nothing_is_changed_and_a_torn_entry_is_as_good_as_not_there(table: LakeTable) -> None:
    entry = table.root / LOG / f"{2:020d}.json"
    torn = entry.read_bytes()[:100]
    entry.write_bytes(torn)
    before = sorted(path.name for path in entry.parent.iterdir())
    reports = list(scrub(ScrubTask(str(table.root.parent), "ticks")))
    assert [report.damage for report in reports] == [None] * 3
    assert sorted(path.name for path in entry.parent.iterdir()) == before
    assert entry.read_bytes() == torn


def test_a_child_finds_the_same(table: LakeTable) -> None:
    name, path = path_of(table)
    path.write_bytes(path.read_bytes()[:-1])
    task = ScrubTask(str(table.root.parent), "ticks")
    assert child_process.scrub([task], threading.Event()) == list(scrub(task))
    assert name in found(table)


def test_a_task_larger_than_a_pipe_reaches_a_process_that_is_slow_to_start(
    table: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "STOP_POLL_SECONDS", 0.001)
    absent = tuple(f"{n:0100}" for n in range(2_000))
    task = ScrubTask(str(table.root.parent), "ticks", absent)
    assert child_process.scrub([task], threading.Event()) == list(scrub(task))


class TestVerified:
    def test_what_was_found_survives_a_restart(self, tmp_path: Path) -> None:
        known = Verified(tmp_path, SystemDisk())
        good = FileReport("ticks", "a", 1, 2)
        bad = FileReport("ticks", "b", 1, 2, "it is missing", "put it back")
        known.note([good, bad], 5)
        known.note([bad], 9)
        known.save()
        again = Verified(tmp_path, SystemDisk())
        (damage,) = again.damage
        assert (damage.since, damage.report) == (5, bad)
        assert [again.read_at("ticks", name) for name in "abc"] == [5, 9, 0]

    def test_a_file_that_is_in_order_again_is_no_damage(self, tmp_path: Path) -> None:
        known = Verified(tmp_path, SystemDisk())
        known.note([FileReport("ticks", "b", 1, 2, "it is missing", "put it back")], 5)
        known.note([FileReport("ticks", "b", 1, 2)], 6)
        assert known.damage == ()

    def test_files_that_are_gone_are_forgotten(self, tmp_path: Path) -> None:
        known = Verified(tmp_path, SystemDisk())
        known.note([FileReport("ticks", "b", 1, 2, "it is missing", "put it back")], 5)
        known.keep_only({"ticks": frozenset("a")})
        assert known.damage == ()
        assert known.read_at("ticks", "b") == 0

    def test_a_memory_that_cannot_be_read_is_begun_anew(self, tmp_path: Path) -> None:
        (tmp_path / NAME).write_text('{"read": [["ticks"]]')
        assert Verified(tmp_path, SystemDisk()).damage == ()
