"""A synthetic market, for looking around without a feed: stateless, repeatable, any rate."""

from ingest.demo.market import Market
from ingest.demo.source import DemoSource

__all__ = ["DemoSource", "Market"]
