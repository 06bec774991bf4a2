"""Old data goes into the lake past memory: whole, once, and with all that follows a part."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import bulk
from storage import store as store_module
from storage.errors import (
    InvalidDataError,
    JournalCorruptError,
    LakeError,
    SchemaMismatchError,
    SequenceError,
)
from storage.lake.files import FileKind
from storage.lake.table import LakeTable
from storage.producers import Ack
from storage.rollover_parts import State
from storage.rollover_task import RolloverResult, RolloverTask
from storage.schemas import QUOTES, Flag
from storage.store import Store
from tests.bulk.conftest import load, opened
from tests.rollover.conftest import in_lake, in_memory, visible, write_here
from tests.storage.conftest import HOUR, NOON, Lab, gamma, send, stored, ticks, until

DAY = 24 * HOUR
FAR = NOON - 30 * DAY


def old(count: int = 1, first: int = 1, **columns: Any) -> pa.RecordBatch:
    """Build ticks of a month ago, numbered from ``first``, a second apart."""
    instants = [FAR + (first + i) * 1_000_000 for i in range(count)]
    defaults: dict[str, Any] = {
        "ts_event": instants,
        "ts_recv": instants,
        "sequence": list(range(first, first + count)),
        "source": "import",
    }
    return ticks(count, **(defaults | columns))


def numbers(store: Store) -> list[int]:
    return [row["sequence"] for row in stored(store)]


class TestWay:
    def test_rows_are_visible_at_once_and_were_never_in_memory(self, store: Store) -> None:
        acks = load(store, old(3), old(2, first=4))
        assert acks == [Ack(seq=2, rows=5, quarantined=0, duplicates=0)]
        assert numbers(store) == [1, 2, 3, 4, 5]
        assert (in_memory(store), sorted(in_lake(store))) == ([], [1, 2, 3, 4, 5])
        assert store.snapshot().symbols("ticks")["MNQ"].rows == 5

    def test_files_say_what_they_are(self, store: Store) -> None:
        load(store, old(3))
        (file,) = store.published.lake["ticks"]
        assert (file.kind, file.end, file.part, file.source) == (FileKind.BULK, 0, 1, "import")

    def test_rows_join_those_of_memory_in_total_order(self, store: Store) -> None:
        send(store, ticks(3, sequence=[11, 12, 13]))
        load(store, old(2))
        assert numbers(store) == [1, 2, 11, 12, 13]

    def test_enough_rows_are_a_part_before_the_stream_ends(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk, "PART_ROWS", 4)
        acks = load(store, old(3), old(3, first=4), old(1, first=7))
        assert [(ack.seq, ack.rows) for ack in acks] == [(2, 6), (3, 1)]
        assert store.tables["ticks"].part == 2

    def test_parts_of_memory_and_of_jobs_follow_each_other(self, store: Store) -> None:
        for number in range(1, 4):
            send(store, ticks(1, sequence=100 + number))
            last = store.rollover.begin(everything=True)
            until(lambda last=last: store.rollover.status.through >= last)  # type: ignore[misc]
            load(store, old(1, first=number), job=f"job-{number}")
        parts = store.tables["ticks"].parts()
        assert [part.part for part in parts] == [1, 2, 3, 4, 5, 6]
        assert [part.end for part in parts] == [1, 1, 2, 2, 3, 3]
        assert visible(store) == [1, 2, 3, 101, 102, 103]

    def test_other_datasets_go_the_same_way(self, store: Store) -> None:
        load(store, gamma(), dataset="gex")
        quote = {"contract": "MNQ", "flags": 0, "sequence": 1, "source": "import"}
        row = {"ts_event": FAR, "ts_recv": FAR, "symbol": "MNQ", **quote}
        load(store, pa.RecordBatch.from_pylist([row], QUOTES.schema), dataset="quotes")
        assert [row["symbol"] for row in stored(store, "gex")] == ["NQ_NDX"]
        assert [row["sequence"] for row in stored(store, "quotes")] == [1]

    def test_synthetic_rows_stay_out_where_there_are_real_ones(self, store: Store) -> None:
        load(store, old(2))
        load(store, old(2, first=3, flags=int(Flag.SYNTHETIC), source="demo"), job="other")
        assert numbers(store) == [1, 2]


class TestWhatFollows:
    def test_bars_are_kept_and_the_ledger_tells_of_the_part(self, store: Store) -> None:
        load(store, old(90))
        until(lambda: sum(file.rows for file in store.published.lake["bars"]) == 2)
        until(lambda: len(stored(store, "segments")) == 1)
        (row,) = stored(store, "segments")
        assert (row["dataset"], row["part"], row["rows"]) == ("ticks", 1, 90)

    def test_what_can_not_follow_yet_is_tried_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace, failures = LakeTable.replace, [LakeError("no bars today")]

        def moody(table: LakeTable, *args: Any, **kwargs: Any) -> None:
            if failures:
                raise failures.pop()
            replace(table, *args, **kwargs)

        monkeypatch.setattr(LakeTable, "replace", moody)
        (ack,) = load(store, old(90))
        assert ack.rows == 90
        until(lambda: sum(file.rows for file in store.published.lake["bars"]) == 2)
        until(lambda: store.rollover.status.state is State.RUNNING)


class TestOnce:
    def test_a_job_that_is_sent_again_adds_nothing(self, store: Store) -> None:
        load(store, old(3), old(2, first=4))
        again = load(store, old(3), old(2, first=4))
        assert again == [Ack(seq=2, rows=0, quarantined=0, duplicates=0)]
        assert numbers(store) == [1, 2, 3, 4, 5]

    def test_a_longer_one_goes_on_where_it_was(self, store: Store) -> None:
        load(store, old(3))
        (ack,) = load(store, old(3), old(2, first=4))
        assert (ack.seq, ack.rows) == (2, 2)
        assert numbers(store) == [1, 2, 3, 4, 5]

    def test_batches_may_begin_with_the_next_number(self, store: Store) -> None:
        load(store, old(3), first=1)
        load(store, old(2, first=4), first=2)
        assert numbers(store) == [1, 2, 3, 4, 5]

    def test_jobs_know_each_other_not(self, store: Store) -> None:
        load(store, old(1), job="one")
        load(store, old(1, first=2), job="two")
        assert numbers(store) == [1, 2]

    def test_repeats_within_a_job_are_dropped_and_counted(self, store: Store) -> None:
        (ack,) = load(store, old(3), old(3, first=2))
        assert (ack.rows, ack.duplicates) == (4, 2)
        assert numbers(store) == [1, 2, 3, 4]

    def test_it_is_known_after_a_restart(self, lab: Lab, store: Store) -> None:
        load(store, old(3))
        lab.close(store)
        again = opened(lab)
        assert again.bulk.durable("ticks", "job") == 1
        load(again, old(3), old(1, first=4))
        assert numbers(again) == [1, 2, 3, 4]


class TestTrouble:
    def test_what_was_not_committed_is_forgotten(self, lab: Lab, store: Store) -> None:
        stream = store.open_bulk("ticks", "job", old().schema)
        stream.push(old(3))
        stream.close()
        assert (numbers(store), store.bulk.durable("ticks", "job")) == ([], 0)
        assert list((lab.directory / "bulk").iterdir()) == []

    def test_a_spool_of_a_life_that_was_cut_off_is_removed(self, lab: Lab, store: Store) -> None:
        lab.close(store)
        left = lab.directory / "bulk" / "left.spool"
        left.write_bytes(b"rows")
        opened(lab)
        assert not left.exists()

    def test_a_part_that_fails_can_be_sent_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, failures = LakeTable.commit_part, [LakeError("the disk is tired")]

        def moody(table: LakeTable, *args: Any) -> None:
            if table.dataset.name == "ticks" and failures:
                raise failures.pop()
            commit(table, *args)

        monkeypatch.setattr(LakeTable, "commit_part", moody)
        bad = old(2, first=3, price=[float("nan"), 1.0])
        with pytest.raises(LakeError, match="tired"):
            load(store, old(2), bad)
        assert (numbers(store), len(stored(store, "quarantine"))) == ([], 1)
        (ack,) = load(store, old(2), bad)
        assert (ack.rows, ack.quarantined) == (3, 1)
        assert (numbers(store), len(stored(store, "quarantine"))) == ([1, 2, 4], 1)

    def test_impossible_rows_are_put_aside_and_counted(self, lab: Lab, store: Store) -> None:
        (ack,) = load(store, old(3, size=[1.0, -1.0, 1.0]))
        assert (ack.rows, ack.quarantined) == (2, 1)
        (row,) = stored(store, "quarantine")
        assert (row["dataset"], row["source"], row["reason"]) == (
            "ticks",
            "import",
            "size is negative",
        )
        assert store.snapshot().known.quarantined["ticks", "MNQ"] == 1
        lab.close(store)
        assert opened(lab).snapshot().known.quarantined["ticks", "MNQ"] == 1

    def test_a_job_of_impossible_rows_alone_is_done_too(self, store: Store) -> None:
        (ack,) = load(store, old(2, size=-1.0))
        assert ack == Ack(seq=1, rows=0, quarantined=2, duplicates=0)
        (again,) = load(store, old(2, size=-1.0))
        assert again == Ack(seq=1, rows=0, quarantined=0, duplicates=0)
        assert len(stored(store, "quarantine")) == 2

    def test_a_number_that_jumps_is_refused(self, store: Store) -> None:
        with pytest.raises(SequenceError) as caught:
            load(store, old(), first=2)
        assert caught.value.expected == 1

    def test_a_job_has_one_stream_at_a_time(self, store: Store) -> None:
        stream = store.open_bulk("ticks", "job", old().schema)
        with pytest.raises(SequenceError, match="another stream"):
            store.open_bulk("ticks", "job", old().schema)
        stream.close()
        load(store, old())
        assert numbers(store) == [1]

    @pytest.mark.parametrize("job", ["", "a/b", "-x", "x" * 129, "ü"])
    def test_a_job_has_a_plain_name(self, store: Store, job: str) -> None:
        with pytest.raises(InvalidDataError, match="name of a job"):
            store.open_bulk("ticks", job, old().schema)

    def test_what_the_server_tells_of_itself_has_no_such_way(self, store: Store) -> None:
        with pytest.raises(InvalidDataError, match="no bulk path"):
            store.open_bulk("gaps", "job", old().schema)

    def test_a_wrong_schema_is_refused_and_leaves_the_job_free(self, store: Store) -> None:
        with pytest.raises(SchemaMismatchError):
            store.open_bulk("ticks", "job", old().schema.remove(3))
        load(store, old())
        assert numbers(store) == [1]

    def test_a_spool_that_was_changed_is_not_committed(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def careless(task: RolloverTask, stop: threading.Event) -> RolloverResult:
            damage(Path(task.journal))
            return write_here(task, stop)

        monkeypatch.setattr(store_module, "roll_over", careless)
        store = opened(lab)
        with pytest.raises(JournalCorruptError, match="checksum"):
            load(store, old(2_000))
        assert numbers(store) == []


def damage(path: Path) -> None:
    """Flip a bit in the middle of the rows."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)
