"""Slots: how many streams run, who loses his place, and how all of them stop."""

import threading

import pytest

from flight_server.errors import BusyError
from flight_server.streams import STALL_SECONDS, StreamSlots
from tests.flight_server.conftest import HandClock


@pytest.fixture
def slots(clock: HandClock) -> StreamSlots:
    return StreamSlots(3, 2, clock)


def test_a_key_gets_no_more_than_its_share_and_others_still_get_in(slots: StreamSlots) -> None:
    slots.take("a")
    slots.take("a")
    with pytest.raises(BusyError, match="2 streams of this key"):
        slots.take("a")
    slots.take("b")
    assert slots.taken == 3


def test_all_taken_is_busy_until_one_is_given_back(slots: StreamSlots) -> None:
    first, *_ = [slots.take(name) for name in "abc"]
    with pytest.raises(BusyError, match="3 streams are running"):
        slots.take("d")
    first.release()
    first.release()  # once, however often
    slots.take("d")
    with pytest.raises(BusyError):
        slots.take("e")


def test_a_stream_that_stands_still_loses_its_slot_only_when_another_needs_it(
    slots: StreamSlots, clock: HandClock
) -> None:
    stuck, reading, _ = [slots.take(name) for name in "abc"]
    clock.sleep(STALL_SECONDS + 1)
    reading.moved()
    assert slots.stalled == 2
    stuck.moved()  # nobody needed the place
    clock.sleep(STALL_SECONDS + 1)
    reading.moved()
    slots.take("d")
    slots.take("e")
    with pytest.raises(BusyError, match="stood still"):
        stuck.moved()
    reading.moved()


def test_the_one_that_stood_still_longest_goes_first(slots: StreamSlots, clock: HandClock) -> None:
    first, second, third = [slots.take(name) for name in "abc"]
    clock.sleep(1)
    first.moved()
    third.moved()
    clock.sleep(STALL_SECONDS + 1)
    slots.take("d")
    with pytest.raises(BusyError):
        second.moved()
    first.moved()
    third.moved()


def test_a_key_s_own_stuck_stream_makes_room_for_it(slots: StreamSlots, clock: HandClock) -> None:
    slots.take("b")
    slots.take("a")
    slots.take("a")
    clock.sleep(STALL_SECONDS + 1)
    slots.take("a")
    assert slots.taken == 3


def test_stuck_streams_do_not_pile_up_without_end(slots: StreamSlots, clock: HandClock) -> None:
    for _ in range(6):
        slots.take("a" if slots.taken % 2 else "b")
        clock.sleep(STALL_SECONDS + 1)
    with pytest.raises(BusyError):
        slots.take("c")


def test_an_evicted_stream_that_ends_gives_nobody_s_slot_back(
    slots: StreamSlots, clock: HandClock
) -> None:
    stuck = [slots.take(name) for name in "abc"]
    clock.sleep(STALL_SECONDS + 1)
    slots.take("d")
    for slot in stuck:
        slot.release()
    assert slots.taken == 1
    assert slots.stalled == 0


def test_draining_admits_none_and_waits_for_those_that_run(slots: StreamSlots) -> None:
    slot = slots.take("a")
    ended: list[bool] = []
    draining = threading.Thread(target=lambda: ended.append(slots.drain(30)))
    draining.start()
    slots.refuse()
    with pytest.raises(BusyError, match="shutting down"):
        slots.take("b")
    slot.release()
    draining.join(30)
    assert ended == [True]


def test_a_stream_that_outlasts_the_drain_is_cut_at_its_next_block(slots: StreamSlots) -> None:
    slot = slots.take("a")
    slot.moved()
    assert not slots.drain(0.0)
    with pytest.raises(BusyError, match="shutting down"):
        slot.moved()
