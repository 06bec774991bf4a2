"""The process of the role ``flight``: it owns the data and answers over Arrow Flight."""

import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import rich_click as click
import structlog

from flight_server.errors import FlightServiceError
from flight_server.service import FlightConfig, FlightService, TlsPair
from storage.arrow_alone import forgo_pandas
from storage.errors import JournalCorruptError, StorageError
from storage.ports import SystemClock, SystemDisk
from tickflightd import directory, journal, logs, machine, tls
from tickflightd.errors import EXIT_DONE, EXIT_FAILED
from tickflightd.settings import Settings
from tickflightd.welcome import ready_line

DRAIN_SECONDS: Final = 1.5
"""Streams get this long to end; a second remains to close the journal before we are killed."""
SWITCH_INTERVAL_SECONDS: Final = 0.0005
"""A tenth of Python's default: a handler that waits for the GIL gets it while the answer is still
worth milliseconds (median of a small call 1.65 → 0.48 ms beside a busy one)."""
_log = structlog.get_logger(__name__)


def run(settings: Settings) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then leave the process.

    Raises:
        ConfigurationError: The address or the data directory can't be used.
    """
    forgo_pandas()
    logs.configure("flight", level=settings.log_level, secrets=settings.secrets)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    machine.allow_many_files()
    certificate = tls.server_certificate(settings)
    if certificate is None:
        machine.require_loopback(settings.flight_host)
    machine.free_port(settings.flight_host, settings.flight_port)
    place = directory.prepare(settings.data_directory)
    with directory.owned(place, directory.FLIGHT_LOCK):
        _leave(_serve(flight_config(settings, place, certificate)))


def _leave(code: int) -> NoReturn:
    """End the process here and now.

    The usual way out waits for threads of gRPC, which a client may hold for ever; everything that
    counts is durable by now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def flight_config(
    settings: Settings, data_directory: Path, certificate: tls.Certificate | None = None
) -> FlightConfig:
    """Return what the server takes, as plain values."""
    return FlightConfig(
        location=settings.flight_uri,
        data_directory=data_directory,
        hot_window_us=settings.hot_window,
        hot_memory_limit_bytes=settings.hot_memory_limit,
        journal_limit_bytes=settings.journal_limit,
        source_priority=settings.source_priority,
        version=version("tickflight-server"),
        lake_directory=settings.lake_directory,
        retention_us=settings.retention,
        tls=None if certificate is None else TlsPair(certificate.chain, certificate.key),
    )


def _serve(config: FlightConfig) -> int:
    """Run the server until a signal; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    service = FlightService(config, clock=SystemClock(), disk=SystemDisk(), on_failure=_fail)
    try:
        service.start()
        click.echo(ready_line(service.uri))
        stop.wait()
        _log.info("stopping")
        service.stop(DRAIN_SECONDS)
    except JournalCorruptError as error:
        _log.critical("the journal is damaged", reason=str(error), advice=journal.ADVICE)
        return EXIT_FAILED
    except (FlightServiceError, StorageError) as error:
        _log.critical("the flight server can't go on", reason=str(error))
        return EXIT_FAILED
    return EXIT_DONE


def _fail(error: BaseException) -> None:
    """Leave at once: a disk that failed is not asked again, a new process recovers from it."""
    _log.critical("the flight server failed", exc_info=error)
    _leave(EXIT_FAILED)
