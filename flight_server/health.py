"""What is wrong with the server right now, and since when.

A thread looks once a second, so that "since" is true although nobody asked when it happened. What
is judged are plain figures; the functions that judge them know neither the store nor the clock.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from storage.ports import MICROSECONDS, Clock

LOOK_SECONDS: Final = 1.0
"""How late a trouble may be noticed, and how long a shorter one may go unnoticed."""
SLOW_COMMIT_SECONDS: Final = 0.25
"""Median of a commit, over the commits of one look, from which the disk is too slow: it takes one
to ten milliseconds when all is well, and every ack waits for it."""
STALLED_SECONDS: Final = 2.0
"""How long rows may wait without any commit: disks stall for a second now and then."""
CLOCK_AHEAD_MAX: Final = 1 * MICROSECONDS
"""How far arrivals may lie ahead of the wall clock: time services correct less than a second a
few milliseconds at a time, and set the clock back for more."""
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with one part, and since when (µs)."""

    since: int
    detail: str


@dataclass(frozen=True, slots=True)
class Vitals:
    """The figures of one look.

    Attributes:
        used: Bytes of rows in memory.
        full: Bytes beyond which producers are held back.
        arrival: Newest instant rows arrived at, µs.
        commits: Transactions of the journal since start.
        waiting_rows: Rows not durable yet.
        commit_seconds: How long recent commits took, newest last.
        broken: What the journal itself says is wrong.
        broken_since: Since when, µs.
        writing: Model ids with a stream open.
        unsound: What spot-checks found wrong.
    """

    used: int
    full: int
    arrival: int
    commits: int
    waiting_rows: int
    commit_seconds: Sequence[float]
    broken: str | None
    broken_since: int | None
    writing: frozenset[str]
    unsound: str | None = None


def memory_trouble(used: int, full: int) -> str | None:
    """Judge memory."""
    if used <= full:
        return None
    return (
        f"{used / _GIB:.2f} GiB of rows where {full / _GIB:.2f} GiB may be: producers are held back"
        " until the rollover has made room; see what it says, or raise TICKFLIGHT_HOT_MEMORY_LIMIT"
    )


def clock_trouble(arrival: int, now: int) -> str | None:
    """Judge the wall clock by the newest arrival, which never runs backwards."""
    ahead = arrival - now
    if ahead <= CLOCK_AHEAD_MAX:
        return None
    return (
        f"the wall clock was set back: rows still arrive {ahead / MICROSECONDS:.1f} s ahead of it;"
        " check the machine's time synchronisation"
    )


class Health:
    """Remembers what is wrong since when; ``look`` again and again.

    Args:
        clock: Where time comes from.
        read: Returns the figures of this moment.
    """

    def __init__(self, clock: Clock, read: Callable[[], Vitals]) -> None:
        self.started = clock.now()
        self._clock = clock
        self._read = read
        self._lock = threading.Lock()
        # The mutable state: troubles by part, when past ones ended, what the last look
        # saw, who left when.
        self._troubles: dict[str, Trouble] = {}
        self._mended: dict[str, int] = {}
        self._commits = 0
        self._progress = (clock.monotonic(), self.started)
        self._writing: frozenset[str] = frozenset()
        self._left: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="health", daemon=True)

    def start(self) -> None:
        """Look every second until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Mapping[str, Trouble]:
        """Look now; return what is wrong, by the part it is wrong with."""
        with self._lock:
            vitals, now = self._read(), self._clock.now()
            self._note_writers(vitals.writing, now)
            self._note("memory", memory_trouble(vitals.used, vitals.full), now)
            self._note("clock", clock_trouble(vitals.arrival, now), now)
            self._note("spot_checks", vitals.unsound, now)
            self._note_journal(vitals, now)
            return dict(self._troubles)

    def well_since(self, part: str) -> int:
        """Return since when nothing was wrong with a part (µs)."""
        with self._lock:
            return self._mended.get(part, self.started)

    def silent_since(self, model_id: str) -> int | None:
        """Return since when a writer has no stream open (µs); None when it has one."""
        with self._lock:
            if model_id in self._writing:
                return None
            return self._left.get(model_id, self.started)

    def _keep_looking(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()

    def _note(self, part: str, detail: str | None, since: int) -> None:
        known = self._troubles.pop(part, None)
        if detail is not None:
            self._troubles[part] = Trouble(known.since if known else since, detail)
        elif known is not None:
            self._mended[part] = since

    def _note_writers(self, writing: frozenset[str], now: int) -> None:
        self._left.update(dict.fromkeys(self._writing - writing, now))
        for model_id in writing:
            self._left.pop(model_id, None)
        self._writing = writing

    def _note_journal(self, vitals: Vitals, now: int) -> None:
        fresh = vitals.commits - self._commits
        seconds = self._clock.monotonic()
        if fresh or not vitals.waiting_rows:
            self._commits, self._progress = vitals.commits, (seconds, now)
        if vitals.broken is not None:
            self._note("journal", vitals.broken, vitals.broken_since or now)
            return
        stalled = seconds - self._progress[0]
        if stalled > STALLED_SECONDS:
            rows = f"{vitals.waiting_rows:,} rows"
            detail = f"no commit for {stalled:.0f} s while {rows} wait: the disk does not answer"
            self._note("journal", detail, self._progress[1])
        else:
            # An idle look says nothing about the disk; a stall that is just ending is no news.
            newest = list(vitals.commit_seconds)[-fresh:] if fresh else []
            self._note("journal", _slowness(newest), now)


def _slowness(commit_seconds: Sequence[float]) -> str | None:
    typical = median(commit_seconds) if commit_seconds else 0.0
    if typical <= SLOW_COMMIT_SECONDS:
        return None
    return (
        f"a commit takes {typical * 1000:.0f} ms: acknowledgements are late; see what else writes"
        " to this disk, or move TICKFLIGHT_DATA_DIR to a faster one"
    )
