"""The tastytrade feed: logs in, follows its instruments over a connection, writes what comes.

    run ──► log in ──► look up instruments ──► connect ──► subscribe ──► frames ──► rows
                              ▲                                │
                              └── once a day, in the break ────┘  the old connection ends last

Whatever fails ends the run, and the runner begins a new one with nothing of the old; what had come
by then is written first.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Final

import structlog
from tastytrade import Session
from tastytrade.dxfeed import Quote, TimeAndSale, Trade

from ingest.errors import SourceSilentError
from ingest.ports import Clock, SystemClock
from ingest.source import Continuity, SourceProfile, SourceWriter
from ingest.tastytrade.account import Account, logged_in
from ingest.tastytrade.contracts import Instruments, look_up, rolled
from ingest.tastytrade.events import (
    LAST_TRADE,
    QUOTES_EVENT,
    SOURCE,
    TRADES,
    UNREADABLE,
    Converter,
    Events,
    Rows,
    converted,
    gathered,
)
from ingest.tastytrade.failures import FOREIGN, failure_of
from ingest.tastytrade.frames import Intake
from ingest.tastytrade.market import is_open
from ingest.tastytrade.rotation import seconds_to_rotation
from ingest.tastytrade.streamer import FeedStreamer, Patience
from ingest.tastytrade.volume import VolumeWatch
from storage.schemas import QUARANTINE, QUOTES, TICKS, Dataset

GATHER_SECONDS: Final = 0.004
"""Frames of so long become rows together: a batch costs a hundred times what a row does."""
TRADES_PERIOD_SECONDS: Final = 0.0
"""The feed is asked not to wait and gather trades; they come one by one, all of them."""
QUOTES_PERIOD_SECONDS: Final = 0.1
"""Quotes are the latest of each period, whatever it is: ten a second tell where the market is."""
CLOCK_MARGIN_US: Final = 2_000_000
"""Clocks that are kept differ by milliseconds, and trades take less than a second to come."""

LAST_ROWS_SECONDS: Final = 0.7
"""What came before a failure or a stop is written within this, or is lost and inside a gap."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What a feed takes from outside; tests bring their own.

    Attributes:
        clock: Where time comes from.
        patience: How long a connection waits.
        jitter: Uniform in [0, 1), one value a rotation.
        rotation_seconds: Time to the next rotation, from an instant (µs) and a jitter.
        clock_margin_us: See ``SourceProfile``.
    """

    clock: Clock = field(default_factory=SystemClock)
    patience: Patience = field(default_factory=Patience)
    jitter: Callable[[], float] = SystemRandom().random
    rotation_seconds: Callable[[int, float], float] = seconds_to_rotation
    clock_margin_us: int = CLOCK_MARGIN_US


class TastytradeSource:
    """Ticks and quotes of a tastytrade account's feed.

    Args:
        symbols: What people ask for; futures without their month.
        account: Who logs in.
        options: See ``FeedOptions``.
    """

    def __init__(
        self, symbols: Sequence[str], account: Account, options: FeedOptions | None = None
    ) -> None:
        self._symbols = tuple(dict.fromkeys(symbols))
        self._account = account
        self._options = options or FeedOptions()
        self._clock = self._options.clock
        # Outlives a run: a contract left behind is followed whether or not a connection broke.
        self._instruments = Instruments()

    @property
    def profile(self) -> SourceProfile:
        """See ``Source.profile``."""
        return SourceProfile(
            SOURCE,
            (TICKS.name, QUOTES.name),
            self._symbols,
            Continuity.LOST,
            self._options.clock_margin_us,
        )

    async def run(self, writer: SourceWriter) -> None:
        """Follow the feed; returns never by itself."""
        try:
            async with logged_in(self._account) as session:
                await self._follow(session, writer)
        except (ExceptionGroup, *FOREIGN) as error:
            raise failure_of(error) from error

    async def _follow(self, session: Session, writer: SourceWriter) -> None:
        """Keep a connection and write what comes, until either fails."""
        intake = Intake()
        feed = asyncio.create_task(self._keep_connected(session, writer, intake))
        writing = asyncio.create_task(self._write(intake, writer))
        try:
            await asyncio.wait({feed, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            feed.cancel()
            await asyncio.wait({feed})
            intake.end()
            await asyncio.wait({writing}, timeout=LAST_ROWS_SECONDS)
            writing.cancel()
            ended = [task for task in (writing, feed) if task.done() and not task.cancelled()]
            failures = [task.exception() for task in ended]
        for failure in failures:
            if failure is not None:
                raise failure

    async def _keep_connected(self, session: Session, writer: SourceWriter, intake: Intake) -> None:
        """Hold one connection, and around a rotation two, so that nothing falls between them."""
        old = asyncio.Event()
        async with asyncio.TaskGroup() as connections:
            connections.create_task(self._expect_data(session, intake))
            while True:
                await self._look_up(session, writer)
                over, up = asyncio.Event(), asyncio.Event()
                connections.create_task(self._connect(session, writer, intake, up, over))
                await up.wait()
                old.set()
                old = over
                pause = self._options.rotation_seconds(self._clock.now(), self._options.jitter())
                await self._clock.sleep(pause)

    async def _look_up(self, session: Session, writer: SourceWriter) -> None:
        found = await look_up(session, self._symbols)
        if found.unknown:
            await writer.remark(f"tastytrade does not know {', '.join(found.unknown)}")
        self._instruments, rolls = rolled(self._instruments, found, self._clock.now())
        for roll in rolls:
            await writer.remark(f"{roll.symbol} rolls from {roll.old} to {roll.new}")

    async def _connect(
        self,
        session: Session,
        writer: SourceWriter,
        intake: Intake,
        up: asyncio.Event,
        over: asyncio.Event,
    ) -> None:
        """Hold a connection until ``over``; ``up`` once everything is asked for."""
        streamer = FeedStreamer(
            session, intake.put, clock=self._clock, patience=self._options.patience
        )
        async with streamer:
            if streamer.is_delayed:
                await writer.remark("the feed is delayed: this account has no real-time data")
            traded = self._instruments.contracts(is_index=False)
            everything = self._instruments.contracts()
            if traded:
                await streamer.subscribe(TimeAndSale, traded, TRADES_PERIOD_SECONDS)
            await streamer.subscribe(Quote, everything, QUOTES_PERIOD_SECONDS)
            await streamer.subscribe(Trade, everything, QUOTES_PERIOD_SECONDS)
            _log.info("following", contracts=everything)
            up.set()
            await over.wait()

    async def _expect_data(self, session: Session, intake: Intake) -> None:
        """Fail when an open market has nothing to say: keepalives alone prove no feed."""
        patience = self._options.patience.data_seconds
        intake.newest = self._clock.now()
        while True:
            await self._clock.sleep(patience)
            silent = self._clock.now() - intake.newest >= patience * 1_000_000
            if silent and await is_open(session, self._instruments.followed):
                raise SourceSilentError(
                    f"the market is open, and no data came for {patience:.0f} s",
                    since=intake.newest,
                )

    async def _write(self, intake: Intake, writer: SourceWriter) -> None:
        """Write what comes until the intake ends."""
        instruments = Instruments()
        converter, watch = Converter(()), VolumeWatch(())
        while frames := await intake.take():
            if instruments is not self._instruments:
                instruments = self._instruments
                converter = Converter(instruments.followed)
                watch = VolumeWatch(instruments.followed)
            written = 0
            for kind, events in gathered(frames):
                written += await _write_events(writer, converter, kind, events)
                _count(watch, kind, events)
            if not written:
                await writer.alive(frames[-1].received)
            for one in watch.shortfalls(self._clock.now()):
                await writer.missed(TICKS.name, one.symbol, one.start, one.end)
                _log.warning("ticks are missing", symbol=one.symbol, size=one.size)
            await self._clock.sleep(GATHER_SECONDS)


def _count(watch: VolumeWatch, kind: str, events: Events) -> None:
    try:
        if kind == TRADES:
            watch.add_ticks(events)
        elif kind == LAST_TRADE:
            watch.add_counts(events)
    except UNREADABLE:
        return  # in quarantine; the volume will say what it was worth


async def _write_events(
    writer: SourceWriter, converter: Converter, kind: str, events: Events
) -> int:
    """Write what the events are; returns how many rows that took."""
    targets: dict[str, tuple[Dataset, Rows]] = {
        TRADES: (TICKS, converter.ticks),
        QUOTES_EVENT: (QUOTES, converter.quotes),
        LAST_TRADE: (TICKS, converter.index_values),
    }
    dataset, rows = targets[kind]
    result = converted(dataset, events, rows)
    if result.rows.num_rows:
        await writer.write(dataset.name, result.rows)
    if result.unreadable is not None:
        await writer.write(QUARANTINE.name, result.unreadable)
    return int(result.rows.num_rows)
