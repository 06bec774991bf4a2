"""DoPut of old data: batches in, and an ack for each part of them that the lake has."""

import json
import threading
from dataclasses import asdict
from typing import Final

from pyarrow import flight

from flight_server.batches import checked_size, mark_of, moving
from flight_server.calls import CANCELLED, Call
from flight_server.errors import BusyError, InvalidArgumentError, LakeFailedError
from flight_server.streams import Slot
from storage.bulk import BulkStream
from storage.errors import JournalError, LakeCorruptError, LakeError
from storage.store import Store

JOBS_MAX: Final = 4
"""Jobs at once: their parts go into the lake one after another, and each spools to disk."""


class BulkWrites:
    """Takes the batches of jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = threading.BoundedSemaphore(JOBS_MAX)

    def put(
        self,
        dataset: str,
        job: str,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
        call: Call,
        slot: Slot,
    ) -> None:
        """Bring everything the client sends into the lake; returns once it is there.

        Acks have the form of the ordinary ones. What a client has sent when it dies is forgotten,
        but for the parts that were acknowledged.

        Raises:
            RequestError: The caller may not, what it sends can't be taken, or the disk refuses.
            StorageError: Likewise.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{JOBS_MAX} jobs are running; send this one later")
        try:
            stream = self._store.open_bulk(dataset, job, reader.schema)
            try:
                self._pump(stream, job, reader, writer, call, slot)
            finally:
                stream.close()
        except LakeCorruptError:
            raise
        except (LakeError, JournalError) as error:
            message = f"the lake can't take it: {error}; what was not acknowledged is to be resent"
            raise LakeFailedError(message) from error
        finally:
            self._places.release()

    def _pump(
        self,
        stream: BulkStream,
        job: str,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
        call: Call,
        slot: Slot,
    ) -> None:
        for chunk in moving(reader, slot):
            if chunk.data is None:
                continue
            checked_size(chunk)
            stream.push(chunk.data, _seq_of(chunk, job))
            if stream.is_full:
                writer.write(_ack(stream))
        if call.is_cancelled():
            call.outcome = CANCELLED
            return
        writer.write(_ack(stream))


def _seq_of(chunk: flight.FlightStreamChunk, job: str) -> int | None:
    mark = mark_of(chunk)
    if mark is not None and mark.producer != job:
        message = f"the batches of job {job!r} carry its name as their producer"
        raise InvalidArgumentError(message, field="producer")
    return None if mark is None else mark.seq


def _ack(stream: BulkStream) -> bytes:
    return json.dumps(asdict(stream.commit())).encode()
