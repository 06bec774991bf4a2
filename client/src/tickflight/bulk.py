"""Old data by the million: straight into the server's lake, past its memory.

Nothing is kept here and nothing is retried. A job has a name and numbers its batches, and the
server knows them: whoever sends a job again, after whatever has gone wrong, sends the same batches,
and those that are there already are passed over.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa
from pyarrow import flight

from tickflight.connection import Connection
from tickflight.errors import InvalidRequestError, TickflightError, WriterClosedError, map_errors
from tickflight.outbox import Ack
from tickflight.rows import RowReader, Rows, SchemaSource
from tickflight.stream import read_ack


@dataclass(frozen=True, slots=True)
class BulkStats:
    """What a bulk writer has done.

    Attributes:
        rows_written: Taken by ``write``.
        rows_durable: New in the server's lake; all that were written and are not counted below
            were there already.
        rows_quarantined: Set aside by the server as impossible.
        rows_duplicate: Dropped by the server because the job had sent them before.
        seq: Number of the newest batch that is safe.
    """

    rows_written: int = 0
    rows_durable: int = 0
    rows_quarantined: int = 0
    rows_duplicate: int = 0
    seq: int = 0


class BulkWriter:
    """One job's way into one dataset; for one thread. ``Client.bulk`` makes one.

    All of it is durable and visible once ``close`` returns, or the ``with`` block ends. Millions of
    rows are a part each, which the server has for good as soon as they are complete.
    """

    def __init__(
        self,
        connection: Connection,
        dataset: str,
        job: str,
        *,
        first_seq: int = 1,
        schema: SchemaSource,
    ) -> None:
        self._connection = connection
        self._dataset = dataset
        self._job = job
        self._next = first_seq
        self._rows = RowReader(schema)
        self._schema: pa.Schema | None = None
        self._halves: tuple[flight.FlightStreamWriter, flight.FlightMetadataReader] | None = None
        self._closed = False
        self.stats = BulkStats(seq=first_seq - 1)
        """What was done so far; counts of the server come with ``close``."""

    def __repr__(self) -> str:
        return f"<BulkWriter {self._job} into {self._dataset}, next batch {self._next}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()

    def write(self, data: Rows) -> None:
        """Send rows: a table, a record batch, dicts, or a frame of Polars or pandas.

        Batches of a table are numbered each: send it again in the same pieces.

        Raises:
            WriterClosedError: the writer was closed.
            InvalidRequestError: the rows can't be taken, or have other columns than those before.
            TickflightError: the server could not be reached or refused; send the job again.
        """
        if self._closed:
            raise WriterClosedError("the writer was closed; open another one")
        for batch in self._rows.batches(data):
            self._send(batch)

    def close(self) -> None:
        """Wait until everything is durable and visible; idempotent.

        Raises:
            TickflightError: it is not, or nobody knows; send the job again.
        """
        if self._closed:
            return
        self._closed = True
        if self._halves is None:
            return
        writer, reader = self._halves
        try:
            with map_errors():
                writer.done_writing()
                while (message := reader.read()) is not None:
                    self._note(read_ack(message.to_pybytes()))
                writer.close()
        finally:
            self._let_go()

    def _send(self, batch: pa.RecordBatch) -> None:
        if self._schema is None:
            self._halves = self._connection.put(
                self._dataset, batch.schema, job=self._job, timeout=None
            )
            self._schema = batch.schema
        elif not batch.schema.equals(self._schema):
            raise InvalidRequestError("all batches of a job have the same columns and types")
        assert self._halves is not None  # noqa: S101 - opened with the schema
        mark = json.dumps({"producer": self._job, "seq": self._next}).encode()
        with self._saying_why():
            self._halves[0].write_with_metadata(batch, pa.py_buffer(mark))
        self._next += 1
        self.stats = replace(self.stats, rows_written=self.stats.rows_written + batch.num_rows)

    @contextmanager
    def _saying_why(self) -> Iterator[None]:
        """Raise what the server ended the stream for; a write that fails does not know."""
        try:
            with map_errors():
                yield
        except TickflightError:
            halves, self._halves, self._closed = self._halves, None, True
            if halves is not None:
                with map_errors():
                    halves[0].close()
            raise

    def _note(self, ack: Ack) -> None:
        known = self.stats
        self.stats = BulkStats(
            known.rows_written,
            known.rows_durable + ack.rows,
            known.rows_quarantined + ack.quarantined,
            known.rows_duplicate + ack.duplicates,
            max(known.seq, ack.seq),
        )

    def _let_go(self) -> None:
        """Release the stream; the server keeps what it has, and knows it when it comes again."""
        self._closed = True
        halves, self._halves = self._halves, None
        if halves is None:
            return
        try:
            halves[0].close()
        except (pa.ArrowException, OSError):
            return  # what went wrong was raised where it did
