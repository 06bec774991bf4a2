"""Whether a configured feed lets us in; asked for by name, because it logs in."""

import asyncio
from collections.abc import Iterator
from typing import Final

from ingest.errors import IngestError
from ingest.tastytrade import FeedAccess, try_access
from tickflightd import settings
from tickflightd.doctor.findings import Finding, fail, ok, warn
from tickflightd.errors import TickflightdError
from tickflightd.tastytrade_process import account_of

_CHECK: Final = "tastytrade"


def tastytrade() -> Iterator[Finding]:
    """Log in to tastytrade as the settings say, and yield what that gives."""
    try:
        loaded = settings.load()
        account = account_of(loaded)
    except TickflightdError as error:
        yield fail(_CHECK, str(error), "correct it in the environment or in .env")
        return
    try:
        access = asyncio.run(try_access(account, loaded.symbols))
    except IngestError as error:
        yield fail(_CHECK, str(error), "mend that, then ask again")
        return
    yield from _found(access)


def _found(access: FeedAccess) -> Iterator[Finding]:
    names = [f"{one.symbol} is {one.contract}" for one in access.instruments.followed]
    yield ok(_CHECK, f"the account and its feed let us in; {', '.join(names)}")
    if access.instruments.unknown:
        unknown = ", ".join(access.instruments.unknown)
        yield warn(_CHECK, f"it does not know {unknown}", "mend TICKFLIGHT_SYMBOLS")
    if access.is_delayed:
        advice = "sign the market data agreements on my.tastytrade.com to get it in real time"
        yield warn(_CHECK, "the feed of this account is delayed", advice)
