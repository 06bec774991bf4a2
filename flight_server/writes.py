"""DoPut: batches in, durable acks out."""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Final

from pyarrow import flight
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flight_server.calls import Call
from flight_server.errors import InvalidArgumentError, LimitError
from flight_server.identity import Scope
from flight_server.streams import Slot, StreamSlots
from storage.producers import AppendStream
from storage.store import Store

BATCH_ROWS_MAX: Final = 1 << 20
"""Rows a batch: larger ones gain nothing and make an ack wait."""
BATCH_BYTES_MAX: Final = 256 << 20
"""Bytes likewise; pyarrow itself sets no limit to what a client may send."""


class BatchMark(BaseModel):
    """``app_metadata`` of a batch: who numbers it, and its number."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    producer: str = Field(min_length=1, max_length=256)
    seq: int = Field(strict=True, ge=1, lt=1 << 63)


class Writes:
    """Takes the batches of DoPut."""

    def __init__(self, store: Store, slots: StreamSlots) -> None:
        self._store = store
        self._slots = slots
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
        dataset = _dataset_of(descriptor)
        stream = self._store.open_stream(dataset, reader.schema)
        with self._lock:
            self._writers[id(stream)] = (call.caller.model_id, dataset)
        try:
            self._pump(stream, _moving(reader, slot), writer)
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
                size = _checked_size(chunk)
                self._store.wait_for_memory()
                mark = _mark_of(chunk)
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


def _moving(
    reader: flight.MetadataRecordBatchReader, slot: Slot
) -> Iterator[flight.FlightStreamChunk]:
    for chunk in reader:
        slot.moved()
        yield chunk


def _send_acks(stream: AppendStream, writer: flight.FlightMetadataWriter) -> None:
    try:
        while (ack := stream.next_ack()) is not None:
            writer.write(json.dumps(asdict(ack)).encode())
    except Exception:  # noqa: BLE001, S110 - the reading side reports; a dead client hears nothing
        pass


def _dataset_of(descriptor: flight.FlightDescriptor) -> str:
    path = descriptor.path or []
    if descriptor.descriptor_type is not flight.DescriptorType.PATH or len(path) != 1:
        message = "DoPut takes a path of one part, the dataset: FlightDescriptor.for_path('ticks')"
        raise InvalidArgumentError(message, field="path")
    return str(path[0].decode(errors="replace"))


def _checked_size(chunk: flight.FlightStreamChunk) -> int:
    rows, size = chunk.data.num_rows, int(chunk.data.get_total_buffer_size())
    if rows > BATCH_ROWS_MAX or size > BATCH_BYTES_MAX:
        message = f"a batch of {rows} rows and {size} bytes is too large: split it"
        raise LimitError(f"{message} (at most {BATCH_ROWS_MAX} rows, {BATCH_BYTES_MAX} bytes)")
    return size


def _mark_of(chunk: flight.FlightStreamChunk) -> BatchMark | None:
    if chunk.app_metadata is None:
        return None
    try:
        return BatchMark.model_validate_json(chunk.app_metadata.to_pybytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "app_metadata"
        message = f'app_metadata must be {{"producer": id, "seq": n}}: {field}: {first["msg"]}'
        raise InvalidArgumentError(message, field=field) from None
