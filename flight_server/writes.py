"""DoPut: batches in, durable acks out."""

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict

from pyarrow import flight

from flight_server.batches import checked_size, mark_of, moving
from flight_server.bulk_writes import BulkWrites
from flight_server.calls import Call
from flight_server.errors import InvalidArgumentError
from flight_server.identity import Scope
from flight_server.streams import StreamSlots
from storage.producers import AppendStream
from storage.store import Store


class Writes:
    """Takes the batches of DoPut."""

    def __init__(self, store: Store, slots: StreamSlots) -> None:
        self._store = store
        self._slots = slots
        self._bulk = BulkWrites(store)
        self._writers: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def writing(self) -> set[str]:
        """Return the model ids that have a stream open."""
        with self._lock:
            return {model_id for model_id, _ in self._writers.values()}

    def datasets(self) -> frozenset[str]:
        """Return the datasets that have a stream open."""
        with self._lock:
            return frozenset(dataset for _, dataset in self._writers.values())

    def put(
        self,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
        call: Call,
    ) -> None:
        """Append everything the client sends; returns once all of it is acknowledged.

        Raises:
            RequestError: The caller may not, or what it sends can't be taken.
            StorageError: Likewise.
        """
        call.caller.require(Scope.WRITE)
        slot = self._slots.take(call.caller.key_id)
        call.release = slot.release
        dataset, job = _target_of(descriptor)
        if job is not None:
            self._bulk.put(dataset, job, reader, writer, call, slot)
            return
        stream = self._store.open_stream(dataset, reader.schema)
        with self._lock:
            self._writers[id(stream)] = (call.caller.model_id, dataset)
        try:
            self._pump(stream, moving(reader, slot), writer)
        finally:
            with self._lock:
                del self._writers[id(stream)]
            self._store.close_stream(stream)

    def _pump(
        self,
        stream: AppendStream,
        chunks: Iterable[flight.FlightStreamChunk],
        writer: flight.FlightMetadataWriter,
    ) -> None:
        acks = threading.Thread(target=_send_acks, args=(stream, writer), name="acks", daemon=True)
        acks.start()
        try:
            for chunk in chunks:
                if chunk.data is None:
                    continue
                size = checked_size(chunk)
                self._store.wait_for_memory()
                mark = mark_of(chunk)
                if mark is None:
                    stream.push(chunk.data, size=size)
                else:
                    stream.push(chunk.data, mark.producer, mark.seq, size=size)
        finally:
            # Also when the client has died: what was taken from it is in the store already.
            stream.wait_until_taken()
            stream.end()
            acks.join()
        if stream.error is not None:  # an end without it would say that everything is durable
            raise stream.error


def _send_acks(stream: AppendStream, writer: flight.FlightMetadataWriter) -> None:
    try:
        while (ack := stream.next_ack()) is not None:
            writer.write(json.dumps(asdict(ack)).encode())
    except Exception:  # noqa: BLE001, S110 - the reading side reports; a dead client hears nothing
        pass


def _target_of(descriptor: flight.FlightDescriptor) -> tuple[str, str | None]:
    """Return the dataset that rows are for, and the job where they are to go round memory."""
    if descriptor.descriptor_type is flight.DescriptorType.PATH:
        match [part.decode(errors="replace") for part in descriptor.path or []]:
            case [dataset]:
                return dataset, None
            case [dataset, "bulk", job]:
                return dataset, job
    raise InvalidArgumentError(
        "DoPut takes a path of one part, the dataset: FlightDescriptor.for_path('ticks'), or of"
        " three for old data: ('ticks', 'bulk', 'a name for the job')",
        field="path",
    )
