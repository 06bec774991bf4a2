"""What came in an hour becomes a part of the lake, and leaves memory when its time is over."""

import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import bars_keeper, rollover
from storage import store as store_module
from storage.batched import BatchedState
from storage.errors import LakeCorruptError, LakeError, LakeFullError
from storage.journal_expiry import KEPT
from storage.lake.files import FileKind
from storage.lake.layout import FileName, table_root
from storage.lake.table import TICKS_PART, LakeTable
from storage.lake.writer import write_file
from storage.own_rows import PRODUCER_PREFIX
from storage.ports import SystemDisk
from storage.rollover_parts import State
from storage.rollover_task import RolloverResult, RolloverTask
from storage.schemas import TICKS
from storage.store import Store
from tests.rollover.conftest import in_lake, in_memory, visible, write_here
from tests.storage.conftest import HOUR, NOON, Lab, gamma, send, ticks, until


def numbered(*sequences: int, **columns: Any) -> pa.RecordBatch:
    instants = [NOON + sequence for sequence in sequences]
    return ticks(len(sequences), sequence=list(sequences), ts_event=instants, **columns)


def roll(store: Store) -> None:
    """End the running file and bring it into the lake."""
    number = store._journal.roll()
    until(lambda: store._segments.newest >= number)
    store.rollover.step()


def rows_of(store: Store, dataset: str) -> int:
    return store.datasets()[dataset].rows


class TestSteps:
    def test_a_part_is_committed_while_its_rows_stay_in_memory(self, store: Store) -> None:
        send(store, numbered(1, 2, 3))
        roll(store)
        table = store.tables["ticks"]
        assert (table.part, table.position, table.epoch) == (1, 3, store.epoch)
        assert in_memory(store) == [1, 2, 3]
        assert in_lake(store) == []

    def test_rows_leave_memory_once_the_hot_window_is_over(self, lab: Lab, store: Store) -> None:
        send(store, numbered(1, 2, 3))
        roll(store)
        lab.clock.instant += HOUR - 1
        send(store, numbered(4))
        store.rollover.step()
        assert in_memory(store) == [1, 2, 3, 4]
        lab.clock.instant += 1
        store.rollover.step()
        assert in_memory(store) == [4]
        assert in_lake(store) == [1, 2, 3]
        assert store.datasets()["ticks"].rows == 1

    def test_a_snapshot_of_before_still_reads_what_has_left(self, lab: Lab, store: Store) -> None:
        send(store, numbered(1, 2, 3))
        before = store.published
        roll(store)
        lab.clock.instant += HOUR
        store.rollover.step()
        assert len(store.published.lake["ticks"]) == 1
        assert len(before.lake["ticks"]) == 0
        assert before.hot["ticks"].end - before.hot["ticks"].base == 3

    def test_the_hour_ends_without_a_row_to_end_it(self, lab: Lab, store: Store) -> None:
        send(store, numbered(1))
        store.rollover.step()
        assert store.tables["ticks"].part == 0
        lab.clock.instant += HOUR
        store.rollover.step()
        until(lambda: len(store._segments) == 1)
        store.rollover.step()
        assert store.tables["ticks"].part == 1

    def test_every_dataset_with_rows_gets_a_part(self, store: Store) -> None:
        send(store, numbered(1))
        send(store, gamma(), dataset="gex")
        roll(store)
        parts = {name: table.part for name, table in store.tables.items() if table.part}
        assert parts == {"ticks": 1, "gex": 1}

    def test_a_part_is_told_once_in_the_ledger(self, lab: Lab, store: Store) -> None:
        send(store, numbered(1, 2, symbol=["A", "B"], contract=["A", "B"]))
        roll(store)
        until(lambda: rows_of(store, "segments") == 2)
        ledger = store.published.hot["segments"]
        assert isinstance(ledger, BatchedState)
        told = ledger.table(ledger.end)
        assert told["symbol"].to_pylist() == ["A", "B"]
        assert told["part"].to_pylist() == [1, 1]
        assert told["rows"].to_pylist() == [1, 1]
        roll(store)  # of the ledger itself, which is not told
        roll(store)
        assert rows_of(store, "segments") == 2
        assert store.tables["segments"].part == 1
        store = lab.reopen(store)
        roll(store)
        until(lambda: store.producers.durable(f"{PRODUCER_PREFIX}ticks") == 1)
        assert rows_of(store, "segments") == 2

    def test_synthetic_rows_stay_out_once_the_lake_has_real_ones(self, lab: Lab) -> None:
        lab_store = lab.open()
        send(lab_store, numbered(1, source="tastytrade"))
        roll(lab_store)
        send(lab_store, numbered(2, flags=1 << 8), numbered(3, symbol="ES", flags=1 << 8))
        roll(lab_store)
        lab.clock.instant += HOUR
        lab_store.rollover.step()
        assert sorted(in_lake(lab_store)) == [1, 3]

    def test_a_file_is_removed_a_day_after_the_lake_has_it(self, lab: Lab, store: Store) -> None:
        send(store, numbered(1))
        roll(store)
        lab.clock.instant += KEPT - 1
        store.rollover._parts.expiry.remove_old(lambda _: True)
        (segment,) = tuple(store._segments)
        assert segment.path.exists()
        lab.clock.instant += 1
        store.rollover.step()
        store.rollover._parts.expiry._next = 0.0
        store.rollover.step()
        assert not segment.path.exists()
        assert visible(store) == [1]
        assert visible(lab.reopen(store)) == [1]


