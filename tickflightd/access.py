"""Keys: the store as commands open it, and the short-lived keys of a running service."""

import datetime as dt
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from flight_server.control_repair import Repaired, repair
from flight_server.errors import FlightServiceError, InvalidArgumentError
from flight_server.keys import KeyRecord, KeyStore, NewKey, Scope
from flight_server.usage import UsageTable
from storage.ports import Clock, SystemClock
from tickflightd import directory
from tickflightd.errors import ConfigurationError, ServiceError
from tickflightd.quantities import parse_duration

OWN_PREFIX: Final = "tickflightd:"
"""Model ids beginning so belong to the service's own keys, which live and die with it."""
DEMO_MODEL: Final = "demo"
OWN_LIFETIME_US: Final = parse_duration("24h")
"""A leaked key of a service that was killed dies within a day."""
OWN_EXTENSION_SECONDS: Final = 3_600.0
"""Far more often than needed: a laptop that slept for twenty hours still renews in time."""
DEMO_LIFETIME_US: Final = parse_duration("7d")
"""So that a notebook outlives restarts of the demo; it reads nothing but synthetic data."""
DEAD_KEYS_KEPT_US: Final = parse_duration("30d")
"""How long ``keys list`` shows what was revoked or has expired, before it is forgotten."""
READING: Final = (Scope.READ_REALTIME, Scope.READ_HISTORY)


@contextmanager
def key_store(place: Path, clock: Clock | None = None) -> Iterator[KeyStore]:
    """Open the keys of a data directory, whether or not a service runs on it.

    Raises:
        ConfigurationError: A value given to the store can't be used.
        ServiceError: The store can't be used, or there is no such key.
    """
    try:
        with KeyStore(place, clock or SystemClock()) as store:
            yield store
    except InvalidArgumentError as error:
        raise ConfigurationError(str(error)) from error
    except FlightServiceError as error:
        raise ServiceError(str(error)) from error


def repaired(place: Path) -> Repaired | None:
    """Put the control database of a directory in order that no service uses; None: it is.

    Raises:
        AlreadyRunningError: A service uses it.
        ServiceError: It can't be done; the database is as it was.
    """
    with directory.owned(place, directory.FLIGHT_LOCK):
        try:
            return repair(place, SystemClock())
        except FlightServiceError as error:
            raise ServiceError(str(error)) from error


def create_for_model(
    store: KeyStore,
    model: str,
    scopes: Collection[str],
    *,
    symbols: Collection[str],
    expires: str | None,
    rate: int | None = None,
) -> NewKey:
    """Make a key as ``keys create`` was told: no scopes means reading, no symbols means all.

    ``rate`` is in calls a second; ``None`` is no limit.

    Raises:
        ConfigurationError: A word can't be used.
    """
    if model.startswith(OWN_PREFIX):
        raise ConfigurationError(f"names that begin with {OWN_PREFIX} are the service's own")
    unknown = sorted(set(scopes) - set(Scope))
    if unknown:
        raise ConfigurationError(f"{unknown[0]} is no scope; the scopes are {', '.join(Scope)}")
    return store.create(
        model,
        scopes=tuple(map(Scope, scopes)) or READING,
        symbols=symbols or None,
        expires_at=None if expires is None else SystemClock().now() + _lifetime(expires),
        calls_per_second=rate,
    )


def last_used(place: Path) -> Mapping[str, dt.date]:
    """Return the last day (UTC) each key was used, by its id.

    Raises:
        ServiceError: The store can't be used.
    """
    try:
        with UsageTable(place) as usage:
            return usage.last_days()
    except FlightServiceError as error:
        raise ServiceError(str(error)) from error


def _lifetime(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"--expires {text}: {error}") from error


class OwnKeys:
    """The keys a running service gives its roles and the commands of its machine.

    As a context: keys a killed predecessor left are revoked on the way in, ours on the way out.
    """

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._minted: list[str] = []

    def __enter__(self) -> Self:
        for record in self._store.list():
            if record.model_id.startswith(OWN_PREFIX) and record.revoked_at is None:
                self._store.revoke(record.id)
        self._store.purge_expired(self._clock.now() - DEAD_KEYS_KEPT_US)
        return self

    def __exit__(self, *_: object) -> None:
        for key_id in self._minted:
            self._store.revoke(key_id)

    def mint(self, user: str, scopes: Collection[Scope]) -> NewKey:
        """Make the key of one user inside the service, such as ``ingest``."""
        expires_at = self._clock.now() + OWN_LIFETIME_US
        new = self._store.create(f"{OWN_PREFIX}{user}", scopes=scopes, expires_at=expires_at)
        self._minted.append(new.id)
        return new

    def mint_demo(self) -> NewKey:
        """Make a key for whoever tries the demo; it stays valid when the service stops."""
        expires_at = self._clock.now() + DEMO_LIFETIME_US
        return self._store.create(DEMO_MODEL, scopes=READING, expires_at=expires_at)

    def extend(self) -> None:
        """Give every key of ours its full lifetime again."""
        for key_id in self._minted:
            self._store.extend(key_id, self._clock.now() + OWN_LIFETIME_US)


def is_own(record: KeyRecord) -> bool:
    """Return whether a key belongs to the service itself."""
    return record.model_id.startswith(OWN_PREFIX)
