"""One connection that asks a question over and over, with nothing but pyarrow in between."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq


class Caller:
    """Asks one ticket."""

    def __init__(self, uri: str, key: str, ticket: bytes | Mapping[str, object]) -> None:
        self._client = flight.connect(uri)
        self._ticket = _encoded(ticket)
        self._options = flight.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {key}".encode())]
        )

    def read(self) -> pa.Table:
        """Return the answer of one call."""
        return self._client.do_get(self._ticket, self._options).read_all()

    def call(self, ticket: bytes | Mapping[str, object] | None = None) -> tuple[float, int]:
        """Return how long one call took in seconds, and how many rows came.

        Args:
            ticket: What to ask instead of its own.
        """
        asked = self._ticket if ticket is None else _encoded(ticket)
        began = time.perf_counter()
        rows = self._client.do_get(asked, self._options).read_all().num_rows
        return time.perf_counter() - began, rows

    def drain(self) -> tuple[float, int]:
        """The same, forgetting each batch once it is here: for answers larger than memory."""
        began, rows = time.perf_counter(), 0
        for chunk in self._client.do_get(self._ticket, self._options):
            rows += chunk.data.num_rows
        return time.perf_counter() - began, rows

    def save(self, path: Path) -> None:
        """Write the answer to a zstd Parquet file, a batch at a time."""
        chunks = self._client.do_get(self._ticket, self._options)
        with pq.ParquetWriter(path, chunks.schema, compression="zstd") as writer:
            for chunk in chunks:
                writer.write_batch(chunk.data)

    def status(self) -> dict[str, Any]:
        """Return the answer of the action ``status``."""
        return self.act("status")

    def act(self, name: str, body: bytes = b"") -> dict[str, Any]:
        """Return the answer of an action."""
        (result,) = self._client.do_action(flight.Action(name, body), self._options)
        answer: dict[str, Any] = json.loads(result.body.to_pybytes())
        return answer

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def _encoded(ticket: bytes | Mapping[str, object]) -> flight.Ticket:
    return flight.Ticket(ticket if isinstance(ticket, bytes) else json.dumps(dict(ticket)).encode())
