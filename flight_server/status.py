"""How the service is doing, as the ``status`` action tells it."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from flight_server.auth import Authenticator
from flight_server.streams import StreamSlots
from flight_server.writes import Writes
from storage.ports import Clock
from storage.schemas import SERVICE_EVENTS
from storage.selection import Selection
from storage.store import Store

EVENTS_READ: Final = 1_000
"""Newest service events that states are read from: a service that is silent longer is gone."""
OWN_PREFIX: Final = "tickflightd:"
"""Keys of the service's own processes are made for this and the name of the process."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """State of one part of the service; ``since`` in µs."""

    name: str
    state: str
    since: int
    detail: str


class StatusBoard:
    """Gathers the state of this server and of everything that writes to it."""

    def __init__(
        self,
        store: Store,
        writes: Writes,
        slots: StreamSlots,
        authenticator: Authenticator,
        clock: Clock,
        version: str,
    ) -> None:
        self._store = store
        self._writes = writes
        self._slots = slots
        self._authenticator = authenticator
        self._version = version
        self._started = clock.now()

    def report(self) -> dict[str, Any]:
        """Return the answer of the ``status`` action."""
        journal = self._store.journal_status
        datasets = self._store.datasets()
        return {
            "version": self._version,
            "epoch": self._store.epoch,
            "services": [asdict(service) for service in (self._flight(), *self._writers())],
            "datasets": {name: asdict(size) for name, size in datasets.items() if size.rows},
            "memory": {"used": self._store.nbytes, "limit": self._store.memory_limit},
            "journal": {
                "commits": journal.commits,
                "waiting_rows": journal.waiting_rows,
                "commit_ms": _percentiles(list(journal.commit_seconds)),
            },
            "streams": self._slots.taken,
            "refused_credentials": sum(self._authenticator.refused().values()),
        }

    def _flight(self) -> ServiceStatus:
        journal = self._store.journal_status
        if journal.degraded is not None:
            since = journal.degraded_since or self._started
            return ServiceStatus("flight", "degraded", since, journal.degraded)
        if self._store.nbytes > self._store.memory_limit:
            detail = "memory is over its limit: producers are held back"
            return ServiceStatus("flight", "degraded", self._started, detail)
        detail = f"{self._store.recovered_rows} rows recovered at start"
        return ServiceStatus("flight", "running", self._started, detail)

    def _writers(self) -> list[ServiceStatus]:
        writing = self._writes.writing()
        answer = self._store.snapshot().latest(SERVICE_EVENTS.name, Selection(), EVENTS_READ)
        newest: dict[str, ServiceStatus] = {}
        for row in pa.Table.from_batches(answer.batches).to_pylist():
            since = int(row["ts_event"].timestamp() * 1e6)
            detail = row["detail"] or ""
            newest[row["service"]] = ServiceStatus(row["service"], row["event"], since, detail)
        return [_seen(service, writing) for service in newest.values()]


def _seen(service: ServiceStatus, writing: set[str]) -> ServiceStatus:
    """A service that says it runs but has no stream open is cut off, or dead."""
    if service.state != "running" or f"{OWN_PREFIX}{service.name}" in writing:
        return service
    return ServiceStatus(service.name, "disconnected", service.since, "it has no stream open")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[int(last * part)] * 1000, 3) for name, part in at.items()}
