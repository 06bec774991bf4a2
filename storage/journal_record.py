"""One record of a journal file: its columns, and the checksum that vouches for them.

A record holds the rows ``[position, position + rows)`` of one dataset. Its body is Arrow IPC:
encapsulated record batch messages of the schema that the file's header names (strings of columnar
datasets as int32 codes), one after another, LZ4-compressed where ``size`` is not 0 (then ``size``
is the uncompressed length). ``strings`` introduces the codes that the file first uses in this
record, ``marks`` says which batch of each producer is now durable.

The first half of the checksum is that of all columns but the body, the second that of the body:
whoever loses the rows of a record still knows which, and goes on reading the strings. Format 1 had
one checksum of all columns.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import pyarrow as pa

CHECKSUM_BYTES: Final = 16
"""Of each half."""
COMPRESS_BYTES_MIN: Final = 4096
"""Below this a body costs more to compress than its pages cost to write."""

Row = tuple[Any, ...]
"""The columns of a record as they are stored."""

_CODEC: Final = pa.Codec("lz4_raw")
_TYPES: Final = (int, str, int, int, int, str, str, int, bytes, bytes)


@dataclass(frozen=True, slots=True)
class Header:
    """What a journal file continues.

    Attributes:
        number: Place in the chain of files, from 1.
        epoch: Life of the server that wrote the file.
        hour: First microsecond of the clock hour whose arrivals the file holds.
        positions: Position of the next row of each dataset.
        marks: Newest durable batch of each producer.
        previous_records: How many records the file before this one ended with.
        schemas: What the records of each dataset look like, as ``schema_text`` writes it; one that
            is not named looks as it does today.
    """

    number: int
    epoch: int
    hour: int
    positions: Mapping[str, int]
    marks: Mapping[str, int]
    previous_records: int
    schemas: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """Some rows of one dataset, and the producers' batches that are durable with them."""

    dataset: str
    position: int
    rows: int
    arrival: int
    marks: Mapping[str, int]
    strings: Mapping[str, list[str]]
    body: bytes | pa.Buffer


class Intact(Enum):
    """How much of a stored record is as it was written."""

    NOTHING = "nothing"
    ALL_BUT_ROWS = "all but its rows"
    ALL = "all"


def schema_text(schema: pa.Schema) -> str:
    """Write a schema so that JSON can carry it."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of(text: str) -> pa.Schema:
    """Read what ``schema_text`` has written."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def intact(file_number: int, row: Row) -> Intact:
    """Return how much of a record of a file is as it was written."""
    if tuple(map(type, row)) != _TYPES:
        return Intact.NOTHING
    *columns, found = row
    if len(found) == CHECKSUM_BYTES:  # format 1
        return Intact.ALL if found == digest(file_number, *columns) else Intact.NOTHING
    expected = _checksum(file_number, tuple(columns))
    if found == expected:
        return Intact.ALL
    same = len(found) == len(expected) and found[:CHECKSUM_BYTES] == expected[:CHECKSUM_BYTES]
    return Intact.ALL_BUT_ROWS if same else Intact.NOTHING


def row_of(file_number: int, number: int, record: Record) -> Row:
    """Return a record as it is stored in a file, under its number there."""
    body: Any = record.body
    size = 0
    if len(body) > COMPRESS_BYTES_MIN:
        size, body = len(body), _CODEC.compress(body)
    columns = (
        number,
        record.dataset,
        record.position,
        record.rows,
        record.arrival,
        json.dumps(dict(record.marks)),
        json.dumps(dict(record.strings)),
        size,
        body,
    )
    return (*columns, _checksum(file_number, columns))


def record_of(row: Row) -> Record:
    """Read a record back that is ``intact``."""
    _, dataset, position, rows, arrival, marks, strings, size, body, _ = row
    if size:
        body = _CODEC.decompress(body, size)
    return Record(dataset, position, rows, arrival, json.loads(marks), json.loads(strings), body)


def without_rows(row: Row) -> Record:
    """Read a record that is intact but for its rows: what it says of everything else."""
    _, dataset, position, _, arrival, marks, strings, *_ = row
    return Record(dataset, position, 0, arrival, json.loads(marks), json.loads(strings), b"")


def digest(*parts: object) -> bytes:
    """Hash parts with their lengths, so that no two lists of parts look alike."""
    state = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        encoded: Any = str(part).encode() if isinstance(part, str | int) else part
        state.update(struct.pack("<q", len(encoded)))
        state.update(encoded)
    return state.digest()


def _checksum(file_number: int, columns: Row) -> bytes:
    """Return the checksum of a record's columns: of all but the body, then of the body."""
    number, *_, body = columns
    return digest(file_number, *columns[:-1]) + digest(file_number, number, "body", body)
