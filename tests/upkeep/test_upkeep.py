"""Upkeep: dates are joined, dropped and cleaned away, and readers never notice."""

import os
import threading
from dataclasses import replace

import pytest

from storage import store as store_module
from storage.errors import LakeError, RetentionError, StoreClosedError
from storage.lake import table as table_module
from storage.lake.compaction import JoinTask
from storage.lake.files import FileKind
from storage.lake.writer import WrittenFile
from storage.rollover_parts import State
from storage.selection import Selection
from storage.store import Store
from tests.lake.lake_making import opened
from tests.storage.conftest import FOREVER, HOUR, read, send, stored, until
from tests.upkeep.conftest import (
    DAY,
    KEPT,
    LakeLab,
    dated,
    files_on_disk,
    join_here,
    roll,
    rolled,
    sequences,
)

LONG_AGO = 40 * DAY


def told(store: Store) -> list[str]:
    """What the lake has told of itself."""
    rows = stored(store, "service_events")
    return [row["event"] for row in rows if row["service"] == "lake"]


class TestCompaction:
    def test_the_files_of_a_past_day_become_one(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1, 2), dated(yesterday, 3), dated(yesterday, 4))
        (would,) = [one for one in store.upkeep.joinable() if one.dataset == "ticks"]
        (done,) = store.upkeep.compact("ticks")
        assert (would.files, would.rows, would.bytes) == (3, 4, None)
        assert replace(done, bytes=None) == would
        (file,) = store.published.lake["ticks"]
        assert file.kind is FileKind.COMPACT
        assert sequences(store) == [1, 2, 3, 4]
        assert store.upkeep.joinable("ticks") == []

    def test_the_running_day_is_left_alone(self, lab: LakeLab, store: Store) -> None:
        rolled(lab, store, dated(lab.midnight, 1), dated(lab.midnight, 2))
        assert store.upkeep.compact("ticks") == []
        lab.clock.instant += DAY
        assert len(store.upkeep.compact("ticks")) == 1

    def test_rows_that_come_late_are_joined_later(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        store.upkeep.compact()
        rolled(lab, store, dated(yesterday, 3))
        (done,) = store.upkeep.compact("ticks")
        assert (done.files, done.rows) == (2, 3)
        assert sequences(store) == [1, 2, 3]

    def test_rows_that_memory_still_has_are_left_alone(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1))
        send(store, dated(yesterday, 2))
        number = store._journal.roll()
        until(lambda: store._segments.newest >= number)
        store.rollover.step()
        assert len(store.tables["ticks"].index) == 2
        assert store.upkeep.compact("ticks") == []
        assert sequences(store) == [1, 2]

    def test_a_snapshot_of_before_reads_on(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        before = store.snapshot()
        answer = before.range("ticks", Selection(source="all"), 0, FOREVER)
        store.upkeep.compact()
        lab.clock.instant += 10 * DAY
        store.upkeep.vacuum()
        assert [row["sequence"] for row in read(answer)] == [1, 2]

    def test_what_cannot_be_joined_is_told_and_the_rest_is_joined(
        self, lab: LakeLab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def moody(task: JoinTask, stop: threading.Event) -> WrittenFile:
            if "symbol=A" in task.path:
                raise LakeError("the process that writes the lake died: by the test")
            return join_here(task, stop)

        monkeypatch.setattr(store_module, "join", moody)
        store = lab.open()
        yesterday = lab.midnight - DAY
        for n in (1, 2):
            rolled(lab, store, dated(yesterday, n, symbol="A"), dated(yesterday, n, symbol="B"))
        with pytest.raises(LakeError, match="by the test"):
            store.upkeep.compact("ticks")
        assert len(store.published.lake["ticks"].of_symbol("B")) == 1
        status = store.upkeep.status
        assert (status.state, status.since) == (State.DEGRADED, lab.clock.instant)
        assert "compaction failed" in status.detail
        until(lambda: told(store) == ["degraded"])

    def test_a_damaged_file_is_named_and_not_tried_again(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        path = store.lake_directory / "ticks" / store.published.lake["ticks"].files[0].path
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        assert store.upkeep.compact("ticks") == []
        (damage,) = store.upkeep.status.damaged
        assert path.name in damage.report.path
        assert store.upkeep.joinable("ticks") == []
        content[200] ^= 1
        path.write_bytes(content)
        store.upkeep.verify()
        assert store.upkeep.status.damaged == ()
        assert len(store.upkeep.compact("ticks")) == 1


class TestRetention:
    def test_dates_go_once_they_and_their_rows_are_old(self, lab: LakeLab, store: Store) -> None:
        rolled(lab, store, dated(lab.midnight - LONG_AGO, 1), dated(lab.midnight + 5 * DAY, 2))
        assert store.upkeep.retain("ticks") == []  # it was imported just now
        lab.clock.instant += KEPT - 2 * HOUR
        assert store.upkeep.expired("ticks") == []
        lab.clock.instant += DAY
        send(store, dated(lab.clock.instant, 3))
        (would,) = store.upkeep.expired("ticks")
        assert (would.rows, would.symbol, would.files) == (1, "MNQ", 1)
        assert sequences(store) == [1, 2, 3]
        assert store.upkeep.retain("ticks") == [would]
        assert sequences(store) == [2, 3]
        assert opened(store.lake_directory / "ticks").index.retained_from > 0

    def test_what_was_dropped_is_answered_by_name(self, lab: LakeLab, store: Store) -> None:
        first = lab.midnight
        rolled(lab, store, dated(first, 1), dated(first + DAY, 2))
        chosen = Selection(source="all")
        lab.clock.instant += KEPT + DAY
        assert len(read(store.snapshot().range("ticks", chosen, first - DAY, FOREVER))) == 2
        assert len(store.upkeep.retain("ticks")) == 1
        with pytest.raises(RetentionError) as caught:
            store.snapshot().range("ticks", chosen, first, FOREVER)
        assert caught.value.oldest == first + DAY
        rows = read(store.snapshot().range("ticks", chosen, first + DAY, FOREVER))
        assert [row["sequence"] for row in rows] == [2]

    def test_nothing_moves_where_nothing_is_dropped(self, lab: LakeLab, store: Store) -> None:
        rolled(lab, store, dated(lab.midnight, 1))
        version = store.tables["ticks"].index.version
        assert store.upkeep.retain() == []
        index = store.published.lake["ticks"]
        assert (index.version, index.retained_from) == (version, 0)

    def test_a_date_with_one_late_row_stays_whole(self, lab: LakeLab, store: Store) -> None:
        day = lab.midnight
        rolled(lab, store, dated(day, 1), dated(day, 2))
        store.tables["ticks"].came = lambda file: (  # type: ignore[method-assign]
            lab.clock.instant if file.part == 2 else 0
        )
        lab.clock.instant += KEPT + 2 * DAY
        assert store.upkeep.retain("ticks") == []
        assert sequences(store) == [1, 2]

    def test_the_watermark_survives_a_restart(self, lab: LakeLab, store: Store) -> None:
        rolled(lab, store, dated(lab.midnight, 1), dated(lab.midnight + 3 * DAY, 2))
        lab.clock.instant += KEPT + DAY
        store.upkeep.retain()
        watermark = store.published.lake["ticks"].retained_from
        assert watermark == (lab.clock.instant - KEPT) // DAY * DAY
        store = lab.reopen(store)
        assert store.published.lake["ticks"].retained_from == watermark


class TestVacuum:
    def test_what_was_replaced_goes_after_a_day(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        store.upkeep.compact()
        assert len(files_on_disk(store)) == 3
        assert store.upkeep.vacuum("ticks") == []
        lab.clock.instant += 2 * DAY
        assert len(store.upkeep.left_over("ticks")) == 2
        gone = store.upkeep.vacuum("ticks")
        assert [file.why.value for file in gone] == ["replaced"] * 2
        assert files_on_disk(store) == {file.path for file in store.tables["ticks"].index}
        assert sequences(store) == [1, 2]

    def test_a_file_that_a_snapshot_sees_stays(self, lab: LakeLab, store: Store) -> None:
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        snapshot = store.snapshot()
        store.upkeep.compact()
        lab.clock.instant += 10 * DAY
        assert store.upkeep.vacuum("ticks") == []
        del snapshot
        assert len(store.upkeep.vacuum("ticks")) == 2

    def test_left_overs_go_and_what_is_not_ours_stays(self, lab: LakeLab, store: Store) -> None:
        rolled(lab, store, dated(lab.midnight, 1))
        (file,) = store.tables["ticks"].index
        path = store.lake_directory / "ticks" / file.path
        fresh = path.with_name("part-0000000000000009-00000009-fresh.parquet.tmp")
        foreign = path.with_name("notes.parquet")
        name = "part-0000000000000009-00000009-dead.parquet"
        dead = [path.with_name(name), path.with_name(f"{name}.tmp")]
        commit = store.lake_directory / "ticks" / "_delta_log" / "_commit_dead.json.tmp"
        for each in (fresh, foreign, *dead, commit):
            each.write_bytes(b"x")
            old = 0 if each == fresh else 3 * DAY
            at = (lab.clock.instant - old) / 1_000_000
            os.utime(each, (at, at))
        gone = {file.path.rpartition("/")[2] for file in store.upkeep.vacuum("ticks")}
        assert gone == {*(each.name for each in dead), commit.name}
        assert all(each.exists() for each in (fresh, foreign, path))

    def test_old_checkpoints_go(
        self, lab: LakeLab, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_module, "CHECKPOINT_COMMITS", 1)
        rolled(lab, store, *(dated(lab.midnight, n) for n in range(1, 6)))
        log = store.lake_directory / "ticks" / "_delta_log"
        before = sorted(path.name for path in log.glob("*.checkpoint.parquet"))
        assert len(before) > 2
        lab.clock.instant += 3 * DAY
        store.upkeep.vacuum("ticks")
        assert sorted(path.name for path in log.glob("*.checkpoint.parquet")) == before[-2:]
        assert sequences(lab.reopen(store)) == [1, 2, 3, 4, 5]


class TestThread:
    def test_daily_tasks_wait_until_the_day_has_left_memory(
        self, lab: LakeLab, store: Store
    ) -> None:
        store.upkeep._next = 0.0
        store.upkeep.step()
        assert store.upkeep.status.upkept == lab.clock.instant
        first = lab.clock.instant
        rolled(lab, store, dated(lab.midnight, 1), dated(lab.midnight, 2))
        lab.clock.instant = lab.midnight + DAY + HOUR
        store.upkeep.step()
        assert store.upkeep.status.upkept == first
        lab.clock.instant += HOUR
        store.upkeep.step()
        assert store.upkeep.status.upkept == lab.clock.instant
        assert len(store.published.lake["ticks"]) == 1

    def test_a_failure_is_tried_again_and_told_when_it_is_over(
        self, lab: LakeLab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = True

        def moody(task: JoinTask, stop: threading.Event) -> WrittenFile:
            if broken:
                raise LakeError("by the test")
            return join_here(task, stop)

        monkeypatch.setattr(store_module, "join", moody)
        store = lab.open()
        yesterday = lab.midnight - DAY
        rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
        store.upkeep._next = 0.0
        store.upkeep.step()
        assert store.upkeep.status.detail == "compaction failed: by the test"
        assert store.upkeep.status.upkept is None
        store.upkeep.step()  # not before its time
        assert store.upkeep.status.upkept is None
        broken = False
        store.upkeep._next = 0.0
        store.upkeep.step()
        assert store.upkeep.status.state is State.RUNNING
        until(lambda: told(store) == ["degraded", "running"])

    def test_it_ends_with_the_store(self, lab: LakeLab, store: Store) -> None:
        store.upkeep.start()
        lab.close(store)
        assert not store.upkeep._thread.is_alive()
        with pytest.raises(StoreClosedError):
            store.upkeep.compact()

    def test_damage_is_noticed_by_itself_and_survives_a_restart(
        self, lab: LakeLab, store: Store
    ) -> None:
        rolled(lab, store, dated(lab.midnight, 1, 2), dated(lab.midnight, 3))
        path = store.lake_directory / "ticks" / store.published.lake["ticks"].files[1].path
        path.write_bytes(path.read_bytes()[:-1])
        store.upkeep._next_slice = 0.0
        store.upkeep.step()
        status = store.upkeep.status
        assert status.state is State.DEGRADED
        assert path.name in status.detail
        roll(lab, store)
        again = lab.reopen(store)
        assert again.upkeep.status.damaged == status.damaged
        assert again.upkeep.status.since == status.since
