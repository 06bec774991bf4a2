"""Whether the feed ought to have something to say; tastytrade knows, holidays and all."""

from collections.abc import Iterable

from tastytrade import Session
from tastytrade.market_sessions import ExchangeType, MarketStatus, get_market_sessions

from ingest.tastytrade.contracts import Instrument


async def is_open(session: Session, followed: Iterable[Instrument]) -> bool:
    """Ask whether a market of ``followed`` is in its session; before and after it, few trade."""
    exchanges = {
        ExchangeType.CME if one.contract.startswith("/") else ExchangeType.NYSE for one in followed
    }
    sessions = await get_market_sessions(session, sorted(exchanges))
    return any(one.status is MarketStatus.OPEN for one in sessions)
