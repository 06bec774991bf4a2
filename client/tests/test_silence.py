"""A connection on which nothing comes is given up, and no other."""

import gc
import threading
import time
import weakref

import pytest

from tickflight import silence
from tickflight.silence import SilenceWatch

DEADLINE_SECONDS = 20.0


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.01)


def test_a_read_that_takes_too_long_is_hung_up() -> None:
    hung_up = threading.Event()
    watch = SilenceWatch(hung_up.set, patience_seconds=0.05)
    with watch.reading():
        assert hung_up.wait(DEADLINE_SECONDS)
    watch.close()


def test_reads_that_come_back_are_left_alone() -> None:
    hung_up = threading.Event()
    watch = SilenceWatch(hung_up.set, patience_seconds=60)
    for _ in range(50):
        with watch.reading():
            time.sleep(0.001)
    watch.look()
    assert not hung_up.is_set()
    watch.close()


def test_time_between_reads_is_the_reader_s_own() -> None:
    hung_up = threading.Event()
    watch = SilenceWatch(hung_up.set, patience_seconds=0)
    with watch.reading():
        pass
    hung_up.clear()
    watch.look()
    assert not hung_up.is_set()
    watch.close()


def test_a_watch_that_nobody_has_ends_by_itself() -> None:
    before = threading.active_count()
    watch = SilenceWatch(lambda: None, patience_seconds=60)
    held = weakref.ref(watch)
    del watch
    gc.collect()
    assert held() is None
    deadline = time.monotonic() + DEADLINE_SECONDS
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
