"""The process of the role ``ingest tastytrade``; apart, because its SDK takes seconds to import."""

from typing import Final

from ingest.tastytrade import Account, TastytradeSource
from tickflightd import ingest_process, logs
from tickflightd.errors import ConfigurationError
from tickflightd.settings import Settings

SPOOL_DIRECTORY: Final = "spool"
"""In the data directory: what the service could not take yet, a directory a source."""


def run(settings: Settings) -> None:
    """Follow the feed until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: The account is not configured, or tastytrade refuses it.
        ServiceError: There is no service, or it refused.
        RoleFailedError: The source failed in a way no retry mends.
    """
    logs.configure("ingest tastytrade", level=settings.log_level, secrets=settings.secrets)
    source = TastytradeSource(settings.symbols, account_of(settings))
    spool = settings.data_directory / SPOOL_DIRECTORY / source.profile.name
    ingest_process.follow(source, settings, spool=spool)


def account_of(settings: Settings) -> Account:
    """Return the configured account.

    Raises:
        ConfigurationError: There is none, or half of one.
    """
    settings.require_complete()
    if settings.tt_secret is None or settings.tt_refresh is None:
        raise ConfigurationError(
            "no tastytrade account is configured: set TICKFLIGHT_TT_SECRET and"
            " TICKFLIGHT_TT_REFRESH"
        )
    return Account(
        settings.tt_secret.get_secret_value(),
        settings.tt_refresh.get_secret_value(),
        settings.tt_api_url,
    )
