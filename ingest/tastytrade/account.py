"""Logging in to tastytrade through its SDK; what it refuses is said in words that help."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Final

import httpx2
from tastytrade import Session

from ingest.errors import SourceError, SourceRefusedError

REQUEST_SECONDS: Final = 15.0
"""For one answer of the API, which takes tens of milliseconds; its gateway gives up after 30."""
API_HOST: Final = "api.tastyworks.com"
LOGIN_PATH: Final = "/oauth/token"
QUOTE_TOKEN_PATH: Final = "/api-quote-tokens"  # noqa: S105 - a path
_NEW_GRANT: Final = (
    "make new ones on my.tastytrade.com under Manage, My Profile, API, OAuth Applications, and put"
    " them into .env as TICKFLIGHT_TT_SECRET (client secret) and TICKFLIGHT_TT_REFRESH (refresh"
    " token of a grant)"
)
_REFUSALS: Final = {400, 401, 403}
_CODE_CHARS_MAX: Final = 80

# The SDK logs every frame at debug, and asks for debug: formatting them costs more than the feed.
logging.getLogger("tastytrade").setLevel(logging.WARNING)
for _name in ("httpx2", "httpcore2", "wsproto"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Account:
    """Who logs in.

    Attributes:
        client_secret: Of the OAuth application.
        refresh_token: Of a grant of that application; it does not expire.
        api_url: Where the API is, if not at tastytrade.
    """

    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    api_url: str | None = None


@asynccontextmanager
async def logged_in(account: Account) -> AsyncIterator[Session]:
    """Open a session; its access token lives a quarter of an hour, and is renewed when asked for.

    Raises:
        SourceRefusedError: The credentials, or what they may do, do not suffice.
        SourceError: The API failed.
    """
    hooks = {"request": [_redirection(account.api_url)], "response": [_check]}
    async with Session(
        account.client_secret, account.refresh_token, event_hooks=hooks, timeout=REQUEST_SECONDS
    ) as session:
        await session.refresh()
        yield session


def _redirection(api_url: str | None) -> Callable[[httpx2.Request], Awaitable[None]]:
    """Return a hook: the SDK knows one address only."""
    target = None if api_url is None else httpx2.URL(api_url)

    async def redirect(request: httpx2.Request) -> None:
        if target is not None and request.url.host == API_HOST:
            request.url = request.url.copy_with(
                scheme=target.scheme, host=target.host, port=target.port
            )

    return redirect


async def _check(response: httpx2.Response) -> None:
    """Raise for an answer that is an error: the SDK would drop its status."""
    if not response.is_error:
        return
    await response.aread()
    path = response.request.url.path
    code = _error_code(response)
    if code is not None and response.status_code in _REFUSALS:
        if path == LOGIN_PATH:
            raise SourceRefusedError(
                f"tastytrade does not accept the credentials ({code}): {_NEW_GRANT}"
            )
        if path == QUOTE_TOKEN_PATH and response.status_code != httpx2.codes.UNAUTHORIZED:
            raise SourceRefusedError(
                f"tastytrade gives this account no market data ({code}): it must be a customer's,"
                " with a funded account and the market data agreements signed"
            )
    told = "" if code is None else f" ({code})"
    raise SourceError(f"tastytrade answered {response.status_code}{told} to {path}")


def _error_code(response: httpx2.Response) -> str | None:
    """Return the code of an error the API itself told; None for one of something before it."""
    try:
        body = response.json()
    except (JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    code = body.get("error_code") or (error.get("code") if isinstance(error, dict) else error)
    return str(code)[:_CODE_CHARS_MAX] if code else "no code"
