"""Producers number their batches; every number is taken once, whatever happens to the wire."""

import gc
import threading
import weakref
from contextlib import suppress

import pyarrow as pa
import pytest

from storage.errors import SequenceError, StoreClosedError
from storage.journal_file import JournalWriter, Record
from storage.producers import Ack, AppendStream, ProducerTable
from storage.schemas import TICKS
from storage.store import Store
from tests.storage.conftest import NOON, Lab, send, stored, ticks


def tick(sequence: int) -> pa.RecordBatch:
    return ticks(1, sequence=[sequence], ts_event=[NOON + sequence])


def sequences(store: Store) -> list[int]:
    return [row["sequence"] for row in stored(store)]


def opened(store: Store) -> AppendStream:
    return store.open_stream("ticks", TICKS.schema)


class TestNumbers:
    def test_a_resent_batch_is_acknowledged_and_not_taken_again(self, store: Store) -> None:
        assert send(store, tick(1), tick(2), producer="p") == Ack(2, 2, 0, 0)
        # Other rows under a number that was taken: the number decides, not the rows.
        assert send(store, tick(8), tick(9), tick(3), producer="p") == Ack(3, 1, 0, 0)
        assert sequences(store) == [1, 2, 3]

    @pytest.mark.parametrize("seq", [0, -1, 2, 3])
    def test_a_number_that_does_not_follow_is_refused(self, store: Store, seq: int) -> None:
        with pytest.raises(SequenceError, match="where 1 comes next") as caught:
            send(store, tick(1), producer="p", first=seq)
        assert caught.value.expected == 1
        assert sequences(store) == []

    def test_what_came_before_a_jump_is_kept(self, store: Store) -> None:
        stream = opened(store)
        stream.push(tick(1), "p", 1)
        with pytest.raises(SequenceError):
            stream.push(tick(3), "p", 3)
        stream.end()
        assert stream.next_ack() == Ack(1, 1, 0, 0)
        assert stream.next_ack() is None

    def test_numbers_go_on_after_a_restart(self, lab: Lab) -> None:
        store = lab.open()
        send(store, tick(1), tick(2), producer="p")
        store = lab.reopen(store)
        assert store.producers.durable("p") == 2
        assert send(store, tick(2), tick(3), producer="p", first=2) == Ack(3, 1, 0, 0)
        assert sequences(store) == [1, 2, 3]

    def test_batches_without_numbers_are_taken_each_time(self, store: Store) -> None:
        assert send(store, tick(1), tick(2)).rows == 2
        assert send(store, tick(3)).rows == 1
        assert store.producers.durable("p") == 0

    def test_repeats_by_identity_are_counted_and_left_out(self, store: Store) -> None:
        send(store, tick(1), producer="p")
        assert send(store, ticks(2), producer="q") == Ack(1, 1, 0, 1)
        assert send(store, ticks(2, kind=1), producer="q", first=2) == Ack(2, 2, 0, 0)

    def test_a_stream_does_not_change_its_producer(self, store: Store) -> None:
        stream = opened(store)
        stream.push(tick(1), "p", 1)
        with pytest.raises(SequenceError, match="one producer, or of none"):
            stream.push(tick(2), "q", 1)

    def test_a_batch_without_a_number_does_not_take_that_of_the_next(self, store: Store) -> None:
        stream = opened(store)
        stream.push(tick(1), "p", 1)
        with pytest.raises(SequenceError, match="one producer, or of none"):
            stream.push(tick(2))
        assert send(store, tick(3), producer="p", first=2) == Ack(2, 1, 0, 0)

    def test_a_number_does_not_follow_batches_without(self, store: Store) -> None:
        stream = opened(store)
        stream.push(tick(1))
        with pytest.raises(SequenceError, match="one producer, or of none"):
            stream.push(tick(2), "p", 1)


