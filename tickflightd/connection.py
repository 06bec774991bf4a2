"""The way to the running service, for its own commands and roles."""

from collections.abc import Iterator
from contextlib import contextmanager

import tickflight
from tickflight.errors import TickflightError
from tickflightd import directory
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
        with tickflight.connect(*_address_and_key(settings)) as client:
            yield client
    except tickflight.UnavailableError as error:
        raise ServiceError(
            f"no service answers at {settings.flight_uri}: start it with `tickflightd up`"
        ) from error
    except TickflightError as error:
        raise ServiceError(str(error)) from error


def _address_and_key(settings: Settings) -> tuple[str, str]:
    if settings.api_key is not None:
        return settings.flight_uri, settings.api_key.get_secret_value()
    local = directory.read_local_access(settings.data_directory)
    if local is None:
        raise ConfigurationError(
            f"no service runs on {settings.data_directory}: start it with `tickflightd up`, or set"
            " TICKFLIGHT_API_KEY and TICKFLIGHT_FLIGHT_URI to use one elsewhere"
        )
    return local.uri, local.key
