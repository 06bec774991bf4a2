"""How many streams may run, which of them are stuck, and how all of them stop.

A stream holds a thread for as long as its client takes, and pyarrow can't end one whose client
takes nothing: it sits in gRPC's flow control. So a stream that has made no progress for a while may
lose its *slot* to one that will; its thread ends when its client reads on, cancels or dies.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final, final

from flight_server.errors import BusyError
from storage.ports import Clock, SystemClock

READ_STREAMS_MAX: Final = 256
"""Answers streaming at once: each holds a block of rows besides its thread."""
READ_STREAMS_PER_KEY_MAX: Final = 128
"""Of them for one key, so that no model alone keeps the others waiting."""
WRITE_STREAMS_MAX: Final = 128
"""Producers at once; apart from the readers, who must never keep data from coming in."""
WRITE_STREAMS_PER_KEY_MAX: Final = 64
"""Of them for one key."""
LIVE_STREAMS_MAX: Final = 512
"""Live streams at once: they last for hours, so they must not take the place of answers."""
LIVE_STREAMS_PER_KEY_MAX: Final = 256
"""Of them for one key."""
STALL_SECONDS: Final = 60.0
"""How long a stream may make no progress before its slot may go to another: far longer than a
reader thinks about a block of rows, shorter than an operator waits."""
CUT_SECONDS: Final = 0.1
"""How long streams that were told to end get to do so."""


@final
class Slot:
    """The right of one stream to run."""

    __slots__ = ("_home", "key_id", "model_id", "moved_at")

    def __init__(self, home: "StreamSlots", key_id: str, model_id: str, now: float) -> None:
        self._home = home
        self.key_id = key_id
        self.model_id = model_id
        self.moved_at = now

    def moved(self) -> None:
        """Note progress.

        Raises:
            BusyError: The stream has lost its slot, or the server is shutting down: it must end.
        """
        self._home.note_progress(self)

    def release(self) -> None:
        """Give the slot back, once however often it is called."""
        self._home.take_back(self)


@final
class StreamSlots:
    """Admits streams of one kind up to a limit, and none while draining.

    Args:
        limit: Streams at once.
        per_key: Of them for one key.
        clock: Where time comes from.
        on_cut: Called when streams are to end that may be waiting for something else.
    """

    def __init__(
        self,
        limit: int = READ_STREAMS_MAX,
        per_key: int = READ_STREAMS_PER_KEY_MAX,
        clock: Clock | None = None,
        on_cut: Callable[[], None] | None = None,
    ) -> None:
        self._limit = limit
        self._per_key = per_key
        self._clock = clock or SystemClock()
        self._on_cut = on_cut
        self._changed = threading.Condition()
        self._running: set[Slot] = set()
        self._by_key: Counter[str] = Counter()
        self._evicted: set[Slot] = set()
        self._draining = False
        self._cut = False

    def __repr__(self) -> str:
        state = "draining" if self._draining else "open"
        return f"<StreamSlots {state} {self.taken} of {self._limit}>"

    @property
    def taken(self) -> int:
        """Streams running."""
        return len(self._running)

    @property
    def stalled(self) -> int:
        """Streams whose client has taken or sent nothing for ``STALL_SECONDS``."""
        with self._changed:
            return len(self._evicted) + len(self._stalled())

    @property
    def owners(self) -> frozenset[str]:
        """Model ids whose streams run, as far as they were named."""
        with self._changed:
            return frozenset(slot.model_id for slot in self._running)

    def take(self, key_id: str, model_id: str = "") -> Slot:
        """Take a slot.

        Raises:
            BusyError: All are taken and in use, or the server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise BusyError("the server is shutting down; retry in a moment")
            if self._by_key[key_id] >= self._per_key and not self._evict(key_id):
                message = f"{self._per_key} streams of this key are running"
                raise BusyError(f"{message}; close one or retry later")
            if self.taken >= self._limit and not self._evict(None):
                raise BusyError(f"{self._limit} streams are running; close one or retry later")
            slot = Slot(self, key_id, model_id, self._clock.monotonic())
            self._running.add(slot)
            self._by_key[key_id] += 1
        return slot

    def note_progress(self, slot: Slot) -> None:
        """See ``Slot.moved``."""
        if self._cut:
            raise BusyError("the server is shutting down; ask again in a moment")
        slot.moved_at = self._clock.monotonic()
        if slot in self._evicted:
            message = (
                f"the stream stood still for {STALL_SECONDS:.0f} s and others needed its place"
            )
            raise BusyError(f"{message}; ask again from where you were")

    def take_back(self, slot: Slot) -> None:
        """See ``Slot.release``."""
        with self._changed:
            self._evicted.discard(slot)
            self._leave(slot)
            self._changed.notify_all()

    def refuse(self) -> None:
        """Admit no more."""
        with self._changed:
            self._draining = True

    def drain(self, seconds: float) -> bool:
        """Admit no more, wait for those that run, then cut them; return whether all have ended."""
        self.refuse()
        with self._changed:
            if self._changed.wait_for(self._all_ended, seconds):
                return True
            self._cut = True
            if self._on_cut is not None:
                self._on_cut()
            return self._changed.wait_for(self._all_ended, CUT_SECONDS)

    def _all_ended(self) -> bool:
        return not self._running

    def _leave(self, slot: Slot) -> None:
        if slot in self._running:
            self._running.remove(slot)
            self._by_key[slot.key_id] -= 1
            if not self._by_key[slot.key_id]:
                del self._by_key[slot.key_id]

    def _stalled(self) -> list[Slot]:
        before = self._clock.monotonic() - STALL_SECONDS
        return [slot for slot in self._running if slot.moved_at < before]

    def _evict(self, key_id: str | None) -> bool:
        """Free the slot that has stood still longest; not without end, for threads are not free."""
        stalled = [slot for slot in self._stalled() if key_id in (None, slot.key_id)]
        if not stalled or len(self._evicted) >= self._limit:
            return False
        longest = min(stalled, key=lambda slot: slot.moved_at)
        self._leave(longest)
        self._evicted.add(longest)
        return True
