"""Noticing that a connection is dead although nobody has said so."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS: Final = 1.0
"""How often a watch looks: silence is told by the tens of seconds."""


class SilenceWatch:
    """Hangs up when a read takes too long; ends when it is closed, or nobody has it any more."""

    def __init__(self, hang_up: Callable[[], None], *, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self._hang_up = hang_up
        self._since: float | None = None
        self._closed = threading.Event()
        threading.Thread(
            target=_watch,
            args=(weakref.ref(self), self._closed),
            name="tickflight-watch",
            daemon=True,
        ).start()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Watch what is done inside the block."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def look(self) -> None:
        """Hang up if the silence has lasted too long."""
        since = self._since
        if since is not None and time.monotonic() - since > self.patience_seconds:
            self._hang_up()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()


def _watch(held: weakref.ref[SilenceWatch], closed: threading.Event) -> None:
    while not closed.wait(LOOK_SECONDS):
        watch = held()
        if watch is None:
            return
        watch.look()
        del watch
