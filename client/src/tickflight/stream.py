"""One DoPut stream, from the first batch to the server's last word on it.

Two threads a stream: one sends (and may be held up by the server's back-pressure as long as that
lasts), one reads acks (gRPC stalls when nobody does). pyarrow can't cancel a DoPut, so a stream
that the engine has given up is simply left: it ends by itself, at its deadline at the latest.
"""

import json
import threading
from typing import Any, Final, Protocol

import pyarrow as pa
from pyarrow import flight

from tickflight.connection import Connection
from tickflight.errors import ServerError, TickflightError, UnavailableError, map_errors
from tickflight.outbox import Ack, Batch, Outbox

STREAM_LIFE_SECONDS: Final = 600.0
"""A stream older than this is followed by another: it bounds how long a given-up one may linger."""
STREAM_DEADLINE_SECONDS: Final = STREAM_LIFE_SECONDS + 60.0
"""gRPC's own end of a stream, with time for the last acks."""


class StreamHost(Protocol):
    """What a stream asks of the engine; every method may be called from a stream's threads."""

    def take(self, stream: "Stream") -> Batch | None:
        """The next batch, waiting for one; None to end the stream."""

    def load(self, stream: "Stream", batch: Batch) -> pa.RecordBatch | None:
        """The rows of a batch; None when it has become durable meanwhile."""

    def opened(self, stream: "Stream") -> None:
        """The server took the schema."""

    def finishing(self, stream: "Stream") -> None:
        """The stream sends nothing more and waits for the last acks."""

    def acked(self, stream: "Stream", ack: Ack) -> None:
        """The server made batches durable."""

    def hung_up(self, stream: "Stream") -> None:
        """The server sends no more acks on this stream; a waiting ``take`` must return."""

    def ended(self, stream: "Stream", error: Exception | None) -> None:
        """Both threads are done; nothing more comes from this stream."""


class Stream:
    """Sends the batches of one outbox that share a schema; ``start`` it once."""

    def __init__(
        self, host: StreamHost, connection: Connection, outbox: Outbox, *, generation: int
    ) -> None:
        self._host = host
        self._connection = connection
        self.outbox = outbox
        self.generation = generation
        self.over = threading.Event()
        """Set once the server sends no more acks."""
        self._ack_error: Exception | None = None

    def start(self) -> None:
        """Begin, in threads of its own."""
        name = f"tickflight-send-{self.generation}"
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def _main(self) -> None:
        error: Exception | None = None
        try:
            self._run()
        except Exception as raised:  # noqa: BLE001 - a silent end would leave the writer waiting
            error = raised
        self._host.ended(self, self._ack_error or error)

    def _run(self) -> None:
        batch, rows = self._next()
        if batch is None or rows is None:
            return
        with self._connection.again() as connection:
            writer, reader = connection.put(
                self.outbox.title.dataset, rows.schema, timeout=STREAM_DEADLINE_SECONDS
            )
            acks = threading.Thread(
                target=self._read_acks,
                args=(reader,),
                name=f"tickflight-acks-{self.generation}",
                daemon=True,
            )
            acks.start()
            try:
                self._host.opened(self)
                self._send(writer, batch, rows)
                self._finish(writer, acks)
            finally:
                _let_go(writer)
                acks.join()

    def _next(self) -> tuple[Batch | None, pa.RecordBatch | None]:
        """The next batch and its rows; what became durable meanwhile is passed over."""
        while (batch := self._host.take(self)) is not None:
            rows = self._host.load(self, batch)
            if rows is not None:
                return batch, rows
        return None, None

    def _send(
        self, writer: flight.FlightStreamWriter, batch: Batch | None, rows: pa.RecordBatch
    ) -> None:
        """Send until there is nothing more for this stream, or the next batch needs another."""
        schema = rows.schema
        producer = json.dumps(self.outbox.title.producer)
        while batch is not None and rows.schema.equals(schema):
            metadata = f'{{"producer":{producer},"seq":{batch.seq}}}'.encode()
            with map_errors():
                writer.write_with_metadata(rows, pa.py_buffer(metadata))
            batch, rows = self._next()

    def _finish(self, writer: flight.FlightStreamWriter, acks: threading.Thread) -> None:
        was_over = self.over.is_set()
        self._host.finishing(self)
        with map_errors():
            writer.done_writing()
        acks.join()
        with map_errors():
            writer.close()
        if was_over:
            raise UnavailableError("the server ended the stream")

    def _read_acks(self, reader: flight.FlightMetadataReader) -> None:
        try:
            while True:
                with map_errors():
                    message = reader.read()
                if message is None:
                    return
                self._host.acked(self, read_ack(message.to_pybytes()))
        except TickflightError as error:
            self._ack_error = error
        finally:
            self.over.set()
            self._host.hung_up(self)


def _let_go(writer: flight.FlightStreamWriter) -> None:
    """Release a stream that has failed; what it says now is the failure again."""
    try:
        with map_errors():
            writer.close()
    except TickflightError:
        pass


def read_ack(message: bytes) -> Ack:
    """Read what the server writes of what is durable.

    Raises:
        ServerError: it is nothing we know.
    """
    try:
        content: dict[str, Any] = json.loads(message)
        return Ack(
            seq=int(content["seq"]),
            rows=int(content.get("rows", 0)),
            quarantined=int(content.get("quarantined", 0)),
            duplicates=int(content.get("duplicates", 0)),
        )
    except (ValueError, KeyError, TypeError):
        raise ServerError("the server's acks can't be read: update tickflight") from None
