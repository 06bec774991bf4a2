"""Waking readers: all of them, one after the other, and never at the appender's cost."""

import threading
import time
from collections.abc import Iterator

import pytest

from storage.herald import READERS_AT_ONCE, Herald, Waiter
from storage.ports import SystemClock
from tests.flight_server.conftest import until


class Ends(dict[str, int]):
    """The ends of some datasets, as a store would tell them."""

    def __call__(self) -> dict[str, int]:
        return dict(self)


@pytest.fixture
def ends() -> Ends:
    return Ends(ticks=0, quotes=0, gaps=0)


@pytest.fixture
def herald(ends: Ends) -> Iterator[Herald]:
    herald = Herald(ends, SystemClock())
    herald.start()
    yield herald
    herald.stop()


def waiting(herald: Herald, *datasets: str, seconds: float = 20.0) -> list[threading.Thread]:
    """Have readers wait at position 0."""

    def wait(dataset: str) -> None:
        waiter = Waiter(dataset)
        herald.wait(waiter, seconds)

    before = len(herald._waiting)
    threads = [threading.Thread(target=wait, args=(dataset,)) for dataset in datasets]
    for thread in threads:
        thread.start()
    until(lambda: len(herald._waiting) == before + len(datasets))
    return threads


def appended(herald: Herald, ends: Ends, dataset: str) -> None:
    ends[dataset] += 1
    herald.ring()


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_everybody_who_waits_for_a_dataset_is_woken(herald: Herald, ends: Ends) -> None:
    threads = waiting(herald, *["ticks"] * 50)
    appended(herald, ends, "ticks")
    joined(threads)
    assert herald.horizon("ticks") == 1


def test_others_sleep_on(herald: Herald, ends: Ends) -> None:
    others = waiting(herald, "quotes")
    threads = waiting(herald, "ticks")
    appended(herald, ends, "ticks")
    joined(threads)
    assert others[0].is_alive()
    appended(herald, ends, "quotes")
    joined(others)


def test_gaps_wake_everybody(herald: Herald, ends: Ends) -> None:
    threads = waiting(herald, "ticks", "quotes")
    appended(herald, ends, "gaps")
    joined(threads)


def test_what_came_just_before_is_not_slept_over(herald: Herald, ends: Ends) -> None:
    ends["ticks"] += 1  # nobody waited, so nobody rang
    waiter = Waiter("ticks")
    herald.wait(waiter, 20.0)
    until(lambda: herald.horizon("ticks") == 1)


def test_nobody_waits_longer_than_he_wanted(herald: Herald) -> None:
    joined(waiting(herald, "ticks", seconds=0.2))
    assert not herald._waiting


def test_stopping_wakes_everybody(ends: Ends) -> None:
    herald = Herald(ends, SystemClock())
    herald.start()
    threads = waiting(herald, *["ticks"] * 10)
    herald.stop()
    joined(threads)


def test_ringing_costs_next_to_nothing_while_nobody_waits(herald: Herald) -> None:
    began = time.perf_counter()
    for _ in range(10_000):
        herald.ring()
    assert time.perf_counter() - began < 1.0  # 100 µs each on the slowest machine


def test_readers_that_come_and_go_are_never_forgotten(herald: Herald, ends: Ends) -> None:
    """Some time out just as they are rung; whoever is due next must be rung all the same."""
    stopping = threading.Event()
    seen = [0] * 20

    def follow(number: int) -> None:
        waiter = Waiter("ticks")
        while not stopping.is_set():
            waiter.position = seen[number]
            herald.wait(waiter, 20.0 if number % 2 else 0.001)
            seen[number] = herald.horizon("ticks")

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        appended(herald, ends, "ticks")
        time.sleep(0.0005)
    until(lambda: min(seen) == ends["ticks"])
    stopping.set()
    herald.wake_all()
    appended(herald, ends, "ticks")
    joined(threads)


def test_one_who_does_not_come_back_holds_up_nobody(herald: Herald, ends: Ends) -> None:
    """Far more than may be away at once are rung, and none of them ever says that he is back."""
    threads = waiting(herald, *["ticks"] * 40)
    appended(herald, ends, "ticks")
    joined(threads)
    joined_again = waiting(herald, "quotes")
    appended(herald, ends, "quotes")
    joined(joined_again)


def test_one_who_leaves_makes_room_for_the_next(ends: Ends) -> None:
    herald = Herald(ends, SystemClock())  # without its thread: nobody gives up waiting
    threads = waiting(herald, *["ticks"] * (2 * READERS_AT_ONCE))
    ends["ticks"] += 1
    herald._announce()
    until(lambda: sum(thread.is_alive() for thread in threads) == READERS_AT_ONCE)
    for waiter in tuple(herald._away):
        herald.leave(waiter)
    joined(threads)
