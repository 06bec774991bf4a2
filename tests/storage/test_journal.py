"""The journal follows the store: hours, full disks, and what was forgotten in between."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import batched
from storage.errors import JournalFullError
from storage.journal_file import JournalWriter
from storage.runs import SequenceSet
from storage.store import Store
from tests.storage.conftest import HOUR, NOON, Lab, gamma, send, stored, ticks, until


def files(lab: Lab) -> list[str]:
    return sorted(path.name for path in (lab.directory / "journal").glob("*.journal"))


def sequences(store: Store) -> list[int]:
    return [row["sequence"] for row in stored(store)]


class TestHours:
    def test_a_new_hour_begins_a_new_file(self, lab: Lab) -> None:
        store = lab.open()
        send(store, ticks(1))
        lab.clock.instant += HOUR
        send(store, ticks(1, sequence=[2]))
        assert files(lab) == [f"00000001-{hour(0)}.journal", f"00000002-{hour(1)}.journal"]
        assert sequences(lab.reopen(store)) == [1, 2]

    def test_a_clock_that_steps_back_does_not_take_the_journal_with_it(self, lab: Lab) -> None:
        store = lab.open()
        send(store, ticks(1))
        lab.clock.instant -= 5 * HOUR
        send(store, ticks(1, sequence=[2]))
        store = lab.reopen(store)
        send(store, ticks(1, sequence=[3]))
        assert files(lab) == [f"00000001-{hour(0)}.journal", f"00000002-{hour(0)}.journal"]
        assert sequences(lab.reopen(store)) == [1, 2, 3]

    def test_strings_of_an_earlier_hour_are_known_in_the_next_file(self, lab: Lab) -> None:
        store = lab.open()
        send(store, ticks(2, symbol=["A", "B"]))
        lab.clock.instant += HOUR
        send(store, ticks(1, symbol="B", sequence=[3]))
        send(store, ticks(1, symbol="C", sequence=[4]))
        lab.close(store)
        (lab.directory / "journal" / files(lab)[0]).unlink()
        assert [row["symbol"] for row in stored(lab.open())] == ["B", "C"]

    def test_every_life_has_an_epoch_of_its_own(self, lab: Lab) -> None:
        store = lab.open()
        epochs = [store.epoch]
        for _ in range(3):
            store = lab.reopen(store)
            epochs.append(store.epoch)
        assert epochs == [1, 2, 3, 4]


def hour(number: int) -> str:
    names = {0: "T12", 1: "T13"}
    day = pa.scalar(NOON, pa.timestamp("us")).as_py()
    return f"{day:%Y%m%d}{names[number]}"


class TestFullDisk:
    """Nothing is acknowledged until there is room, and nothing is lost."""

    @pytest.mark.parametrize("method", ["commit", "_create"])
    def test_writing_goes_on_by_itself_once_there_is_room(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        monkeypatch.setattr("storage.journal.RETRY_SECONDS", 0.01)
        store = lab.open()
        send(store, ticks(1))
        working, states = getattr(JournalWriter, method), []

        def full(writer: JournalWriter, *records: Any) -> None:
            states.append(store.journal_status.degraded)
            if len(states) <= 3:
                raise JournalFullError(f"{writer.path}: the disk is full")
            working(writer, *records)

        monkeypatch.setattr(JournalWriter, method, full)
        lab.clock.instant += HOUR
        assert send(store, ticks(1, sequence=[2])).rows == 1
        assert states[0] is None
        assert "the disk is full" in str(states[3])
        assert store.journal_status.degraded is None
        assert sequences(lab.reopen(store)) == [1, 2]

    def test_a_file_is_sealed_later_when_there_is_no_room_to(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("storage.journal.HOUSEKEEPING_SECONDS", 0.01)
        store = lab.open()
        send(store, ticks(1))
        sealing, calls = JournalWriter.seal, []

        def full(writer: JournalWriter) -> None:
            calls.append(writer.path)
            if len(calls) <= 3:
                raise JournalFullError(f"{writer.path}: the disk is full")
            sealing(writer)

        monkeypatch.setattr(JournalWriter, "seal", full)
        lab.clock.instant += HOUR
        send(store, ticks(1, sequence=[2]))
        log = lab.directory / "journal" / f"{files(lab)[0]}-wal"
        until(lambda: not log.exists())
        assert sequences(lab.reopen(store)) == [1, 2]


class TestForgottenIdentities:
    """What was acknowledged comes back, even where the memory of it was short."""

    def test_a_tick_that_was_taken_again_comes_back_again(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SequenceSet, "REMEMBERED_MAX", 8)
        store = lab.open()
        for sequence in range(1, 21):
            send(store, ticks(1, sequence=[sequence], ts_event=[NOON + sequence]))
        assert send(store, ticks(1, sequence=[1])).rows == 1
        before = stored(store)
        store = lab.reopen(store)
        assert stored(store) == before
        assert stored(lab.reopen(store)) == before

    def test_a_gamma_snapshot_that_was_taken_again_comes_back_again(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batched, "IDENTITIES_MAX", 3)
        store = lab.open()
        for minute in (0, 1, 2, 3, 4, 0):
            send(store, gamma(ts_event=NOON + minute), dataset="gex")
        before = stored(store, "gex")
        assert len(before) == 6
        store = lab.reopen(store)
        assert stored(store, "gex") == before

    def test_identities_are_remembered_over_a_restart(self, lab: Lab) -> None:
        store = lab.open()
        send(store, ticks(3))
        send(store, gamma(), dataset="gex")
        store = lab.reopen(store)
        assert send(store, ticks(3)).duplicates == 3
        assert send(store, gamma(), dataset="gex").duplicates == 1


def test_a_journal_without_rows_is_a_fresh_start(lab: Lab, tmp_path: Path) -> None:
    store = lab.open(tmp_path / "deep" / "down")
    assert (store.epoch, store.recovered_rows) == (1, 0)
    assert stored(store) == []
