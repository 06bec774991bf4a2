"""The demo feed: plays the synthetic market against the wall clock."""

from collections.abc import Sequence
from typing import Final

import structlog

from ingest.demo.market import SOURCE, Market
from ingest.ports import Clock
from ingest.source import Continuity, SourceProfile, SourceWriter

STEP_SECONDS: Final = 0.02
"""Rows go out this often: a frame of a page at 50 Hz, and 2,000 rows a batch at 100,000/s."""
BURST_MAX_US: Final = 1_000_000
"""Longest stretch made up for in one go; after a longer pause the market has moved on without us,
as a real feed would, instead of bursting through hours."""

_log = structlog.get_logger(__name__)


class DemoSource:
    """Synthetic ticks and quotes in real time.

    Args:
        symbols: What trades.
        rate: Ticks a second over all symbols, see ``Market``.
        clock: Where time comes from.
        seed: Another seed is another market.

    Raises:
        ConfigurationError: See ``Market``.
    """

    def __init__(self, symbols: Sequence[str], *, rate: int, clock: Clock, seed: int = 0) -> None:
        self._market = Market(symbols, rate=rate, seed=seed)
        self._clock = clock
        # The mutable state of the feed is the end of the last window written; it outlives a failed
        # run so that the next one neither repeats nor goes back.
        self._position: int | None = None
        self._holding = False

    @property
    def profile(self) -> SourceProfile:
        """See ``Source.profile``."""
        return SourceProfile(
            SOURCE, ("ticks", "quotes"), self._market.symbols, Continuity.SYNTHETIC
        )

    async def run(self, writer: SourceWriter) -> None:
        """Write the market as it happens; never returns by itself."""
        due = self._clock.monotonic()
        while True:
            await self._emit(writer)
            due = max(due + STEP_SECONDS, self._clock.monotonic())
            await self._clock.sleep(due - self._clock.monotonic())

    async def _emit(self, writer: SourceWriter) -> None:
        """Write what has happened since the last window, however long the step really took."""
        now = self._clock.now()
        start = now if self._position is None else self._position
        if now <= start:
            # The first step, or the wall clock went back: times already written must not come
            # again, so the market waits for the clock to catch up.
            self._position = start
            self._hold(start - now)
            return
        self._holding = False
        if now - start > BURST_MAX_US:
            _log.info("demo skips ahead", seconds=(now - start) / 1_000_000)
            start = now - BURST_MAX_US
        # Before the writes: a failure between them must not lead to half a window twice.
        self._position = now
        await writer.write("ticks", self._market.ticks(start, now, received=now))
        await writer.write("quotes", self._market.quotes(start, now, received=now))

    def _hold(self, behind: int) -> None:
        if behind > BURST_MAX_US and not self._holding:
            _log.warning("demo waits: the wall clock went back", seconds=behind / 1_000_000)
            self._holding = True
