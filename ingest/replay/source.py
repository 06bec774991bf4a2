"""The replay feed: a tape played against the clock, as if its market were open now.

The market of a replay has a clock of its own. It begins now and runs ``speed`` times as fast as
ours; ``ts_event`` and ``ts_recv`` are instants of that clock, so that rows are as far apart as they
were, and bars and features come out as they did then. Faster than 1, it runs ahead of our clock.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from ingest.errors import ConfigurationError, ImportFileError, SourceRefusedError
from ingest.ports import Clock
from ingest.replay.tape import Tape, instants_of
from ingest.source import Continuity, SourceProfile, SourceWriter
from storage.schemas import TIMESTAMP, Flag

SOURCE: Final = "replay"
STEP_SECONDS: Final = 0.01
"""Rows that fall due within it go out together: what a live feed's network would do as well."""
SPEED_MAX: Final = 100_000.0
"""A day in a second; who wants it faster wants 0, as fast as it goes."""
SEQUENCE_BITS: Final = 11
"""A run's rows are numbered from its instant in µs, shifted by so many bits: no two runs meet, and
none does with a row of an earlier one, short of two billion rows a second. Lasts until 2112."""
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far a replay is; instants of the tape, in µs."""

    rows: int
    rows_total: int
    at: int
    first: int
    last: int


class ReplaySource:
    """Plays a tape once.

    Args:
        tape: What to play.
        speed: So many times as fast as it happened; 0 is as fast as the service takes it.
        clock: Where time comes from.
        report: Called after each write.

    Raises:
        ConfigurationError: The speed is none.
    """

    def __init__(
        self,
        tape: Tape,
        *,
        speed: float,
        clock: Clock,
        report: Callable[[ReplayProgress], None] = lambda _: None,
    ) -> None:
        if not 0 <= speed <= SPEED_MAX:
            raise ConfigurationError(
                f"the speed must lie between 0 (as fast as possible) and {SPEED_MAX:,.0f}"
            )
        self._tape = tape
        self._speed = speed
        self._clock = clock
        self._report = report
        # The mutable state: what has been played. It outlives a failed run, so that the next one
        # goes on where that one was.
        self._batches = tape.batches()
        self._rest: pa.RecordBatch | None = None
        self._begun: float | None = None
        self._shift = 0
        self._sequence = 0
        self.rows = 0
        """Rows that were written so far."""

    @property
    def profile(self) -> SourceProfile:
        """See ``Source.profile``."""
        return SourceProfile(SOURCE, ("ticks",), (self._tape.symbol,), Continuity.SYNTHETIC)

    async def run(self, writer: SourceWriter) -> None:
        """Play to the end of the tape, and see everything durable.

        Raises:
            SourceRefusedError: A file can't be read any more.
        """
        self._begin()
        while (rest := await self._next_rows()) is not None:
            due = self._due(rest)
            if not due:
                await self._clock.sleep(self._seconds_to(rest))
                continue
            await writer.write("ticks", self._as_live(rest.slice(0, due)))
            self._played(rest, due)
        await writer.flush()

    def _begin(self) -> None:
        if self._begun is None:
            now = self._clock.now()
            self._begun = self._clock.monotonic()
            self._shift = now - self._tape.first
            self._sequence = now << SEQUENCE_BITS

    async def _next_rows(self) -> pa.RecordBatch | None:
        """Return what is to be played next; it stays that until it has been written."""
        if self._rest is None:
            try:
                self._rest = await asyncio.to_thread(next, self._batches, None)
            except ImportFileError as error:
                raise SourceRefusedError(str(error)) from error
        return self._rest

    def _due(self, batch: pa.RecordBatch) -> int:
        """Return how many rows have happened by now."""
        if not self._speed:
            return int(batch.num_rows)
        passed = self._clock.monotonic() - (self._begun or 0.0)
        until = self._tape.first + int(passed * self._speed * _MICROSECONDS)
        return int(instants_of(batch).searchsorted(until, side="right"))

    def _seconds_to(self, batch: pa.RecordBatch) -> float:
        """Return how long it is until the next row happens, and then a little."""
        after = (int(instants_of(batch)[0]) - self._tape.first) / _MICROSECONDS / self._speed
        passed = self._clock.monotonic() - (self._begun or 0.0)
        return max(after - passed, STEP_SECONDS)

    def _played(self, batch: pa.RecordBatch, count: int) -> None:
        self._rest = batch.slice(count) if count < batch.num_rows else None
        self.rows += count
        tape, at = self._tape, int(instants_of(batch)[count - 1])
        self._report(ReplayProgress(self.rows, tape.rows, at, tape.first, tape.last))

    def _as_live(self, ticks: pa.RecordBatch) -> pa.RecordBatch:
        """Return ticks as the feed of this market would have sent them."""
        numbers = np.arange(self.rows, self.rows + ticks.num_rows, dtype=np.int64)
        flags = ticks.column("flags").to_numpy() & ~np.uint16(Flag.BACKFILLED)
        index = pa.array(np.zeros(ticks.num_rows, np.int32))
        columns = {
            "ts_event": pa.array(instants_of(ticks) + self._shift).cast(TIMESTAMP),
            "ts_recv": pa.array(instants_of(ticks, "ts_recv") + self._shift).cast(TIMESTAMP),
            "flags": pa.array(flags | np.uint16(Flag.SYNTHETIC)),
            "sequence": pa.array(self._sequence + numbers),
            "source": pa.DictionaryArray.from_arrays(index, pa.array([SOURCE])),
        }
        return pa.RecordBatch.from_arrays(
            [columns.get(name, ticks.column(name)) for name in ticks.schema.names],
            schema=ticks.schema,
        )
