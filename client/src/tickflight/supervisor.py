"""The thread that looks after a writer: dials, notices silence, moves rows to disk."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from tickflight.link import Event, Phase
from tickflight.outbox import GATHER_ROWS, Batch, Outbox
from tickflight.spooler import SPILL_BYTES, SPILL_LINGER_SECONDS, Spooler
from tickflight.state import WriterState

ACK_TIMEOUT_SECONDS: Final = 30.0
"""Silence while batches are in flight that counts as a lost connection. A disk that stalls for
seconds is normal; a machine that vanished sends no goodbye."""


class Supervisor:
    """One thread for a writer's life; it alone touches the spool, save to read."""

    def __init__(self, state: WriterState, open_stream: Callable[[Outbox, int], None]) -> None:
        """Take ``open_stream``, which begins a stream of an outbox under a generation number."""
        self._state = state
        self._open_stream = open_stream
        self._thread = threading.Thread(
            target=self._supervise, name="tickflight-writer", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, which comes when the state is stopped."""
        self._thread.join()

    def _supervise(self) -> None:
        try:
            while (chore := self._next_chore()) is not None:
                chore()
        except Exception as error:  # noqa: BLE001 - a silent end would leave callers waiting
            with self._state.lock:
                self._state.fail(error)

    def _next_chore(self) -> Callable[[], None] | None:
        """What to do next without the lock; None at the end."""
        state = self._state
        with state.lock:
            while not state.stopped:
                now = time.monotonic()
                self._notice_silence(now)
                if state.spooler is not None:
                    if state.spooler.has_done(state.lanes) and not state.spooler.resting(now):
                        return partial(self._release, state.spooler)
                    if batches := self._batches_to_spill(now):
                        return partial(self._spill, state.spooler, batches, state.own.durable)
                self._dial(now)
                state.chores.wait(self._patience(now))
            if state.link.streaming:
                state.link.lost(time.monotonic())
            state.link.on(Event.STOP)
            state.wake_all()
            return None

    def _notice_silence(self, now: float) -> None:
        state = self._state
        if not state.link.streaming or now < self._silence_ends():
            return
        state.lose(f"no ack for {ACK_TIMEOUT_SECONDS:.0f} seconds")
        state.wake_all()

    def _silence_ends(self) -> float:
        state = self._state
        waiting = state.lane.in_flight or state.link.phase is Phase.ENDING
        return state.last_progress + ACK_TIMEOUT_SECONDS if waiting else float("inf")

    def _dial(self, now: float) -> None:
        state = self._state
        if not state.wants_stream or state.link.wait(now) != 0:
            return
        state.lane.rewind()
        state.link.dial()
        state.last_progress = state.dialled_at = now
        self._open_stream(state.lane, state.link.generation)

    def _patience(self, now: float) -> float | None:
        """Seconds until something is to be done though nothing happens."""
        state = self._state
        deadlines = []
        if state.link.streaming:
            deadlines.append(ACK_TIMEOUT_SECONDS)
        elif state.wants_stream and (wait := state.link.wait(now)) is not None:
            deadlines.append(wait)
        if state.wants_spill:
            idle = 0.0 if state.spooler is None else state.spooler.idle_until - now
            deadlines.append(max(SPILL_LINGER_SECONDS, idle))
        return min(deadlines, default=None)

    def _batches_to_spill(self, now: float) -> list[Batch]:
        state = self._state
        if state.spooler is None or state.spooler.resting(now) or not state.wants_spill:
            return []
        if (
            (state.own.age(now) or 0.0) >= SPILL_LINGER_SECONDS
            or state.own.gathered_rows >= GATHER_ROWS
            or state.pressed
            or state.closing
        ):
            while state.own.seal():
                pass
        return state.own.to_spill(SPILL_BYTES)

    def _spill(self, spooler: Spooler, batches: Sequence[Batch], durable: int) -> None:
        state = self._state
        places = spooler.spill(state.own.title, batches, durable=durable)
        with state.lock:
            for batch, place in zip(batches, places, strict=False):  # a full spool takes the first
                state.own.spilled(batch, place)
            if len(places) < len(batches):
                state.last_failure = spooler.failure
            state.progress.notify_all()

    def _release(self, spooler: Spooler) -> None:
        with self._state.lock:
            marks = [(lane.title, lane.durable) for lane in self._state.lanes]
        spooler.release(marks)
