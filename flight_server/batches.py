"""The batches of DoPut: how large they may be, and what they say of themselves."""

from collections.abc import Iterator
from typing import Final

from pyarrow import flight
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flight_server.errors import InvalidArgumentError, LimitError
from flight_server.streams import Slot

BATCH_ROWS_MAX: Final = 1 << 20
"""Rows a batch: larger ones gain nothing and make an ack wait."""
BATCH_BYTES_MAX: Final = 256 << 20
"""Bytes likewise; pyarrow itself sets no limit to what a client may send."""


class BatchMark(BaseModel):
    """``app_metadata`` of a batch: who numbers it, and its number."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    producer: str = Field(min_length=1, max_length=256)
    seq: int = Field(strict=True, ge=1, lt=1 << 63)


def moving(
    reader: flight.MetadataRecordBatchReader, slot: Slot
) -> Iterator[flight.FlightStreamChunk]:
    """Yield what a client sends, noting its progress."""
    for chunk in reader:
        slot.moved()
        yield chunk


def checked_size(chunk: flight.FlightStreamChunk) -> int:
    """Return the bytes of a batch.

    Raises:
        LimitError: It is too large.
    """
    rows, size = chunk.data.num_rows, int(chunk.data.get_total_buffer_size())
    if rows > BATCH_ROWS_MAX or size > BATCH_BYTES_MAX:
        message = f"a batch of {rows} rows and {size} bytes is too large: split it"
        raise LimitError(f"{message} (at most {BATCH_ROWS_MAX} rows, {BATCH_BYTES_MAX} bytes)")
    return size


def mark_of(chunk: flight.FlightStreamChunk) -> BatchMark | None:
    """Return what a batch says of itself, None where it says nothing.

    Raises:
        InvalidArgumentError: It can't be read.
    """
    if chunk.app_metadata is None:
        return None
    try:
        return BatchMark.model_validate_json(chunk.app_metadata.to_pybytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "app_metadata"
        message = f'app_metadata must be {{"producer": id, "seq": n}}: {field}: {first["msg"]}'
        raise InvalidArgumentError(message, field=field) from None
