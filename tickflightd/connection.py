"""The way to the running service, for its own commands and roles."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import tickflight
from tickflight.errors import TickflightError
from tickflightd import directory
from tickflightd.directory import LocalAccess
from tickflightd.errors import ConfigurationError, ServiceError
from tickflightd.settings import Settings


@contextmanager
def connected(settings: Settings) -> Iterator[tickflight.Client]:
    """Connect as the settings say: with their key, else the one ``up`` left on this machine.

    Raises:
        ConfigurationError: There is neither.
        ServiceError: The service can't be reached or refused the work.
    """
    try:
        access = _access(settings)
        with tickflight.connect(
            access.uri,
            access.key,
            tls_root_certs=access.root_certs,
            tls_server_name=access.server_name,
        ) as client:
            yield client
    except tickflight.UnavailableError as error:
        raise ServiceError(
            f"no service answers at {settings.flight_uri}: start it with `tickflightd up`"
        ) from error
    except TickflightError as error:
        raise ServiceError(str(error)) from error


def _access(settings: Settings) -> LocalAccess:
    local = directory.read_local_access(settings.data_directory)
    if settings.api_key is not None:
        key = settings.api_key.get_secret_value()
        if local is not None and local.uri == settings.flight_uri:
            return replace(local, key=key)
        return LocalAccess(settings.flight_uri, key, settings.tls_root_certs)
    if local is None:
        raise ConfigurationError(
            f"no service runs on {settings.data_directory}: start it with `tickflightd up`, or set"
            " TICKFLIGHT_API_KEY and TICKFLIGHT_FLIGHT_URI to use one elsewhere"
        )
    return local
