"""How the service is doing, as the ``status`` action tells it.

Services are the server itself (``flight``), the parts of it that can be in trouble (``journal``,
``memory``, ``clock``, ``spot_checks``, ``rollover``, ``lake``), and whatever tells of itself in
``service_events``: the sources, and roles their supervisor had to restart. States:

running       all is well
degraded      it works, and ``detail`` says what is wrong; ``since`` is when that began
restarting    it ended by itself and is being started again
failed        no retry mends it: somebody has to look
disconnected  it says it runs, but has no stream open: cut off, or dead
stopped       it ended because it should
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from flight_server.auth import Authenticator
from flight_server.check_tally import CheckTally
from flight_server.events import RUNNING, Failure, Told, tellings
from flight_server.health import Health, Trouble, Vitals
from flight_server.streams import StreamSlots
from flight_server.writes import Writes
from storage.ports import Clock
from storage.rollover_parts import RolloverStatus
from storage.store import Store

OWN_PREFIX: Final = "tickflightd:"
"""Keys of the service's own processes are made for this and the name of the process."""
DEGRADED: Final = "degraded"
FLIGHT: Final = "flight"
ROLLOVER: Final = "rollover"
LAKE: Final = "lake"
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """State of one part of the service.

    Attributes:
        name: Which part.
        state: See the module.
        since: Since when it is in that state, µs.
        detail: A sentence for people; may be empty.
        restarts: How often it was restarted in the last day.
        last_error: The newest error of the last day, whatever became of it.
    """

    name: str
    state: str
    since: int
    detail: str
    restarts: int = 0
    last_error: Failure | None = None


class StatusBoard:
    """Gathers the state of this server and of everything that writes to it."""

    def __init__(
        self,
        store: Store,
        writes: Writes,
        slots: StreamSlots,
        live: StreamSlots,
        authenticator: Authenticator,
        checks: CheckTally,
        clock: Clock,
        version: str,
    ) -> None:
        self._store = store
        self._writes = writes
        self._slots = slots
        self._live = live
        self._authenticator = authenticator
        self._checks = checks
        self._version = version
        self.health = Health(clock, self._vitals)

    def report(self) -> dict[str, Any]:
        """Return the answer of the ``status`` action."""
        journal = self._store.journal_status
        datasets = self._store.datasets()
        return {
            "version": self._version,
            "epoch": self._store.epoch,
            "started": self.health.started,
            "services": [asdict(service) for service in self._services()],
            "datasets": {name: asdict(size) for name, size in datasets.items() if size.rows},
            "memory": {"used": self._store.nbytes, "limit": self._store.memory_limit},
            "spot_checks": self._checks.fields(),
            "rollover": rollover_fields(self._store.rollover.status),
            "journal": {
                "commits": journal.commits,
                "waiting_rows": journal.waiting_rows,
                "commit_ms": _percentiles(list(journal.commit_seconds)),
            },
            "streams": self._slots.taken,
            "refused_credentials": sum(self._authenticator.refused().values()),
        }

    def _vitals(self) -> Vitals:
        journal = self._store.journal_status
        return Vitals(
            used=self._store.row_bytes,
            full=self._store.memory_full,
            arrival=self._store.arrival,
            commits=journal.commits,
            waiting_rows=journal.waiting_rows,
            commit_seconds=list(journal.commit_seconds),
            broken=journal.degraded,
            broken_since=journal.degraded_since,
            # Who only reads, as a mirror does, is there as long as it follows.
            writing=frozenset(self._writes.writing()) | self._live.owners,
            unsound=self._checks.trouble,
        )

    def _services(self) -> list[ServiceStatus]:
        troubles = self.health.look()
        told = tellings(self._store.snapshot())
        parts = {
            "journal": self._journal(),
            "memory": self._memory(),
            "clock": "",
            "spot_checks": self._checks.summary(),
        }
        return [
            self._flight(troubles, told.pop(FLIGHT, None)),
            *(self._part(name, troubles.get(name), well) for name, well in parts.items()),
            self._rollover(told.pop(ROLLOVER, None)),
            self._lake(told.pop(LAKE, None)),
            *(self._teller(name, one) for name, one in told.items()),
        ]

    def _flight(self, troubles: Mapping[str, Trouble], told: Told | None) -> ServiceStatus:
        restarts, error = (told.restarts, told.last_error) if told else (0, None)
        if troubles:
            state, since = DEGRADED, min(trouble.since for trouble in troubles.values())
            detail = f"trouble with {' and '.join(sorted(troubles))}"
        else:
            state, since = RUNNING, self.health.started
            detail = f"{self._store.recovered_rows:,} rows recovered at start"
        if restarts:
            detail += f"; {_history(restarts, error)}"
        return ServiceStatus(FLIGHT, state, since, detail, restarts, error)

    def _part(self, name: str, trouble: Trouble | None, well: str) -> ServiceStatus:
        if trouble is not None:
            return ServiceStatus(name, DEGRADED, trouble.since, trouble.detail)
        return ServiceStatus(name, RUNNING, self.health.well_since(name), well)

    def _journal(self) -> str:
        journal = self._store.journal_status
        milliseconds = _percentiles(list(journal.commit_seconds))
        took = f", commits take {milliseconds['p50']:.1f} ms" if milliseconds else ""
        return f"{journal.waiting_rows:,} rows waiting{took}"

    def _memory(self) -> str:
        used, limit = self._store.nbytes / _MIB, self._store.memory_limit / _MIB
        return f"{used:,.0f} of {limit:,.0f} MiB"

    def _rollover(self, told: Told | None) -> ServiceStatus:
        status = self._store.rollover.status
        error = told.last_error if told else None
        well = f"{status.unrolled_rows:,} rows of finished files are not in the lake yet"
        detail = status.detail or (well if status.unrolled else "")
        return ServiceStatus(ROLLOVER, status.state.value, status.since, detail, 0, error)

    def _lake(self, told: Told | None) -> ServiceStatus:
        health = self._store.upkeep.status
        error = told.last_error if told else None
        return ServiceStatus(LAKE, health.state.value, health.since, health.detail, 0, error)

    def _teller(self, name: str, told: Told) -> ServiceStatus:
        state, since, detail = told.state, told.since, told.detail
        silent = self.health.silent_since(f"{OWN_PREFIX}{name}")
        if state == RUNNING and silent is not None:
            # It may have come after this server did, and left before the first look.
            state, since, detail = "disconnected", max(silent, since), "it has no stream open"
        elif told.restarts and state == RUNNING:
            detail = _history(told.restarts, told.last_error)
        return ServiceStatus(name, state, since, detail, told.restarts, told.last_error)


def rollover_fields(status: RolloverStatus) -> dict[str, Any]:
    """Return how the rollover is doing, as JSON can hold it."""
    return asdict(status) | {"state": status.state.value}


def _history(restarts: int, error: Failure | None) -> str:
    times = "once" if restarts == 1 else f"{restarts} times"
    why = f", last because: {error.text}" if error else ""
    return f"restarted {times} in the last day{why}"


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[int(last * part)] * 1000, 3) for name, part in at.items()}
