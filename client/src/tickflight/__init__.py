"""tickflight: live and historical market data as Apache Arrow, and how complete it is.

    import tickflight

    with tickflight.connect() as client:
        frame = client.latest("MNQ").polars()

The promise: answers are plain Arrow with plain strings, read when you ask for them; every answer
says how complete it is (``Result.coverage``); every row handed to a ``Writer`` arrives once;
what goes wrong is a ``TickflightError`` that says whose fault it is. Needs pyarrow alone.
"""

from importlib.metadata import version

from tickflight.bulk import BulkStats, BulkWriter
from tickflight.client import Client, connect
from tickflight.coverage import Coverage, CoverageState, Gap, Gaps, Span, SymbolCoverage
from tickflight.errors import (
    AuthenticationError,
    ConfigurationError,
    DeadlineError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    PermissionDeniedError,
    RetentionError,
    SequenceError,
    ServerError,
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    SpoolLockedError,
    TickflightError,
    TooOldError,
    UnavailableError,
    WriterClosedError,
)
from tickflight.live import Live
from tickflight.progress import Position
from tickflight.replay import LiveReplay, Replay
from tickflight.reports import DatasetStatus, ServiceStatus, Status, SymbolInfo
from tickflight.result import Result
from tickflight.stats import WriterStats
from tickflight.tickets import Compression, Order, Session
from tickflight.window import RollingWindow
from tickflight.writer import Overflow, Writer, WriterLimits

__version__ = version("tickflight")

__all__ = [
    "AuthenticationError",
    "BulkStats",
    "BulkWriter",
    "Client",
    "Compression",
    "ConfigurationError",
    "Coverage",
    "CoverageState",
    "DatasetStatus",
    "DeadlineError",
    "Gap",
    "Gaps",
    "InvalidRequestError",
    "LimitError",
    "Live",
    "LiveReplay",
    "NotFoundError",
    "Order",
    "Overflow",
    "PermissionDeniedError",
    "Position",
    "Replay",
    "Result",
    "RetentionError",
    "RollingWindow",
    "SequenceError",
    "ServerError",
    "ServiceStatus",
    "Session",
    "Span",
    "SpoolCorruptError",
    "SpoolError",
    "SpoolFullError",
    "SpoolLockedError",
    "Status",
    "SymbolCoverage",
    "SymbolInfo",
    "TickflightError",
    "TooOldError",
    "UnavailableError",
    "Writer",
    "WriterClosedError",
    "WriterLimits",
    "WriterStats",
    "__version__",
    "connect",
]
