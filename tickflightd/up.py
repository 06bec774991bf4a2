"""``tickflightd up``: every role of this machine, supervised, with keys to meet by."""

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import rich_click as click
import structlog
from pydantic import SecretStr

from flight_server.errors import FlightServiceError
from flight_server.keys import Scope
from storage.ports import SystemClock
from tickflightd import directory, logs, machine, tls
from tickflightd.access import OWN_EXTENSION_SECONDS, READING, OwnKeys, key_store
from tickflightd.connection import connected
from tickflightd.diary import Diary
from tickflightd.directory import LocalAccess
from tickflightd.errors import EXIT_USAGE, AddressInUseError, RoleFailedError
from tickflightd.processes import role_command
from tickflightd.roles import Role
from tickflightd.settings import Settings, child_environment
from tickflightd.supervisor import Supervisor
from tickflightd.tls import Certificate
from tickflightd.welcome import ready_line, welcome

FLIGHT_STOP_SECONDS: Final = 2.5
"""A second more than the server drains: the whole service stops in under five."""
INGEST_STOP_SECONDS: Final = 1.5
"""Enough to send what is in hand; what is not acknowledged stays in the spool."""
MIRROR_STOP_SECONDS: Final = 0.75
"""It has nothing to save: what it did not write it writes after its next start."""
REPEAT_SECONDS: Final = 0.3
"""A second interrupt sooner than this is the same key press, passed on by a wrapping program."""
RUNNABLE: Final = frozenset({"tastytrade"})
"""Live sources this version has."""
_log = structlog.get_logger(__name__)


def up(settings: Settings) -> None:
    """Run the service until told to stop.

    Whatever could refuse a start is looked at before anything is created or changed.

    Raises:
        ConfigurationError: The service can't run with these settings.
        RoleFailedError: A role never came up, or the stop was forced.
    """
    logs.configure("up", level=settings.log_level, secrets=settings.secrets)
    settings.require_complete()
    _tell_what_is_missing(settings)
    certificate = tls.server_certificate(settings)
    if certificate is None:
        machine.require_loopback(settings.flight_host)
    uri = claim_address(settings)
    place = directory.prepare(settings.data_directory)
    with directory.owned(place, directory.UP_LOCK), key_store(place) as store:
        clock = SystemClock()
        with OwnKeys(store, clock) as keys:
            everything = keys.mint("commands", tuple(Scope))
            access = LocalAccess(uri, everything.key)
            if certificate is not None:
                access = replace(access, root_certs=certificate.path, server_name=certificate.name)
            directory.write_local_access(place, access)
            try:
                asyncio.run(_Service(settings, uri, keys, certificate).run())
            finally:
                directory.remove_local_access(place)


def _tell_what_is_missing(settings: Settings) -> None:
    """Say which configured sources do not run: silence would look like a source without data."""
    for source in settings.configured_sources:
        if source not in RUNNABLE:
            _log.warning("source is configured, but this version can't connect", source=source)
        elif settings.demo_enabled:
            _log.warning("source is configured, but waits while the demo is on", source=source)


def claim_address(settings: Settings) -> str:
    """Return the address to serve at, with a port that is free.

    A predecessor that was killed may need a moment to vanish.

    Raises:
        ConfigurationError: The address can't be served at.
    """
    deadline = time.monotonic() + directory.HANDOVER_SECONDS
    while True:
        try:
            port = machine.free_port(settings.flight_host, settings.flight_port)
        except AddressInUseError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(directory.POLL_SECONDS)
        else:
            return settings.flight_uri_at(port)


class _Service:
    """The roles of one ``up``, from start to stop."""

    def __init__(
        self, settings: Settings, uri: str, keys: OwnKeys, certificate: Certificate | None
    ) -> None:
        self._settings = settings
        self._certificate = certificate
        self._uri = uri
        self._keys = keys
        self._supervisor: Supervisor | None = None
        self._interrupted_at: float | None = None
        self._forced = False

    async def run(self) -> None:
        key = self._keys.mint("supervisor", (Scope.WRITE,)).key
        own = {"flight_uri": self._uri, "api_key": SecretStr(key)}
        settings = self._settings.model_copy(update=own)
        diary = Diary(lambda: connected(settings), SystemClock())
        self._supervisor = supervisor = Supervisor(
            self._roles(), on_ready=self._announce, on_end=diary.note
        )
        self._obey_signals(supervisor)
        renewal = asyncio.create_task(self._renew_keys())
        try:
            await supervisor.run()
        finally:
            renewal.cancel()
            diary.close()
        if self._forced:
            raise RoleFailedError("stopped by force: what was not acknowledged may be sent again")

    def _roles(self) -> list[Role]:
        shared = {
            "FLIGHT_URI": self._uri,
            "DATA_DIR": str(self._settings.data_dir.absolute()),
            "DEMO": str(int(self._settings.demo_enabled)),
        }
        # The key of whoever started us is none of the roles' business: empty counts as unset.
        flight = {**shared, "API_KEY": ""}
        roles = [
            Role("flight", role_command("flight"), child_environment(flight), FLIGHT_STOP_SECONDS)
        ]
        roles += [self._ingest(source, shared) for source in self._sources()]
        if self._settings.redis_url is not None:
            key = self._keys.mint("mirror", (Scope.WRITE, Scope.READ_REALTIME)).key
            mirror = child_environment({**shared, "API_KEY": key})
            roles.append(Role("mirror", role_command("mirror"), mirror, MIRROR_STOP_SECONDS))
        return roles

    def _sources(self) -> list[str]:
        """What feeds the service: real rows never go where synthetic ones are."""
        if self._settings.demo_enabled:
            return ["demo"]
        return [name for name in self._settings.configured_sources if name in RUNNABLE]

    def _ingest(self, source: str, shared: Mapping[str, str]) -> Role:
        key = self._keys.mint(f"ingest.{source}", (Scope.WRITE, *READING)).key
        return Role(
            f"ingest {source}",
            role_command("ingest", source),
            child_environment({**shared, "API_KEY": key}),
            INGEST_STOP_SECONDS,
            frozenset({EXIT_USAGE}),
        )

    def _announce(self) -> None:
        lines = [ready_line(self._uri)]
        if self._settings.demo_enabled or sys.stdout.isatty():
            key = self._keys.mint_demo().key if self._settings.demo_enabled else None
            lines.insert(0, welcome(self._settings, self._uri, key, self._certificate))
        # In one piece: whoever waits for the ready line has the rest by then.
        click.echo("\n".join(lines))

    def _obey_signals(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
        loop.add_signal_handler(signal.SIGINT, self._interrupt, supervisor)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            loop.add_signal_handler(signal.SIGHUP, supervisor.stop)

    def _interrupt(self, supervisor: Supervisor) -> None:
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            _log.info("stopping; once more to force")
            supervisor.stop()
        elif now - self._interrupted_at >= REPEAT_SECONDS:
            self._forced = True
            supervisor.kill()

    async def _renew_keys(self) -> None:
        while True:
            await asyncio.sleep(OWN_EXTENSION_SECONDS)
            try:
                await asyncio.to_thread(self._keys.extend)
            except FlightServiceError:
                _log.exception("keys could not be renewed, trying again in an hour")
