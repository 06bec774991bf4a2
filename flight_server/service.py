"""The flight role: a store, a door with a lock, and the server between them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import pyarrow as pa
import structlog

from flight_server import spot_checks
from flight_server.actions import Actions
from flight_server.auth import Authenticator
from flight_server.calls import Calls
from flight_server.check_tally import CheckTally
from flight_server.door import Door
from flight_server.downtime import DowntimeWatch
from flight_server.errors import AddressError
from flight_server.files import FileRegistry
from flight_server.health import Health
from flight_server.history import QueryHistory
from flight_server.identity import Scope
from flight_server.keys import KeyStore
from flight_server.live import LiveReads
from flight_server.reads import Reads
from flight_server.replays import REPLAYS_MAX, REPLAYS_PER_KEY_MAX, Replays
from flight_server.server import FlightRpcServer, Rooms
from flight_server.sessions import SessionFile
from flight_server.spot_checks import SpotChecker, Surroundings
from flight_server.status import StatusBoard
from flight_server.streams import (
    LIVE_STREAMS_MAX,
    LIVE_STREAMS_PER_KEY_MAX,
    READ_STREAMS_MAX,
    READ_STREAMS_PER_KEY_MAX,
    WRITE_STREAMS_MAX,
    WRITE_STREAMS_PER_KEY_MAX,
    StreamSlots,
)
from flight_server.usage import UsageTable
from flight_server.writes import Writes
from storage.ports import Clock, Disk
from storage.reordering import Spill
from storage.selection import SourcePolicy
from storage.store import JOURNAL_BYTES_MAX, Store, StoreConfig

SHUTDOWN_SECONDS: Final = 0.5
"""How long gRPC may take to close: it waits for clients without end, so nobody waits for it."""

_LOG: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TlsPair:
    """What connections are encrypted with, both PEM: the certificate chain and its key."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FlightConfig:
    """What the flight role needs to know.

    Attributes:
        location: Where to listen, ``grpc://host:port``, or ``grpc+tls://`` with ``tls``; port 0
            picks a free one.
        data_directory: Where journal and control database live; local disk.
        hot_window_us: How long rows stay in memory, µs.
        hot_memory_limit_bytes: Memory for rows beyond which the oldest leave it early.
        source_priority: Sources, the one that speaks for a symbol first.
        version: Of the service, for ``status``.
        journal_limit_bytes: Journal files beyond which those the lake has are removed early.
        lake_directory: Where the lake's tables are; ``None`` is ``lake`` in ``data_directory``.
        retention_us: How long the lake keeps rows, µs; ``None`` is for ever.
        tls: What to encrypt with; ``None`` is in the clear.
    """

    location: str
    data_directory: Path
    hot_window_us: int
    hot_memory_limit_bytes: int
    source_priority: tuple[str, ...]
    version: str
    journal_limit_bytes: int = JOURNAL_BYTES_MAX
    lake_directory: Path | None = None
    retention_us: int | None = None
    tls: TlsPair | None = None


