"""The examination: measures, asks, and hands over to the checks, one after another."""

import platform
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Final

import pyarrow as pa

from flight_server.control import DATABASE_NAME
from storage.errors import JournalError
from storage.journal_chain import journal_files
from storage.ports import Clock, SystemDisk
from tickflight.errors import TickflightError
from tickflightd import access, directory, machine, settings, tls
from tickflightd.connection import connected
from tickflightd.doctor import data, host, probes, running
from tickflightd.doctor.findings import Finding, fail, ok, warn
from tickflightd.errors import AddressInUseError, AlreadyRunningError, TickflightdError
from tickflightd.settings import ENV_FILE, Settings

DISTRIBUTION: Final = "tickflight-server"
BYTES_A_TICK: Final = 60
"""What a tick takes in the journal when few come at a time."""


def examine(clock: Clock) -> Iterator[Finding]:
    """Yield what is found, check by check; without usable settings only a part can be looked at."""
    watch = probes.ClockWatch.begin(clock)
    yield from host.versions(
        sys.version_info[:3], _version(pa.__version__), sqlite3.sqlite_version_info
    )
    try:
        loaded = settings.load()
    except TickflightdError as error:
        yield fail("settings", str(error), "correct it in the environment or in .env")
        return
    yield from _settings(settings.remarks())
    examination = _Examination(loaded, clock, watch)
    for check in examination.checks():
        yield from check()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _settings(remarks: Iterable[str]) -> list[Finding]:
    found = [warn("settings", remark, "remove or correct the variable") for remark in remarks]
    return found or [ok("settings", f"every setting can be used, on {platform.system()}")]


class _Examination:
    def __init__(self, settings: Settings, clock: Clock, watch: probes.ClockWatch) -> None:
        self._settings = settings
        self._clock = clock
        self._watch = watch
        self._home = settings.data_directory
        # What earlier checks have found out and later ones need.
        self._answers = False
        self._owned = False
        self._held_bytes = 0

    def checks(self) -> tuple[Callable[[], Iterable[Finding]], ...]:
        return (
            self._directory,
            self._disk,
            self._service,
            self._port,
            self._certificate,
            self._memory,
            self._secrets,
            self._keys,
            self._journal,
            self._leftovers,
            self._clock_state,
        )

    def _directory(self) -> Iterator[Finding]:
        parent = probes.existing_parent(self._home)
        try:
            machine.require_local_disk(parent)
            machine.require_writable(parent)
        except TickflightdError as error:
            yield fail("directory", str(error), "set TICKFLIGHT_DATA_DIR, then ask again")
            return
        yield host.file_system(machine.file_system_of(parent))
        if parent != self._home:
            yield ok("directory", "the data directory is not there yet; the first start makes it")

    def _disk(self) -> Iterator[Finding]:
        parent = probes.existing_parent(self._home)
        try:
            yield from host.disk(probes.disk_times(parent))
            yield host.free_space(SystemDisk().free(parent), self._daily_need())
        except OSError as error:
            text = f"nothing can be written to {parent}: {error.strerror}"
            yield fail("disk", text, "free some space, or set TICKFLIGHT_DATA_DIR to another disk")

    def _daily_need(self) -> int:
        journal = self._home / "journal"
        sizes = [path.stat().st_size for path in journal.iterdir()] if journal.is_dir() else []
        rate = self._settings.demo_rate if self._settings.demo_enabled else 0
        return max(probes.daily_bytes(sizes), rate * BYTES_A_TICK * 86_400)

    def _memory(self) -> Iterator[Finding]:
        installed = machine.memory_bytes()
        available = probes.available_memory()
        # What the running service holds already, it needs no second time.
        left = installed if available is None else available + self._held_bytes
        yield host.memory(self._settings.hot_memory_limit, installed, left)

    def _service(self) -> Iterator[Finding]:
        self._owned = self._is_owned()
        try:
            with connected(self._settings) as client:
                status = client.status()
        except (TickflightdError, TickflightError) as error:
            yield running.absent(self._settings.flight_uri, owned=self._owned, reason=str(error))
            return
        self._answers = True
        self._held_bytes = int(status.raw["memory"]["used"])
        yield from running.service(status.raw, version(DISTRIBUTION))

    def _is_owned(self) -> bool:
        if not (self._home / directory.FLIGHT_LOCK).exists():
            return False
        try:
            with directory.owned(self._home, directory.FLIGHT_LOCK):
                return False
        except AlreadyRunningError:
            return True

    def _port(self) -> Iterator[Finding]:
        where, number = self._settings.flight_host, self._settings.flight_port
        taken = False
        try:
            machine.free_port(where, number)
        except AddressInUseError:
            taken = True
        except TickflightdError as error:
            yield fail(
                "port", str(error), "set TICKFLIGHT_FLIGHT_URI to an address of this machine"
            )
            return
        owner = probes.listener(number) if taken else None
        # One that owns the directory and only refuses our key is ours all the same.
        ours = self._answers or self._owned
        yield running.port(f"{where}:{number}", taken=taken, ours=ours, owner=owner)

    def _certificate(self) -> Iterator[Finding]:
        try:
            certificate = tls.server_certificate(self._settings)
        except TickflightdError as error:
            yield fail("certificate", str(error), "the service does not start until it is mended")
            return
        yield data.certificate(certificate, self._clock.now())

    def _secrets(self) -> list[Finding]:
        return data.permissions(probes.secret_modes(self._home, ENV_FILE))

    def _keys(self) -> Iterator[Finding]:
        if not (self._home / DATABASE_NAME).exists():
            yield ok("keys", "there are no keys yet: `tickflightd keys create MODEL` makes one")
            return
        try:
            with access.key_store(self._home, self._clock) as store:
                records = [one for one in store.list() if not access.is_own(one)]
            used = access.last_used(self._home)
        except TickflightdError as error:
            yield fail("keys", str(error), "without keys nobody gets in: follow the message")
            return
        yield from data.keys(records, used.keys(), self._clock.now())

    def _journal(self) -> Iterator[Finding]:
        try:
            files = journal_files(self._home / "journal")
        except JournalError as error:
            yield fail(
                "journal", str(error), "run `tickflightd journal verify`, then `journal repair`"
            )
            return
        yield from data.journal(files, self._clock.now())

    def _leftovers(self) -> Iterator[Finding]:
        if self._owned or not self._home.is_dir():
            return
        spools = probes.spool_files(self._home)
        yield from data.leftovers(
            spools=len(spools),
            spool_bytes=sum(path.stat().st_size for path in spools),
            scratch=probes.scratch_files(self._home),
            stale_key=(self._home / directory.LOCAL_KEY).exists(),
        )

    def _clock_state(self) -> list[Finding]:
        step = self._watch.step_seconds()
        synchronised = probes.is_synchronised()
        return host.clock(self._clock.now(), step_seconds=step, synchronised=synchronised)
