"""Files of the journal end where they are told to, and nothing is lost between two of them."""

import threading

import pytest

from storage import journal
from storage.errors import StoreClosedError
from storage.store import Store
from tests.storage.conftest import HOUR, NOON, Lab, send, stored, ticks, until


def sequences(store: Store) -> list[int]:
    return sorted(row["sequence"] for row in stored(store))


def files(lab: Lab) -> list[str]:
    return sorted(path.name for path in (lab.directory / "journal").glob("*.journal"))


def test_a_rolled_file_is_sealed_and_the_next_one_goes_on(lab: Lab, store: Store) -> None:
    send(store, ticks(3))
    assert store._journal.roll() == 1
    send(store, ticks(2, sequence=[4, 5]), producer="p")
    assert store._journal.roll() == 2
    until(lambda: len(store._segments) == 2)
    first, second = tuple(store._segments)
    assert [first.span("ticks"), second.span("ticks")] == [(0, 3), (3, 5)]
    assert (first.number, first.epoch, first.rows, first.arrival) == (1, store.epoch, 3, NOON)
    assert not first.path.with_name(first.path.name + "-wal").exists()
    assert len(files(lab)) == 3
    store = lab.reopen(store)
    assert sequences(store) == [1, 2, 3, 4, 5]
    assert store.producers.durable("p") == 1


def test_strings_are_introduced_anew_in_every_file(lab: Lab, store: Store) -> None:
    send(store, ticks(2, symbol=["A", "B"]))
    store._journal.roll()
    send(store, ticks(1, symbol="B", sequence=[3]))
    lab.close(store)
    (lab.directory / "journal" / files(lab)[0]).unlink()
    assert [row["symbol"] for row in stored(lab.open())] == ["B"]


def test_a_file_without_rows_goes_on(lab: Lab, store: Store) -> None:
    assert store._journal.roll() == 0
    send(store, ticks(1))
    assert store._journal.roll() == 1
    assert store._journal.roll() == 1
    assert len(files(lab)) == 2


def test_what_was_sent_before_is_in_the_file_that_ends(store: Store) -> None:
    stream = store.open_stream("ticks", ticks(1).schema)
    for sequence in range(1, 200):
        stream.push(ticks(1, sequence=[sequence]))
    until(lambda: store.datasets()["ticks"].rows == 199)
    store._journal.roll()
    stream.end()
    until(lambda: len(store._segments) > 0)
    assert next(iter(store._segments)).span("ticks") == (0, 199)
    store.close_stream(stream)


def test_a_file_takes_no_more_than_its_share_of_rows(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_ROWS_MAX", 10)
    store = lab.open()
    for first in range(1, 41, 5):
        send(store, ticks(5, sequence=list(range(first, first + 5))))
    until(lambda: len(store._segments) == 3)
    assert [segment.rows for segment in store._segments] == [10, 10, 10]
    assert sequences(lab.reopen(store)) == list(range(1, 41))


def test_a_file_rolled_in_a_later_hour_is_followed_by_one_of_that_hour(
    lab: Lab, store: Store
) -> None:
    send(store, ticks(1))
    lab.clock.instant += 2 * HOUR
    store._journal.roll()
    assert files(lab)[1][9:] != files(lab)[0][9:]
    lab.clock.instant -= 3 * HOUR
    send(store, ticks(1, sequence=[2]))
    store._journal.roll()
    assert files(lab)[2][9:] == files(lab)[1][9:]


def test_nobody_waits_for_a_journal_that_has_stopped(lab: Lab, store: Store) -> None:
    lab.close(store)
    with pytest.raises(StoreClosedError):
        store._journal.roll()
    with pytest.raises(StoreClosedError):
        store._appender.between_appends(lambda: None)


def test_the_log_begins_anew_beside_steady_commits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite alone would let it grow until the hour ends."""
    monkeypatch.setattr(journal, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(journal, "HOUSEKEEPING_SECONDS", 0.02)
    store = lab.open()
    log = lab.directory / "journal" / (files(lab)[0] + "-wal")
    stream = store.open_stream("ticks", ticks(1).schema)
    drain = threading.Thread(target=lambda: list(iter(stream.next_ack, None)))
    drain.start()
    for start in range(1, 400):
        numbers = list(range(start * 1000, start * 1000 + 1000))
        stream.push(ticks(1000, sequence=numbers, price=[n * 0.25 for n in numbers]))
    stream.end()
    drain.join()
    store.close_stream(stream)
    held = log.with_name(log.name.removesuffix("-wal")).stat().st_size
    assert held > 1_000_000  # ten times what makes a log be folded in
    assert log.stat().st_size < held / 2