class FlightService:
    """Runs the flight role. ``start`` once, ``stop`` once.

    Args:
        config: What to serve and where.
        clock: Where time comes from.
        disk: The file system.
        on_failure: Called once, from any thread, when the service can't go on: the process must
            end without ``stop``, and the next start recovers what was acknowledged.
    """

    def __init__(
        self,
        config: FlightConfig,
        *,
        clock: Clock,
        disk: Disk,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._disk = disk
        self._on_failure = on_failure
        self._door: Door | None = None
        self._store: Store | None = None
        self._health: Health | None = None
        self._downtime: DowntimeWatch | None = None
        self._checker: SpotChecker | None = None
        self._server: FlightRpcServer | None = None

    def start(self) -> None:
        """Recover what is there, then answer.

        Raises:
            StorageError: The journal can't be read back or written.
            FlightServiceError: The control database can't be used, or the address is taken.
        """
        config, clock = self._config, self._clock
        self._disk.make_directory(config.data_directory)
        keys = KeyStore(config.data_directory, clock)
        files = FileRegistry(config.data_directory, clock)
        store = Store(
            StoreConfig(
                directory=config.data_directory,
                hot_memory_limit=config.hot_memory_limit_bytes,
                sources=SourcePolicy(config.source_priority, config.hot_window_us),
                hot_window_us=config.hot_window_us,
                journal_limit=config.journal_limit_bytes,
                lake=config.lake_directory,
                retention_us=config.retention_us,
            ),
            clock=clock,
            disk=self._disk,
            on_failure=self._on_failure,
        )
        door = self._open_door(keys, store)
        writes = Writes(store, door.writers)
        sessions = SessionFile(config.data_directory)
        downtime = DowntimeWatch(store, sessions, writes.datasets, clock)
        downtime.begin()  # before anything comes in: what is there was left by the last life
        tally = CheckTally(clock)
        board = StatusBoard(
            store, writes, door.readers, door.live, door.authenticator, tally, clock, config.version
        )
        live = LiveReads(store, door.live, clock)
        spill = Spill(config.data_directory, self._disk)
        replays = Replays(store, door.replays, clock, spill)
        rooms = Rooms(
            store=store,
            reads=Reads(store, door.readers, door.calls, live, replays),
            writes=writes,
            actions=Actions(store, files, board, door),
            authenticator=door.authenticator,
            calls=door.calls,
        )
        self._store = store
        self._door = door
        door.history.start()
        self._server = _listen(config, rooms)
        self._health = board.health
        self._health.start()
        store.rollover.start()
        store.upkeep.start()
        key = keys.own(spot_checks.MODEL, scopes=[Scope.READ_HISTORY, Scope.ADMIN])
        around = Surroundings(store, config.data_directory / "journal", files, key, self.uri)
        self._checker = SpotChecker(around, tally, clock, Random())  # noqa: S311 - no secret
        self._checker.start()
        downtime.start()
        self._downtime = downtime
        _LOG.info("serving", uri=self.uri, epoch=store.epoch, recovered_rows=store.recovered_rows)

    @property
    def uri(self) -> str:
        """Where clients connect."""
        if self._server is None:
            return self._config.location
        host = self._config.location.rpartition(":")[0]
        return f"{host}:{self._server.port}"

    def stop(self, drain_seconds: float) -> None:
        """Let running calls end for a while, make everything durable, and close.

        What was acknowledged is safe whatever happens here. Calls that are still running
        afterwards end with the process.
        """
        if self._downtime is not None:
            self._downtime.stop()
        if self._checker is not None:
            self._checker.stop()
        if self._door is not None:
            if not self._door.drain(drain_seconds):
                _LOG.warning("streams cut off", streams=self._door.streams)
            self._door.history.stop()
        if self._health is not None:
            self._health.stop()
        if self._store is not None:
            self._store.close()
        if self._server is not None:
            closing = threading.Thread(target=self._server.shutdown, daemon=True)
            closing.start()
            closing.join(SHUTDOWN_SECONDS)

    def _open_door(self, keys: KeyStore, store: Store) -> Door:
        clock = self._clock
        authenticator = Authenticator(keys, clock)
        usage = UsageTable(self._config.data_directory)
        history = QueryHistory(store, usage, authenticator.refused, clock)
        return Door(
            authenticator=authenticator,
            calls=Calls(history.note, clock),
            readers=StreamSlots(READ_STREAMS_MAX, READ_STREAMS_PER_KEY_MAX, clock),
            replays=StreamSlots(REPLAYS_MAX, REPLAYS_PER_KEY_MAX, clock),
            writers=StreamSlots(WRITE_STREAMS_MAX, WRITE_STREAMS_PER_KEY_MAX, clock),
            live=StreamSlots(LIVE_STREAMS_MAX, LIVE_STREAMS_PER_KEY_MAX, clock, store.wake_readers),
            history=history,
            clock=clock,
        )


def _listen(config: FlightConfig, rooms: Rooms) -> FlightRpcServer:
    pair = None if config.tls is None else (config.tls.chain, config.tls.key)
    try:
        return FlightRpcServer(config.location, rooms, pair)
    except (pa.ArrowException, OSError) as error:
        raise AddressError(
            f"can't listen on {config.location}: another program has the port"
        ) from error
