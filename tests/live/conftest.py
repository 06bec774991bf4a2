"""Services as the other tests have them, and readers of live streams in plain Arrow Flight."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import live_stream
from tests.flight_server.conftest import Caller, House, house, until
from tests.storage.conftest import lab, store

__all__ = ["house", "lab", "store"]


@dataclass
class Message:
    """One message of a stream."""

    rows: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def sequences(self) -> list[int]:
        return [row["sequence"] for row in self.rows]


@dataclass
class Listener:
    """A subscriber that speaks plain Arrow Flight, in a thread of its own."""

    stream: flight.FlightStreamReader
    messages: list[Message] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        try:
            for chunk in self.stream:
                about = json.loads(chunk.app_metadata.to_pybytes())
                self.messages.append(Message(_plain(chunk.data), about))
        except (flight.FlightError, pa.ArrowException) as error:
            self.error = error

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for message in self.messages for row in message.rows]

    @property
    def sequences(self) -> list[int]:
        return [row["sequence"] for row in self.rows]

    @property
    def has_ended(self) -> bool:
        return not self.thread.is_alive()

    @property
    def caught_up(self) -> bool:
        return any(message.about["caught_up"] for message in tuple(self.messages))

    def wait(self, rows: int) -> None:
        until(lambda: len(self.rows) >= rows or self.has_ended)

    def cancel(self) -> None:
        self.stream.cancel()
        self.thread.join(20)


def listen(caller: Caller, **fields: Any) -> Listener:
    """Open a live stream, and wait until it is caught up or has ended."""
    listener = Listener(caller.stream({"op": "live", **fields}))
    until(lambda: listener.caught_up or listener.has_ended)
    return listener


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    schema = pa.schema(
        [f.with_type(pa.int64()) if pa.types.is_timestamp(f.type) else f for f in batch.schema]
    )
    return list(batch.cast(schema).to_pylist())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have streams beat and look round far more often."""
    monkeypatch.setattr(live_stream, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(live_stream, "WELCOME_SECONDS", 0.1)
    monkeypatch.setattr(live_stream, "LOOK_SECONDS", 0.05)


def own(house: House) -> Any:
    """The store behind a service."""
    assert house.service._store is not None
    return house.service._store
