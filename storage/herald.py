"""Waking readers when rows have come, without anybody who appends waiting for them.

The appender only rings a bell, and only while somebody waits. A thread of our own then announces
how far each dataset has grown, in *rounds* that keep apart, and rings the readers one after the
other: each rings the next one as it wakes. Two hundred threads that woke at once would spend their
time fighting for the interpreter, and the appender's with it. As all readers see the same announced
ends, those who want the same rows read the same blocks.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, final

from storage.ports import Clock
from storage.schemas import GAPS

ROUND_SECONDS_MIN: Final = 0.001
"""Least time between rounds: a wake costs more than the rows of a millisecond."""
ROUND_SECONDS_PER_READER: Final = 0.000_1
"""What is added for each reader: about what reading and sending a block costs."""
ROUND_SECONDS_MAX: Final = 0.05
"""Most time between rounds, however many wait."""
LOOK_SECONDS: Final = 0.5
"""How often the thread looks whether it should end."""


@final
class Waiter:
    """One reader, as the herald knows it.

    Attributes:
        dataset: What it reads.
        position: Position of the next row it wants.
    """

    __slots__ = ("bell", "dataset", "is_due", "is_rung", "position")

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.position = 0
        self.bell = threading.Lock()
        self.bell.acquire()
        self.is_due = False
        self.is_rung = False


@final
class Herald:
    """Announces growth. ``start`` once, ``stop`` once.

    Args:
        ends: Returns the position after the newest row of each dataset.
        clock: Where pauses come from.
    """

    def __init__(self, ends: Callable[[], Mapping[str, int]], clock: Clock) -> None:
        self._ends = ends
        self._clock = clock
        self._horizons = ends()
        self._bell = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[Waiter] = set()
        self._due: deque[Waiter] = deque()
        self._is_ringing = False
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
        """Wake everybody who waits, whether rows have come or not."""
        with self._lock:
            for waiter in self._waiting:
                self._make_due(waiter)
            self._ring_next()

    def wait(self, waiter: Waiter, seconds: float) -> None:
        """Wait until rows at or beyond a reader's position are announced, or as long as that.

        Rows of ``gaps`` wake everybody. It may return early; who asks looks for himself.
        """
        with self._lock:
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
            if waiter.is_rung:
                waiter.is_rung = self._is_ringing = False
                waiter.bell.acquire(blocking=False)  # rung just when the time was over
                self._ring_next()

    def _run(self) -> None:
        while not self._stopping:
            if not self._bell.wait(LOOK_SECONDS):
                continue
            self._bell.clear()
            pause = self._announce()
            self._clock.sleep(pause)

    def _announce(self) -> float:
        """Begin a round; return how long to wait before the next one."""
        ends, before = self._ends(), self._horizons
        self._horizons = ends
        told = ends[GAPS.name] > before[GAPS.name]
        with self._lock:
            for waiter in self._waiting:
                if told or ends[waiter.dataset] > waiter.position:
                    self._make_due(waiter)
            self._ring_next()
            readers = len(self._waiting)
        return min(ROUND_SECONDS_MIN + readers * ROUND_SECONDS_PER_READER, ROUND_SECONDS_MAX)

    def _make_due(self, waiter: Waiter) -> None:
        if not waiter.is_due and not waiter.is_rung:
            waiter.is_due = True
            self._due.append(waiter)

    def _ring_next(self) -> None:
        """Ring the next reader who is due, unless one is waking up just now: he will."""
        while self._due and not self._is_ringing:
            waiter = self._due.popleft()
            if waiter.is_due and waiter in self._waiting:
                waiter.is_due, waiter.is_rung = False, True
                self._is_ringing = True
                waiter.bell.release()
