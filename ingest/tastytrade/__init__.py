"""The tastytrade feed (dxFeed), through tastytrade's own SDK, over a network that fails."""

from ingest.tastytrade.account import Account
from ingest.tastytrade.source import FeedOptions, TastytradeSource
from ingest.tastytrade.streamer import Patience

__all__ = ["Account", "FeedOptions", "Patience", "TastytradeSource"]
