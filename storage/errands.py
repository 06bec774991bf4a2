"""What other threads have one thread do for them, and wait for."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

from storage.errors import StoreClosedError

ERRAND_POLL_SECONDS: Final = 0.5
"""How often who waits looks whether there is a thread still."""

T = TypeVar("T")


class Errands:
    """A queue of them; any thread asks, one thread runs them between two steps of its own.

    Args:
        wake: Set when there is something to run.
    """

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def ask(self, action: Callable[[], T], runner: threading.Thread) -> T:
        """Have ``runner`` do something; return, or raise, what came of it.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        errand: Future[T] = Future()
        self._waiting.append((errand, action))
        self._wake.set()
        while True:
            done, _ = wait([errand], ERRAND_POLL_SECONDS)
            if done:
                return errand.result()
            if not runner.is_alive():
                raise StoreClosedError("the server is shutting down")

    def run(self) -> None:
        """Do what waits."""
        while self._waiting:
            errand, action = self._waiting.popleft()
            try:
                errand.set_result(action())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                errand.set_exception(error)
