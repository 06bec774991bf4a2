"""The process of the role ``mirror``: the newest rows in Redis."""

import signal
from typing import Final

import rich_click as click
import structlog

from ingest import errors as ingest_errors
from ingest.mirror import Mirror, RedisHashes
from ingest.ports import SystemClock
from tickflight.errors import TickflightError
from tickflightd import logs
from tickflightd.connection import connected
from tickflightd.errors import ConfigurationError, RoleFailedError
from tickflightd.settings import Settings

READY_LINE: Final = "ready mirror=redis"
_log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Mirror until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: REDIS_URL is not set or can't be used.
        ServiceError: There is no service.
        RoleFailedError: The service refuses us.
    """
    logs.configure("mirror", level=settings.log_level, secrets=settings.secrets)
    if settings.redis_url is None:
        raise ConfigurationError("set TICKFLIGHT_REDIS_URL, such as redis://127.0.0.1:6379/0")
    try:
        hashes = RedisHashes(settings.redis_url.get_secret_value())
    except ingest_errors.ConfigurationError as error:
        raise ConfigurationError(f"TICKFLIGHT_{error}") from None
    with connected(settings) as client:
        mirror = Mirror(
            client, hashes, now=SystemClock().now, on_ready=lambda: click.echo(READY_LINE)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: mirror.stop())
        try:
            mirror.run()
        except TickflightError as error:
            raise RoleFailedError(f"the mirror can't go on: {error}") from error
    _log.info("stopped")
