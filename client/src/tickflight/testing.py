"""A tickflight server made of lists, for tests: yours and ours.

    with FakeServer() as server, tickflight.connect(server.uri, server.api_key) as client:
        ...

It speaks the real protocol over a real socket. What goes wrong is scripted: each batch that
arrives takes the next of ``server.script``, and clearing ``server.acks`` holds acks back. With a
``journal`` it keeps what it took through ``kill -9``; ``python -m tickflight.testing`` runs one.
"""

import argparse
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import flight

from tickflight import records
from tickflight.coverage import METADATA_KEY
from tickflight.fake_live import live_messages
from tickflight.records import Kind, Title
from tickflight.result import plain
from tickflight.rows import pack, unpack

API_KEY: Final = "tf_test_secret"
ACK_SECONDS: Final = 0.002
"""Between acks: about what a group commit takes."""


class Fate(Enum):
    """What happens to a batch that arrives."""

    TAKE = "take"
    """It is appended, and acked."""
    TAKE_AND_DROP = "take and drop"
    """It is appended; the connection is lost before any further ack."""
    DROP = "drop"
    """The connection is lost and the batch with it."""


class FakeServer(flight.FlightServerBase):  # type: ignore[misc] # pyarrow ships no types
    """A server on a port of its own, open until it is closed."""

    def __init__(
        self,
        *,
        api_key: str = API_KEY,
        datasets: Mapping[str, pa.Schema] = MappingProxyType({}),
        journal: Path | None = None,
        port: int = 0,
    ) -> None:
        """Take the schemas of datasets that must answer before anything was written to them."""
        self.api_key = api_key
        self.script: deque[Fate | flight.FlightError] = deque()
        """The fates of the next batches to arrive; an error ends their stream with it."""
        self.acks = threading.Event()
        """Cleared, it holds acks back: rows are taken and nobody hears of it."""
        self.acks.set()
        self.streams = 0
        """DoPut streams opened so far."""
        self.coverage: dict[str, Any] = {"snapshot": "1", "symbols": {}}
        """What answers carry as coverage."""
        self.services: list[dict[str, Any]] = []
        """What ``status`` tells beside ``flight``."""
        self.gaps: list[dict[str, Any]] = []
        """What ``gaps`` tells, of those that are in the states asked for."""
        self.asked: dict[str, dict[str, Any]] = {}
        """What each action was last asked."""
        self._schemas = dict(datasets)
        self._lock = threading.Lock()
        self._batches: list[tuple[Title, pa.RecordBatch]] = []
        self._durable: dict[str, int] = {}
        self._journal = _Journal(journal)
        for title, seq, batch in self._journal.replay():
            self._batches.append((title, batch))
            self._durable[title.producer] = seq
        super().__init__(f"grpc://127.0.0.1:{port}", middleware={"auth": _Guard(api_key)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Where it answers."""
        return f"grpc://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop it; open streams end."""
        self.acks.set()
        self.shutdown()

    def rows(self, dataset: str) -> pa.Table:
        """All rows taken, in the order they came."""
        with self._lock:
            batches = [batch for title, batch in self._batches if title.dataset == dataset]
            schema = self._schemas.get(dataset)
        if not batches:
            return (schema or pa.schema([])).empty_table()
        tables = [plain(pa.Table.from_batches([batch])) for batch in batches]
        return pa.concat_tables(tables, promote_options="default")

    def durable(self, producer: str) -> int:
        """The newest batch taken of a producer."""
        with self._lock:
            return self._durable.get(producer, 0)

    # The protocol.

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Append what comes, ack what is appended."""
        self.streams += 1
        stream = _PutStream(self, context, descriptor.path[0].decode(), writer)
        try:
            for chunk in reader:
                stream.on_batch(chunk)
        finally:
            stream.end()

    def do_get(
        self, context: flight.ServerCallContext, request: flight.Ticket
    ) -> flight.FlightDataStream:
        """Answer ``latest``, ``range``, ``live``, and ``bars`` with those that were written."""
        answer = self._answer(request.ticket)
        asked = json.loads(request.ticket)
        if asked["op"] != "live":
            return flight.RecordBatchStream(answer)
        messages = live_messages(asked, lambda: self.rows(asked["dataset"]), context.is_cancelled)
        return flight.GeneratorStream(plain(answer).schema, messages)

    def get_schema(
        self, _context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.SchemaResult:
        """Answer with the schema of an answer, or with an empty one that says why."""
        try:
            return flight.SchemaResult(self._answer(descriptor.command).schema)
        except flight.FlightServerError as error:
            return flight.SchemaResult(pa.schema([], metadata={"tickflight.error": str(error)}))

    def do_action(
        self, _context: flight.ServerCallContext, action: flight.Action
    ) -> Iterator[flight.Result]:
        """Answer ``status``, ``symbols``, ``coverage`` and ``gaps``."""
        asked = self.asked[action.type] = json.loads(action.body.to_pybytes() or b"{}")
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "status": self._status,
            "symbols": self._symbols,
            "coverage": lambda: self.coverage,
            "gaps": lambda: self._gaps(asked.get("states")),
        }
        if action.type not in answers:
            raise _error("not_found", f"there is no action {action.type}")
        body = json.dumps(answers[action.type]()).encode()
        return iter([flight.Result(pa.py_buffer(body))])

    def _datasets(self) -> list[str]:
        with self._lock:
            return sorted({title.dataset for title, _ in self._batches} | set(self._schemas))

    def _gaps(self, states: Sequence[str] | None) -> dict[str, Any]:
        found = [gap for gap in self.gaps if not states or gap["state"] in states]
        return {"snapshot": "1", "count": len(found), "gaps": found}

    def _status(self) -> dict[str, Any]:
        datasets = self._datasets()
        own = {"name": "flight", "state": "running", "since": 0, "detail": ""}
        return {
            "services": [own, *self.services],
            "datasets": {name: {"rows": len(self.rows(name)), "bytes": 0} for name in datasets},
            "epoch": 1,
            "version": "fake",
        }

    def _symbols(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for name in self._datasets():
            rows = self.rows(name)
            for symbol in sorted(set(rows["symbol"].to_pylist())):
                times = _of(rows, [symbol])["ts_event"].cast(pa.int64())
                ends = pc.min_max(times).as_py()
                held = {"rows": len(times), "first": ends["min"], "last": ends["max"]}
                found.setdefault(name, {})[symbol] = held
        return {"datasets": found}

    def _answer(self, ticket: bytes) -> pa.Table:
        try:
            asked = json.loads(ticket)
            dataset = "bars" if asked["op"] == "bars" else asked["dataset"]
            rows = self.rows(dataset)
        except (ValueError, KeyError):
            raise _error("invalid_argument", "the ticket is not understood") from None
        if not rows.schema.names:
            raise _error("not_found", f"there is no dataset {dataset}", field="dataset")
        if asked["symbols"]:
            rows = _of(rows, asked["symbols"])
        if asked["op"] == "bars":
            rows = rows.filter(pc.equal(rows["interval"], asked["interval"]))
        if asked["op"] == "latest":
            rows = _newest(rows, asked["limit"])
        if asked.get("columns"):
            rows = rows.select(asked["columns"])
        metadata = {METADATA_KEY: json.dumps(self.coverage).encode()}
        return _encoded(rows).replace_schema_metadata(metadata)

    def append(self, title: Title, seq: int, batch: pa.RecordBatch) -> bool:
        """Take a batch as if its producer had sent it; whether it is new.

        Raises:
            FlightServerError: Batches before it are missing.
        """
        with self._lock:
            expected = self._durable.get(title.producer, 0) + 1
            if seq > expected:
                raise _error("sequence", f"batch {expected} was expected", expected=expected)
            if seq < expected:
                return False
            self._batches.append((title, batch))
            self._durable[title.producer] = seq
            self._journal.append(title, seq, batch)
            return True


class _PutStream:
    """One producer's stream: appends in the handler's thread, acks in one of its own."""

    def __init__(
        self,
        server: FakeServer,
        context: flight.ServerCallContext,
        dataset: str,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        self._server = server
        self._context = context
        self._dataset = dataset
        self._writer = writer
        self._over = threading.Event()
        self._silent = False
        self._seq = 0
        self._rows = 0  # taken since the last ack
        self._duplicates = 0
        self._lock = threading.Lock()
        self._acks = threading.Thread(target=self._ack_now_and_then, daemon=True)
        self._acks.start()

    def on_batch(self, chunk: flight.FlightStreamChunk) -> None:
        mark = json.loads(chunk.app_metadata.to_pybytes())
        script = self._server.script
        fate = script.popleft() if script else Fate.TAKE
        if isinstance(fate, flight.FlightError):
            raise fate
        self._silent = fate is not Fate.TAKE
        if fate is not Fate.DROP:
            self._take(Title(mark["producer"], self._dataset), mark["seq"], chunk.data)
        if self._silent:
            raise flight.FlightUnavailableError("the connection was dropped, as the script wants")

    def end(self) -> None:
        """Ack the rest, unless the connection is said to be lost, and stop acking."""
        self._over.set()
        self._acks.join()
        while not self._silent and not self._server.acks.wait(ACK_SECONDS):
            if self._context.is_cancelled():
                return
        if not self._silent:
            self._ack()

    def _take(self, title: Title, seq: int, batch: pa.RecordBatch) -> None:
        with self._lock:
            if not self._server.append(title, seq, batch):
                self._duplicates += batch.num_rows
            self._rows += batch.num_rows
            self._seq = self._server.durable(title.producer)

    def _ack_now_and_then(self) -> None:
        while not self._over.wait(ACK_SECONDS):
            if self._server.acks.is_set() and not self._silent:
                self._ack()

    def _ack(self) -> None:
        with self._lock:
            if not self._rows:
                return
            ack = {"seq": self._seq, "rows": self._rows, "duplicates": self._duplicates}
            self._rows = self._duplicates = 0
        with suppress(pa.ArrowException, flight.FlightError):  # the client has gone
            self._writer.write(pa.py_buffer(json.dumps(ack | {"quarantined": 0}).encode()))


class _Journal:
    """Batches in a file, each fsynced: enough to be killed and come back."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = None if path is None else path.open("ab", buffering=0)

    def append(self, title: Title, seq: int, batch: pa.RecordBatch) -> None:
        if self._file is not None:
            body = pack(batch)
            whose = records.encode_title(title)
            self._file.write(whose + records.encode(Kind.BATCH, body, seq=seq, rows=batch.num_rows))
            os.fsync(self._file.fileno())

    def replay(self) -> list[tuple[Title, int, pa.RecordBatch]]:
        """What the file holds; a torn tail, which nobody was told of, is cut off."""
        if self._path is None:
            return []
        found = []
        title = Title("", "")
        end = 0
        for record in records.scan(memoryview(self._path.read_bytes())):
            if record.kind is Kind.TITLE:
                title = records.decode_title(record)
            else:
                found.append((title, record.seq, unpack(record.body)))
                end = record.offset + record.length
        os.truncate(self._path, end)
        return found


class _Guard(flight.ServerMiddlewareFactory):  # type: ignore[misc] # likewise
    """Lets nobody in without the key."""

    def __init__(self, api_key: str) -> None:
        super().__init__()
        self._wanted = f"Bearer {api_key}"

    def start_call(self, _info: flight.CallInfo, headers: Mapping[str, Sequence[str]]) -> None:
        if list(headers.get("authorization", ())) != [self._wanted]:
            raise flight.FlightUnauthenticatedError("invalid credentials")


def _error(code: str, message: str, **extra: object) -> flight.FlightServerError:
    return flight.FlightServerError(message, json.dumps({"code": code} | extra).encode())


def _of(rows: pa.Table, symbols: Sequence[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows["symbol"], pa.array(symbols, pa.string())))


def _newest(rows: pa.Table, limit: int) -> pa.Table:
    """The last ``limit`` rows of each symbol."""
    tails = []
    for symbol in sorted(set(rows["symbol"].to_pylist())):
        held = _of(rows, [symbol])
        tails.append(held.slice(max(0, held.num_rows - limit)))
    return pa.concat_tables(tails) if tails else rows


def _encoded(rows: pa.Table) -> pa.Table:
    """Low-cardinality strings as dictionaries, as a server sends them."""
    return rows.cast(
        pa.schema(
            one.with_type(pa.dictionary(pa.int32(), pa.string()))
            if one.type == pa.string()
            else one
            for one in rows.schema
        )
    ).combine_chunks()


def main() -> None:
    """Run a server until it is killed; its URI is the first line of stdout."""
    parser = argparse.ArgumentParser(prog="python -m tickflight.testing")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    server = FakeServer(journal=arguments.journal, port=arguments.port)
    print(server.uri, flush=True)  # noqa: T201 - what the caller waits for
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