class TestTakeOver:
    def test_a_newer_stream_ends_the_older_one(self, store: Store) -> None:
        older, newer = opened(store), opened(store)
        older.push(tick(1), "p", 1)
        newer.push(tick(2), "p", 2)
        with pytest.raises(SequenceError, match="has taken over"):
            older.push(tick(3), "p", 3)
        newer.push(tick(3), "p", 3)
        newer.end()
        while newer.next_ack():
            pass
        assert sequences(store) == [1, 2, 3]
        assert store.producers.durable("p") == 3

    def test_a_newer_stream_hears_of_what_the_older_one_sent(self, store: Store) -> None:
        older, newer = opened(store), opened(store)
        older.push(tick(1), "p", 1)
        newer.push(tick(1), "p", 1)
        newer.end()
        ack = newer.next_ack()
        assert ack is not None
        assert ack.seq == 1
        assert newer.next_ack() is None

    def test_a_stream_that_waits_for_another_one_s_batches_ends_when_a_third_takes_over(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk, commit = threading.Event(), JournalWriter.commit

        def stalled(writer: JournalWriter, records: list[Record]) -> None:
            disk.wait()
            commit(writer, records)

        monkeypatch.setattr(JournalWriter, "commit", stalled)
        first, second, third = opened(store), opened(store), opened(store)
        first.push(tick(1), "p", 1)
        second.push(tick(1), "p", 1)
        second.end()
        third.push(tick(1), "p", 1)
        with pytest.raises(SequenceError, match="has taken over"):
            second.next_ack()
        disk.set()
        ack = third.next_ack()
        assert ack is not None
        assert ack.seq == 1

    def test_a_third_stream_waits_for_what_the_first_one_has_queued(self) -> None:
        """Else its batches would be durable, and acknowledged, before those that precede them."""
        table, wake = ProducerTable({}), threading.Event()
        first, *others = (AppendStream(table, wake) for _ in range(3))
        first.push(tick(1), "p", 1)

        def push(stream: AppendStream) -> None:
            with suppress(SequenceError):
                stream.push(tick(2), "p", 2)

        threads = [threading.Thread(target=push, args=(stream,)) for stream in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.05)
        assert [stream.take(1) for stream in others] == [[], []]
        taken = first.take(1)
        while any(thread.is_alive() for thread in threads) or len(taken) < 2:
            taken += [one for stream in others for one in stream.take(1)]
        assert [seq for seq, _ in taken] == [1, 2]

    def test_many_streams_of_one_producer_at_once_take_every_batch_once(self, store: Store) -> None:
        def write() -> None:
            """Send all there is, as a producer does that has heard of nothing yet."""
            try:
                send(store, *(tick(sequence) for sequence in range(1, 60)), producer="p")
            except SequenceError:
                refused.append(None)

        refused: list[None] = []
        writers = [threading.Thread(target=write) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        send(store, *(tick(sequence) for sequence in range(1, 60)), producer="p")
        assert sequences(store) == list(range(1, 60))
        assert len(refused) < 8


class TestClosing:
    def test_a_producer_does_not_keep_the_streams_it_has_had(self, store: Store) -> None:
        streams = []
        for sequence in (1, 2, 3):
            stream = opened(store)
            stream.push(tick(sequence), f"p{sequence}", 1)
            stream.end()
            while stream.next_ack():
                pass
            store.close_stream(stream)
            streams.append(weakref.ref(stream))
        gc.collect()
        # The newest may still be in the hands of the threads that served it.
        assert [held() for held in streams[:-1]] == [None, None]

    def test_closing_makes_everything_durable_and_acknowledges_it(self, lab: Lab) -> None:
        store = lab.open()
        stream = opened(store)
        for sequence in range(1, 101):
            stream.push(tick(sequence), "p", sequence)
        lab.close(store)
        assert stream.next_ack() is not None
        with pytest.raises(StoreClosedError):
            all(iter(stream.next_ack, None))
        assert sequences(lab.open()) == list(range(1, 101))

    def test_nothing_more_is_taken_after_closing(self, lab: Lab) -> None:
        store = lab.open()
        stream = opened(store)
        lab.close(store)
        with pytest.raises(StoreClosedError):
            stream.push(tick(1), "p", 1)
        with pytest.raises(StoreClosedError):
            opened(store)

    def test_a_batch_without_rows_moves_the_mark(self, lab: Lab) -> None:
        store = lab.open()
        assert send(store, ticks(0), ticks(0), producer="p").seq == 2
        assert lab.reopen(store).producers.durable("p") == 2
