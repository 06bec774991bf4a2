"""What the machine and pyarrow give without us: the other side of every ratio."""

import json
import queue
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq

from bench.market import ticks
from storage.schemas import TICKS, TIMESTAMP

FOLLOWER_BATCHES_MAX = 100_000
"""Batches that wait for one follower: minutes of them."""


class BareServer(flight.FlightServerBase):  # type: ignore[misc]
    """Returns a ready table or a Parquet file; takes batches, acks each and hands it to followers.

    A live ticket makes a follower.
    """

    def __init__(self, table_rows: int, parquet: str | None) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._table = pa.Table.from_batches([next(ticks("floor", table_rows, 0))])
        self._parquet = parquet
        self._followers: list[queue.Queue[pa.RecordBatch]] = []

    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        """Send the table, a file, rows of a file that a ticket names, or what comes from now on."""
        if b"live" in ticket.ticket:
            return self._followed(context)
        if ticket.ticket == b"parquet":
            return flight.RecordBatchStream(pq.read_table(self._parquet))
        if b"path" in ticket.ticket:
            return flight.RecordBatchStream(_rows_within(**json.loads(ticket.ticket)))
        return flight.RecordBatchStream(self._table)

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Count rows."""
        for chunk in reader:
            seq = json.loads(chunk.app_metadata.to_pybytes())["seq"]
            writer.write(b'{"seq":%d,"rows":%d}' % (seq, chunk.data.num_rows))
            if self._followers:
                batch = chunk.data.cast(TICKS.schema)
                for follower in tuple(self._followers):
                    follower.put(batch)

    def _followed(self, context: flight.ServerCallContext) -> flight.FlightDataStream:
        own: queue.Queue[pa.RecordBatch] = queue.Queue(FOLLOWER_BATCHES_MAX)
        self._followers.append(own)

        def batches() -> Iterator[pa.RecordBatch]:
            while not context.is_cancelled():
                with suppress(queue.Empty):
                    waiting = [own.get(timeout=0.1)]
                    while not own.empty():
                        waiting.append(own.get())
                    yield pa.concat_batches(waiting)
            self._followers.remove(own)

        return flight.GeneratorStream(TICKS.schema, batches())


def _rows_within(path: str, start: int, end: int) -> pa.Table:
    """Read the rows of a file of a span, µs; it need not lie in a table of directories."""
    span = [("ts_event", ">=", _instant(start)), ("ts_event", "<", _instant(end))]
    return pq.read_table(path, filters=span, partitioning=None)


def _instant(at: int) -> pa.Scalar:
    return pa.scalar(at, TIMESTAMP)


def sqlite_rows_per_second(rows: int, seconds: float, directory: Path) -> float:
    """Commit uncompressed batches one after another, as durably as the journal does."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        connection = sqlite3.connect(Path(place) / "floor.db", isolation_level=None)
        connection.execute("PRAGMA page_size=8192")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
        batches = ticks("floor", rows, 0)
        next(batches)  # the first one imports and prepares: seconds, on a busy machine
        began, written = time.perf_counter(), 0
        for batch in batches:
            if time.perf_counter() - began >= seconds:
                break
            connection.execute("INSERT INTO t (body) VALUES (?)", (batch.serialize(),))
            written += rows
        connection.close()
        return written / (time.perf_counter() - began)


def main() -> None:
    """Run a bare server until standard input closes."""
    table_rows, *parquet = sys.argv[1:]
    server = BareServer(int(table_rows), parquet[0] if parquet else None)
    sys.setswitchinterval(0.0005)
    print(f"grpc://127.0.0.1:{server.port}", flush=True)
    threading.Thread(target=server.wait, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