class TestFailures:
    def test_a_full_disk_loses_nothing_and_is_told(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = threading.Event()
        full.set()

        def write(task: RolloverTask, stop: threading.Event) -> RolloverResult:
            if full.is_set():
                raise LakeFullError("no room for the lake")
            return write_here(task, stop)

        monkeypatch.setattr(store_module, "roll_over", write)
        monkeypatch.setattr(rollover, "RETRY_SECONDS_MIN", 0.01)
        store = lab.open()
        store.rollover.start()
        send(store, numbered(1, 2))
        number = store.rollover.begin(everything=True)
        until(lambda: store.rollover.status.state is State.DEGRADED)
        assert store.rollover.status.detail == "no room for the lake"
        assert store.rollover.status.oldest == NOON
        until(lambda: rows_of(store, "service_events") == 1)
        send(store, numbered(3))
        assert visible(store) == [1, 2, 3]
        full.clear()
        until(lambda: store.rollover.status.through >= number)
        until(lambda: store.rollover.status.state is State.RUNNING)
        until(lambda: rows_of(store, "service_events") == 2)
        assert store.tables["ticks"].position == 2
        assert visible(store) == [1, 2, 3]

    @pytest.mark.parametrize("after", ["before", "after"])
    def test_a_commit_that_fails_is_found_done_or_done_again(
        self, lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch, after: str
    ) -> None:
        commit = LakeTable._commit

        def fail_once(table: LakeTable, *arguments: Any, **more: Any) -> None:
            monkeypatch.setattr(LakeTable, "_commit", commit)
            if after == "after":
                commit(table, *arguments, **more)
            raise LakeError("the disk went away")

        monkeypatch.setattr(LakeTable, "_commit", fail_once)
        send(store, numbered(1, 2))
        with pytest.raises(LakeError):
            roll(store)
        store.rollover.step()
        assert store.tables["ticks"].part == 1
        lab.clock.instant += HOUR
        store.rollover.step()
        assert in_lake(store) == [1, 2]
        assert visible(store) == [1, 2]

    def test_rows_stay_in_memory_until_what_must_follow_has_followed(
        self, lab: Lab, store: Store
    ) -> None:
        followed: list[tuple[str, int]] = []

        def follow(dataset: str, files: object) -> None:
            followed.append((dataset, len(list(files))))  # type: ignore[call-overload]
            if len(followed) == 1:
                raise LakeError("bars can't be built")

        store.rollover.after_part(follow)
        send(store, numbered(1, 2))
        lab.clock.instant += HOUR
        with pytest.raises(LakeError):
            roll(store)
        assert in_memory(store) == [1, 2]
        store.rollover.step()
        assert in_memory(store) == []
        assert followed == [("ticks", 1), ("ticks", 1)]

    def test_a_damaged_file_of_the_past_keeps_no_rows_in_memory(
        self, lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def damaged(*_: object) -> None:
            raise LakeCorruptError(store.lake_directory / "old.parquet", "a page is damaged")

        with monkeypatch.context() as broken:
            broken.setattr(bars_keeper, "make_bars", damaged)
            send(store, numbered(1, 2))
            lab.clock.instant += HOUR
            roll(store)
            assert in_memory(store) == []
            status = store.upkeep.status
            assert status.state is State.DEGRADED
            assert "keeping bars of a minute failed" in status.detail
            assert "old.parquet" in status.detail
        send(store, numbered(3))
        roll(store)
        assert store.upkeep.status.state is State.RUNNING
        assert store.tables["bars"].counter(TICKS_PART) == 2


class TestPressure:
    def test_the_oldest_rows_leave_early(
        self, lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rollover, "PRESSURE_ROWS_MIN", 100)
        send(store, numbered(*range(1, 200)))
        store.rollover._config = type(store.rollover._config)(store.lake_directory, HOUR, 1 << 10)
        store.rollover.step()
        until(lambda: len(store._segments) == 1)
        before = store.nbytes
        store.rollover.step()
        assert in_memory(store) == []
        assert visible(store) == list(range(1, 200))
        assert store.nbytes < before
        assert lab.clock.instant == NOON


class TestRestarts:
    def test_recent_rows_come_back_to_memory_and_old_ones_stay_in_the_lake(
        self, lab: Lab, store: Store
    ) -> None:
        send(store, numbered(1, 2))
        roll(store)
        lab.clock.instant += HOUR // 2
        send(store, numbered(3))
        roll(store)
        send(store, numbered(4))
        lab.clock.instant += HOUR // 2 + 1
        store = lab.reopen(store)
        assert in_memory(store) == [3, 4]
        assert in_lake(store) == [1, 2]
        assert store.recovered_rows < 5
        store = lab.reopen(store)
        assert visible(store) == [1, 2, 3, 4]

    def test_rows_that_were_joined_in_the_lake_do_not_come_back(
        self, lab: Lab, store: Store
    ) -> None:
        send(store, numbered(1, 2))
        roll(store)
        lab.clock.instant += HOUR
        store.rollover.step()
        join(store)
        lab.clock.instant -= HOUR  # so that they would be recent
        store = lab.reopen(store)
        assert in_memory(store) == []
        assert in_lake(store) == [1, 2]
        send(store, numbered(3))
        store = lab.reopen(store)
        assert visible(store) == [1, 2, 3]

    @pytest.mark.parametrize("kept", [0, 1, 2])
    def test_a_journal_shorter_than_the_lake_goes_on_behind_it(
        self, lab: Lab, store: Store, kept: int
    ) -> None:
        for sequence in (1, 2, 3):
            send(store, numbered(sequence), producer="p", first=sequence)
            roll(store)
        epoch = store.epoch
        lab.close(store)
        for path in sorted((lab.directory / "journal").iterdir())[kept:]:
            path.unlink()
        store = lab.open()
        assert store.epoch > epoch
        assert visible(store) == [1, 2, 3]
        send(store, numbered(4))
        roll(store)
        store = lab.reopen(store)
        assert visible(store) == [1, 2, 3, 4]
        roll(store)
        lab.clock.instant += HOUR
        store.rollover.step()
        assert in_memory(store) == []
        assert visible(store) == [1, 2, 3, 4]

    def test_files_that_are_not_read_back_are_still_checked(self, lab: Lab, store: Store) -> None:
        for sequence in (1, 2, 3):
            send(store, numbered(sequence))
            roll(store)
        lab.clock.instant += HOUR + 1
        lab.close(store)
        (lab.directory / "journal" / sorted_names(lab)[1]).unlink()
        with pytest.raises(Exception, match="a file between them is missing"):
            lab.open()


def sorted_names(lab: Lab) -> list[str]:
    return sorted(path.name for path in (lab.directory / "journal").glob("*.journal"))


def join(store: Store) -> None:
    """Put one joined file in the place of all visible ones, as compaction does."""
    table = store.tables["ticks"]
    old = tuple(store.published.lake["ticks"])
    root = table_root(store.lake_directory, TICKS)
    rows = pq.ParquetFile(root / old[0].path).read()
    name = FileName(FileKind.COMPACT, max(f.end for f in old), max(f.part for f in old), "abc")
    file = write_file(root, TICKS, old[0].symbol, old[0].date, rows, name, SystemDisk())
    table.replace(old, [file], same_rows=True)


@pytest.mark.slow
def test_a_process_of_its_own_writes_the_files(lab: Lab) -> None:
    store = lab.open()
    store.rollover.start()
    send(store, numbered(1, 2, 3))
    number = store.rollover.begin(everything=True)
    until(lambda: store.rollover.status.through >= number)
    assert store.tables["ticks"].position == 3
    assert store.rollover.begin(everything=False) == store._segments.newest
