"""How many streams may run, and how all of them stop."""

import threading
from collections.abc import Callable
from typing import Final

from flight_server.errors import BusyError

STREAMS_MAX: Final = 256
"""Streams at once: each holds a thread for as long as its client takes."""


class StreamSlots:
    """Admits streams up to a limit, and none while draining."""

    def __init__(self, limit: int = STREAMS_MAX) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._taken = 0
        self._draining = False

    def __repr__(self) -> str:
        state = "draining" if self._draining else "open"
        return f"<StreamSlots {state} {self._taken} of {self._limit}>"

    @property
    def taken(self) -> int:
        """Streams running."""
        return self._taken

    def take(self) -> Callable[[], None]:
        """Take a slot; returns what gives it back, once however often it is called.

        Raises:
            BusyError: All are taken, or the server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise BusyError("the server is shutting down; retry in a moment")
            if self._taken >= self._limit:
                raise BusyError(f"{self._limit} streams are running; close one or retry later")
            self._taken += 1
        given_back = threading.Event()

        def give_back() -> None:
            with self._changed:
                if not given_back.is_set():
                    given_back.set()
                    self._taken -= 1
                    self._changed.notify_all()

        return give_back

    def drain(self, seconds: float) -> bool:
        """Admit no more, wait for those that run; return whether all have ended."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._taken == 0, seconds)
