"""The SDK's failures, and those of the libraries below it, in ingest's words.

A broken connection comes as groups in groups, one exception a task that noticed; the first that
says what happened is told.
"""

from collections.abc import Iterator
from typing import Final

import httpx2
from httpx2.websockets import (
    HTTPXWSException,
    WebSocketDisconnect,
    WebSocketNetworkError,
    WebSocketUpgradeError,
)
from pydantic import ValidationError
from tastytrade.utils import TastytradeError

from ingest.errors import IngestError, SourceError, SourceRefusedError

FOREIGN: Final = (
    TastytradeError,
    HTTPXWSException,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ValidationError,
    TimeoutError,
    OSError,
)
"""What the SDK and what is below it are known to raise."""
_TEXT_CHARS_MAX: Final = 120


def failure_of(error: Exception) -> Exception:
    """Return what to raise instead of ``error``: ours as it is, the SDK's as a ``SourceError``.

    What is neither is a fault of our own, and is returned as it is.
    """
    leaves = list(_leaves(error))
    for kind in (SourceRefusedError, IngestError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    for leaf in leaves:
        if not isinstance(leaf, FOREIGN):
            return leaf
    return SourceError(_told(leaves[0]))


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _told(error: Exception) -> str:
    match error:
        case WebSocketDisconnect():
            return f"the feed closed the connection ({error.code} {_short(error.reason)})".rstrip()
        case WebSocketNetworkError():
            return "the connection to the feed broke"
        case WebSocketUpgradeError():
            return f"the feed answered {error.response.status_code} instead of a websocket"
        case ValidationError():
            return f"tastytrade sent a {error.title} that its SDK can't read"
        case TimeoutError():
            return "the feed did not answer in time"
        case TastytradeError():
            return f"tastytrade's SDK gave up: {_short(str(error))}"
        case _:
            # Its text may carry an address with a token in it.
            return f"tastytrade can't be reached ({type(error).__name__})"


def _short(text: str | None) -> str:
    line = (text or "").partition("\n")[0][:_TEXT_CHARS_MAX]
    return "".join(char for char in line if char.isprintable())
