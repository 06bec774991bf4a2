"""What services said of themselves, read back from ``service_events``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from storage.ports import MICROSECONDS
from storage.schemas import SERVICE_EVENTS
from storage.selection import Selection
from storage.snapshot import Snapshot

EVENTS_READ: Final = 1_000
"""Newest events that states are read from: a service that is silent longer is gone."""
RECENT: Final = 24 * 3_600 * MICROSECONDS
"""How long a restart or an error is worth telling, µs."""
RUNNING: Final = "running"
RESTARTING: Final = "restarting"
"""The event that counts as a restart; a runner tells its source's, a supervisor its roles'."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error a service told of; when in µs."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """What a service said last.

    Attributes:
        state: Its newest event.
        since: When it entered that state, µs.
        detail: What it added to the newest event.
        restarts: How often it was restarted in the last day.
        last_error: The newest trouble it told of in the last day.
    """

    state: str
    since: int
    detail: str
    restarts: int
    last_error: Failure | None


def tellings(snapshot: Snapshot) -> dict[str, Told]:
    """Return what each service said, in the order of their names."""
    answer = snapshot.latest(SERVICE_EVENTS.name, Selection(), EVENTS_READ)
    rows = pa.Table.from_batches(answer.batches)
    instants = rows["ts_event"].cast(pa.int64())
    at = rows.schema.get_field_index("ts_event")
    events = rows.set_column(at, "ts_event", instants).to_pylist()
    return summed_up(events, snapshot.now)


def summed_up(events: Iterable[Mapping[str, Any]], now: int) -> dict[str, Told]:
    """Sum events up, oldest first, a service at a time."""
    by_service: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        by_service.setdefault(event["service"], []).append(event)
    return {name: _told(of_one, now) for name, of_one in sorted(by_service.items())}


def _told(events: list[Mapping[str, Any]], now: int) -> Told:
    newest = events[-1]
    entered = next((event for event in reversed(events) if not _is_remark(event)), newest)
    recent = [event for event in events if event["ts_event"] >= now - RECENT]
    errors = [event for event in recent if event["level"] != "info" and event["detail"]]
    return Told(
        state=newest["event"],
        since=entered["ts_event"],
        detail=newest["detail"] or "",
        restarts=sum(event["event"] == RESTARTING for event in recent),
        last_error=Failure(errors[-1]["ts_event"], errors[-1]["detail"]) if errors else None,
    )


def _is_remark(event: Mapping[str, Any]) -> bool:
    """Whether a running service only told of a trouble: it was running before."""
    return bool(event["event"] == RUNNING and event["level"] != "info")
