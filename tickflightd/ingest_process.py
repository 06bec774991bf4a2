"""The process of a role ``ingest``: one source, written to the Flight server."""

import asyncio
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

import rich_click as click
import structlog

import tickflight
from ingest import errors as ingest_errors
from ingest.demo import DemoSource
from ingest.ports import SystemClock
from ingest.runner import RunOptions, RunState, run_source
from ingest.source import Source
from tickflight.errors import TickflightError
from tickflightd import logs
from tickflightd.connection import connected
from tickflightd.errors import ConfigurationError, RoleFailedError
from tickflightd.settings import Settings

PROBE_SECONDS: Final = 0.05
"""Between looks at whether the first rows have arrived: nobody notices, and it is rarely needed."""
_log = structlog.get_logger(__name__)


def run(source: str, settings: Settings) -> None:
    """Run a source until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: The source can't run with these settings.
        ServiceError: There is no service, or it refused.
        RoleFailedError: The source failed in a way no retry mends.
    """
    logs.configure(f"ingest {source}", level=settings.log_level, secrets=settings.secrets)
    try:
        demo = DemoSource(settings.symbols, rate=settings.demo_rate, clock=SystemClock())
    except ingest_errors.ConfigurationError as error:
        raise ConfigurationError(str(error)) from error
    with connected(settings) as client:
        asyncio.run(_feed(source, demo, client, settings.symbols))


def play(source: Source, settings: Settings) -> None:
    """Run a source that has an end, until then or until SIGTERM or SIGINT.

    Raises:
        ServiceError: There is no service, or it refused.
        RoleFailedError: The source failed in a way no retry mends.
    """
    with connected(settings) as client:
        client.status()  # who plays to nobody hears of it before the first row
        asyncio.run(_run(source, client))


def follow(source: Source, settings: Settings, *, spool: Path) -> None:
    """Run a live feed until SIGTERM or SIGINT.

    It counts as ready at once: a market may be closed for days, and what is held can be read.

    Args:
        source: The feed.
        settings: Where the service is.
        spool: Directory for rows that the service can't take now: they come only once.

    Raises:
        ConfigurationError: The feed refuses what it was configured with.
        ServiceError: There is no service, or it refused.
        RoleFailedError: The source failed in a way no retry mends.
    """
    with connected(settings) as client:
        click.echo(f"ready ingest={source.profile.name}")
        asyncio.run(_run(source, client, spool))


async def _feed(
    name: str, source: Source, client: tickflight.Client, symbols: Collection[str]
) -> None:
    since = SystemClock().now()
    arrival = asyncio.create_task(_say_when_rows_arrive(name, client, frozenset(symbols), since))
    try:
        await _run(source, client)
    finally:
        arrival.cancel()


async def _run(source: Source, client: tickflight.Client, spool: Path | None = None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    result = await run_source(source, client, stop=stop, options=RunOptions(spool=spool))
    if result.state is RunState.FAILED:
        failed = ConfigurationError if result.is_refusal else RoleFailedError
        raise failed(f"{source.profile.name} can't go on: {result.detail}")
    _log.info("stopped", restarts=result.restarts)


async def _say_when_rows_arrive(
    name: str, client: tickflight.Client, symbols: frozenset[str], since: int
) -> None:
    """Say that the role is ready once whoever asks for any symbol gets a fresh answer."""
    while not symbols <= await _symbols_heard(client, since):
        await asyncio.sleep(PROBE_SECONDS)
    click.echo(f"ready ingest={name}")


async def _symbols_heard(client: tickflight.Client, since: int) -> frozenset[str]:
    """Return the symbols that have a tick of the instant ``since`` or later."""
    try:
        held = await asyncio.to_thread(client.symbols, "ticks")
    except TickflightError:  # the runner reports what it means; here it is only "not yet"
        return frozenset()
    return frozenset(one.symbol for one in held if (one.last_us or 0) >= since)
