"""The rollover: finished journal files become parts of the lake, and their rows leave memory.

One thread, one segment after another, in the order they came:

    child writes files ─► commit, a table at a time ─► bars ─► ledger ─► (hot window) ─► flip

Each step is found done or not done by what it has left behind: the tables say up to which position
they have rows, the producers' marks which parts the ledger knows. So there is nothing to restore
after a crash but to begin again. A step that fails leaves memory and journal as they were, and is
tried again.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from storage.errands import Errands
from storage.errors import LakeError, StorageError, StoreClosedError
from storage.journal import HOUR
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.ports import Clock
from storage.rollover_parts import AfterPart, Parts, RolloverConfig, RolloverStatus, State
from storage.rollover_task import PartResult, PartTask, RolloverTask
from storage.segments import Segment
from storage.synthetic import real_symbols

POLL_SECONDS: Final = 0.25
"""How often memory, the clock and the hot window are looked at."""
RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 60.0
"""Longest pause between attempts: a disk that has room again is noticed within a minute."""
HOLD_BACK_RATIO: Final = 1.25
"""How far over their limit rows may go before producers are held back: until then, rolling over
early has the chance to make room without anybody noticing."""
PRESSURE_ROWS_MIN: Final = 1 << 17
"""Rows a running file is ended for because of memory: a chunk of a store, the least to be freed."""

T = TypeVar("T")


class Rollover:
    """Rolls over by itself, on the hour and under memory pressure; ``start`` once, ``stop`` once.

    Args:
        config: Where to and when.
        parts: What, and what with.
        clock: Where time comes from.
        on_failure: Called when the thread can't go on.
    """

    def __init__(
        self,
        config: RolloverConfig,
        parts: Parts,
        clock: Clock,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._parts = parts
        self._clock = clock
        self._on_failure = on_failure
        self._status = RolloverStatus(since=clock.now())
        self._stopping = threading.Event()
        self._asked = threading.Event()
        self._pause = 0.0
        # Number of the newest segment that the lake has, with all that must follow it.
        self._followed = parts.segments.begins_after
        self._followers: tuple[AfterPart, ...] = ()
        self._first: list[Callable[[], None]] = []
        self._in_doubt: set[str] = set()  # tables that a failed commit may have changed
        self._errands = Errands(self._asked)
        self._thread = threading.Thread(target=self._run, name="rollover", daemon=True)

    def after_part(self, follow: AfterPart) -> None:
        """Have something done after each part, before its rows leave memory; before ``start``."""
        self._followers = (*self._followers, follow)

    def first(self, do: Callable[[], None]) -> None:
        """Have something done before the next part, again until it succeeds.

        To be called before ``start``, and by this thread.
        """
        self._first.append(do)

    def between_segments(self, action: Callable[[], T]) -> T:
        """Have the thread do something between two segments, since it alone adds parts to tables.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        return self._errands.ask(action, self._thread)

    def follow(self, dataset: str, files: Sequence[WrittenFile]) -> None:
        """Do what has to follow a part of a table, whatever way it came; by this thread alone.

        Raises:
            StorageError: It has to be tried again.
        """
        for follow in self._followers:
            follow(dataset, files)
        self._parts.own_rows.tell_parts(self._parts.tables[dataset])

    def start(self) -> None:
        """Begin to roll over."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop; what is half done is done again in the next life."""
        self._stopping.set()
        self._asked.set()

    def join(self) -> None:
        """Wait for the end, once journal and appender have stopped: it may be waiting for them."""
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, *, everything: bool) -> int:
        """Have closed segments rolled over now; return the number of the last of them.

        Args:
            everything: Close the running segment first.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        last = self._parts.journal.roll() if everything else self._parts.segments.newest
        self._pause = 0.0
        self._asked.set()
        return last

    @property
    def status(self) -> RolloverStatus:
        """How it is doing."""
        waiting = [s for s in self._parts.segments if s.number > self._followed]
        return replace(
            self._status,
            unrolled=len(waiting),
            unrolled_rows=sum(segment.rows for segment in waiting),
            oldest=waiting[0].arrival if waiting else None,
            through=self._followed,
        )

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._asked.wait(max(POLL_SECONDS, self._pause))
                self._asked.clear()
                self._errands.run()
                self._try()
        except BaseException as error:  # noqa: BLE001 - the process can't go on half alive
            self._on_failure(error)

    def _try(self) -> None:
        try:
            self.step()
        except StoreClosedError:
            return
        except Exception as error:  # noqa: BLE001 - memory and journal are as they were
            self._note_failure(str(error) if isinstance(error, StorageError) else repr(error))
        else:
            self._pause = 0.0
            mended = self._status.state is State.DEGRADED
            self._note(State.RUNNING, "")
            if mended:
                self._tell("info", "running", "the lake takes parts again")

    def step(self) -> None:
        """Do whatever is due, once.

        Raises:
            StorageError: Something failed; nothing is lost, and it can be tried again.
        """
        while self._first:
            self._first[0]()
            del self._first[0]
        self._end_the_hour()
        for segment in self._parts.segments:
            if self._stopping.is_set():
                return
            if segment.number > self._followed:
                self._roll(segment)
                self._errands.run()
            self._let_go()
        self._relieve()
        self._let_go()
        self._parts.expiry.remove_old(self._has_left)

    def _end_the_hour(self) -> None:
        journal = self._parts.journal
        if journal.open_rows and self._clock.now() >= journal.open_hour + HOUR:
            journal.roll()

    # One segment

    def _roll(self, segment: Segment) -> None:
        """Bring one segment into the lake, whatever of it is there already."""
        for name in tuple(self._in_doubt):
            table = self._parts.tables[name]
            table.refresh()
            self._in_doubt.discard(name)
            self._parts.memory.show(table)
        due = [table for table in self._parts.tables.values() if _is_due(table, segment)]
        if due:
            for part in self._written(segment, due):
                self._commit(segment, part)
        self._follow(segment)
        self._status = replace(self._status, rows=self._status.rows + segment.rows)
        self._followed = segment.number

    def _written(self, segment: Segment, due: Sequence[LakeTable]) -> Sequence[PartResult]:
        real = real_symbols(self._parts.tables)
        task = RolloverTask(
            journal=str(segment.path),
            lake=str(self._config.lake),
            token=secrets.token_hex(6),
            parts=tuple(
                PartTask(
                    table.dataset.name,
                    table.part + 1,
                    *segment.span(table.dataset.name),
                    without_synthetic=real.get(table.dataset.name, ()),
                )
                for table in due
            ),
        )
        result = self._parts.write(task, self._stopping)
        asked = [(part.dataset, part.part, part.first, part.end) for part in task.parts]
        if asked != [(part.dataset, part.part, part.first, part.end) for part in result.parts]:
            raise LakeError(f"{segment.path}: other parts were written than those asked for")
        return result.parts

    def _commit(self, segment: Segment, part: PartResult) -> None:
        table = self._parts.tables[part.dataset]
        self._in_doubt.add(part.dataset)  # until it has come back, nobody knows
        table.commit_part(part.part, part.first, part.end, segment.epoch, part.files)
        self._in_doubt.discard(part.dataset)
        self._parts.memory.show(table)

    def _follow(self, segment: Segment) -> None:
        """Do what has to follow a segment's parts: in this life, so once a life at least."""
        for table in self._parts.tables.values():
            first, end = segment.span(table.dataset.name)
            if first == end:
                continue
            self.follow(table.dataset.name, _files_of(table, end) if self._followers else ())

    # Memory

    def _let_go(self) -> None:
        """Let segments leave memory whose time is over; under pressure, any that may."""
        now = self._clock.now()
        for segment in self._parts.segments:
            if segment.number > self._followed:
                return
            if self._has_left(segment):
                continue
            over = segment.arrival + self._config.hot_window_us <= now
            if not over and not self._is_pressed():
                return
            self._parts.memory.flip(segment.end)

    def _has_left(self, segment: Segment) -> bool:
        """Whether the lake has all of a segment, and memory nothing."""
        return segment.number <= self._followed and all(
            self._parts.memory.base(name) >= end for name, end in segment.end.items()
        )

    def _relieve(self) -> None:
        """End the running file where nothing else can leave memory."""
        left = all(self._has_left(segment) for segment in self._parts.segments)
        rows = self._parts.journal.open_rows
        held_back = self._parts.memory.row_bytes > HOLD_BACK_RATIO * self._config.memory_limit
        enough = rows >= PRESSURE_ROWS_MIN or (rows and held_back)
        if self._is_pressed() and left and enough:
            self._parts.journal.roll()
            self._asked.set()

    def _is_pressed(self) -> bool:
        return self._parts.memory.row_bytes > self._config.memory_limit

    # Telling

    def _note(self, state: State, detail: str) -> None:
        before = self._status
        same = before.state is state
        self._status = replace(
            before,
            state=state,
            since=before.since if same else self._clock.now(),
            detail=detail,
        )

    def _note_failure(self, why: str) -> None:
        raised = self._status.state is State.RUNNING
        self._note(State.DEGRADED, why)
        self._status = replace(self._status, failures=self._status.failures + 1)
        self._pause = min(max(2 * self._pause, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
        if raised:
            self._tell("error", "degraded", why)

    def _tell(self, level: str, event: str, detail: str) -> None:
        try:
            self._parts.own_rows.tell_event("rollover", level, event, detail)
        except StorageError:
            return  # it is in the status all the same


def _is_due(table: LakeTable, segment: Segment) -> bool:
    first, end = segment.span(table.dataset.name)
    return first < end and table.position < end


def _files_of(table: LakeTable, end: int) -> Sequence[WrittenFile]:
    """Return the files of the part that ends at a position, as they were committed."""
    depth = 4
    while True:
        after = max(table.part - depth, 0)
        for record in table.parts(after):
            if record.end == end and record.first < end:
                return record.files
        if not after:
            return ()
        depth *= 4
