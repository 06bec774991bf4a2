"""Waking readers when rows have come, without anybody who appends waiting for them.

The appender only rings a bell, and only while somebody waits. A thread of our own then announces
how far each dataset has grown, in *rounds*: readers are rung a few at a time, the next one when one
is back from sending. Two hundred threads that woke at once would spend their time fighting for the
interpreter, and the appender's with it. Between two rounds is a third of the time that the last one
took, so that readers never take all there is: the more they are, the larger their blocks. As all
see the same announced ends, those who want the same rows read the same blocks.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, final

from storage.ports import Clock
from storage.schemas import GAPS

READERS_AT_ONCE: Final = 2
"""Readers that were rung and are not back: while some send, the next one reads."""
BACK_SECONDS: Final = 0.002
"""How long a reader may take before the next one is rung all the same: his client may be slow."""
ROUND_PAUSE_SECONDS: Final = 0.001
"""Least time between two rounds: a wake costs more than the rows of a millisecond."""
PAUSE_RATIO: Final = 1 / 3
"""And of what the last round took: time for those who append."""
LOOK_SECONDS: Final = 0.5
"""How often the thread looks whether it should end."""


@final
class Waiter:
    """One reader, as the herald knows it.

    Attributes:
        dataset: What it reads.
        position: Position of the next row it wants.
    """

    __slots__ = ("bell", "dataset", "is_due", "position")

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.position = 0
        self.bell = threading.Lock()
        self.bell.acquire()
        self.is_due = False


@final
class Herald:
    """Announces growth. ``start`` once, ``stop`` once.

    Args:
        ends: Returns the position after the newest row of each dataset.
        clock: Where time comes from.
    """

    def __init__(self, ends: Callable[[], Mapping[str, int]], clock: Clock) -> None:
        self._ends = ends
        self._clock = clock
        self._horizons = ends()
        self._bell = threading.Event()
        self._all_back = threading.Event()
        self._all_back.set()
        self._lock = threading.Lock()
        self._waiting: set[Waiter] = set()
        self._due: deque[Waiter] = deque()
        self._away: dict[Waiter, float] = {}  # rung, and when
        self._began = self._ended = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="herald", daemon=True)

    def __repr__(self) -> str:
        return f"<Herald {len(self._waiting)} waiting>"

    def start(self) -> None:
        """Begin to announce."""
        self._thread.start()

    def stop(self) -> None:
        """Wake everybody, and announce no more."""
        self._stopping = True
        self._bell.set()
        if self._thread.is_alive():
            self._thread.join()
        self.wake_all()

    def horizon(self, dataset: str) -> int:
        """Return up to which position rows were announced."""
        return self._horizons[dataset]

    def ring(self) -> None:
        """Note that rows have come; called by whoever appends, after each time."""
        if self._waiting and not self._bell.is_set():
            self._bell.set()

    def wake_all(self) -> None:
        """Wake everybody who waits at once, whether rows have come or not."""
        with self._lock:
            for waiter in self._waiting:
                self._ring(waiter)

    def wait(self, waiter: Waiter, seconds: float) -> None:
        """Wait until rows at or beyond a reader's position are announced, or as long as that.

        Rows of ``gaps`` wake everybody. It may return early; who asks looks for himself.
        """
        with self._lock:
            self._come_back(waiter)
            self._waiting.add(waiter)
        # What came before we were in the set has rung no bell.
        ends = self._ends()
        is_behind = ends[waiter.dataset] > waiter.position
        if is_behind or ends[GAPS.name] > self._horizons[GAPS.name]:
            self._bell.set()
        waiter.bell.acquire(timeout=seconds)
        with self._lock:
            self._waiting.discard(waiter)
            waiter.is_due = False
            waiter.bell.acquire(blocking=False)  # it may have been rung just when time was over

    def leave(self, waiter: Waiter) -> None:
        """Note that a reader has gone for good."""
        with self._lock:
            self._come_back(waiter)

    def _run(self) -> None:
        while not self._stopping:
            if not self._bell.wait(LOOK_SECONDS):
                continue
            self._bell.clear()
            self._announce()
            self._end_round()
            took = self._ended - self._began
            self._clock.sleep(max(ROUND_PAUSE_SECONDS, PAUSE_RATIO * took))

    def _announce(self) -> None:
        """Begin a round."""
        ends, before = self._ends(), self._horizons
        self._horizons = ends
        told = ends[GAPS.name] > before[GAPS.name]
        with self._lock:
            self._began = self._ended = self._clock.monotonic()
            for waiter in self._waiting:
                if not waiter.is_due and (told or ends[waiter.dataset] > waiter.position):
                    waiter.is_due = True
                    self._due.append(waiter)
            self._ring_next()
            if self._away:
                self._all_back.clear()

    def _end_round(self) -> None:
        """Wait until all who were rung are back, but for nobody who takes too long."""
        while not self._all_back.wait(BACK_SECONDS) and not self._stopping:
            late = self._clock.monotonic() - BACK_SECONDS
            with self._lock:
                for waiter in [one for one, rung in self._away.items() if rung <= late]:
                    self._come_back(waiter)

    def _come_back(self, waiter: Waiter) -> None:
        """Ring the next reader in the place of one who is back."""
        if self._away.pop(waiter, None) is None:
            return
        self._ring_next()
        if not self._away:
            self._ended = self._clock.monotonic()
            self._all_back.set()

    def _ring_next(self) -> None:
        while self._due and len(self._away) < READERS_AT_ONCE:
            waiter = self._due.popleft()
            if waiter.is_due and waiter in self._waiting:
                self._away[waiter] = self._clock.monotonic()
                self._ring(waiter)

    def _ring(self, waiter: Waiter) -> None:
        waiter.is_due = False
        if waiter.bell.locked():
            waiter.bell.release()
