"""Trying what an account may do, up to the door of the feed; nothing is followed."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingest.ports import SystemClock
from ingest.tastytrade.account import Account, logged_in
from ingest.tastytrade.contracts import Instruments, look_up
from ingest.tastytrade.failures import FOREIGN, failure_of
from ingest.tastytrade.frames import Frame
from ingest.tastytrade.streamer import FeedStreamer, Patience


@dataclass(frozen=True, slots=True)
class FeedAccess:
    """What an account gets.

    Attributes:
        instruments: What its symbols mean today.
        is_delayed: Its feed is behind the market.
    """

    instruments: Instruments
    is_delayed: bool


async def try_access(account: Account, symbols: Sequence[str]) -> FeedAccess:
    """Log in, look ``symbols`` up, and log in to the feed.

    Raises:
        IngestError: One of the steps failed; the message says which and why.
    """
    try:
        async with logged_in(account) as session:
            instruments = await look_up(session, symbols)
            streamer = FeedStreamer(session, _drop, clock=SystemClock(), patience=Patience())
            async with streamer:
                return FeedAccess(instruments, streamer.is_delayed)
    except (ExceptionGroup, *FOREIGN) as error:
        raise failure_of(error) from error


async def _drop(_: Frame) -> None:
    """Take what comes although nothing was asked for, such as keepalives."""
