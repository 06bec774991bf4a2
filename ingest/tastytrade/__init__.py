"""The tastytrade feed (dxFeed), through tastytrade's own SDK, over a network that fails."""

from ingest.tastytrade.access import FeedAccess, try_access
from ingest.tastytrade.account import Account
from ingest.tastytrade.source import FeedOptions, TastytradeSource
from ingest.tastytrade.streamer import Patience

__all__ = [
    "Account",
    "FeedAccess",
    "FeedOptions",
    "Patience",
    "TastytradeSource",
    "try_access",
]
