"""How a spool file is written: records that prove themselves. Bytes in, records out; no I/O.

A record is

    magic 4 · kind 1 · zero 3 · seq 8 · rows 4 · length 4 · crc32 of all before 4
    body, ``length`` bytes
    blake2b of header and body 16 · end mark 4

little endian. The first record of a file is its title (JSON: format, producer, dataset), all others
are batches (an Arrow IPC stream of one record batch). The header has a checksum of its own, so
that a flipped bit in ``length`` can't send the reader anywhere; the end mark is never zero, so that
a tail which the file system filled with zeros is told from a record that ends in them.

A crash may leave the last record unfinished: the file ends, or turns to zeros for good, before the
record does. That tail is *torn*: it was never counted, and is cut off. Anything else that does not
check is *corrupt* and is reported, the last record included.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Final

FORMAT: Final = 1
_MAGIC: Final = b"TFsp"
_END: Final = b"sp.\n"
_FIELDS: Final = struct.Struct("<4sB3xQII")
_CRC: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _FIELDS.size + _CRC.size
_DIGEST_BYTES: Final = 16
OVERHEAD_BYTES: Final = _HEADER_BYTES + _DIGEST_BYTES + len(_END)
"""What a record needs besides its body."""


class Kind(IntEnum):
    """What a record holds."""

    TITLE = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Title:
    """Whose batches a file holds."""

    producer: str
    dataset: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record that checked: ``length`` bytes at ``offset``, ``body`` a view into what was read."""

    kind: Kind
    seq: int
    rows: int
    offset: int
    length: int
    body: memoryview


class CorruptError(Exception):
    """A record is not what was written."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.offset = offset
        self.detail = detail


def encode(kind: Kind, body: bytes | memoryview, *, seq: int = 0, rows: int = 0) -> bytes:
    """A record as bytes."""
    fields = _FIELDS.pack(_MAGIC, kind, seq, rows, len(body))
    header = fields + _CRC.pack(zlib.crc32(fields))
    digest = blake2b(header, digest_size=_DIGEST_BYTES)
    digest.update(body)
    return b"".join((header, body, digest.digest(), _END))


def encode_title(title: Title) -> bytes:
    """The first record of a file."""
    content = {"format": FORMAT, "producer": title.producer, "dataset": title.dataset}
    return encode(Kind.TITLE, json.dumps(content).encode())


def decode_title(record: Record) -> Title:
    """Whose batches follow.

    Raises:
        CorruptError: the record is no title, or of a format this version does not know.
    """
    try:
        content = json.loads(bytes(record.body))
        if record.kind is Kind.TITLE and content["format"] == FORMAT:
            return Title(content["producer"], content["dataset"])
    except (ValueError, KeyError, TypeError):
        pass
    raise CorruptError(record.offset, "it does not begin with a title this version can read")


def decode(data: memoryview, offset: int, written: int) -> Record | None:
    """The record at ``offset`` of data whose bytes from ``written`` on are all zero.

    Returns:
        The record, or None where it is torn.

    Raises:
        CorruptError: it is whole and does not check.
    """
    body_at = offset + _HEADER_BYTES
    if written < body_at:
        return None
    fields = data[offset : offset + _FIELDS.size]
    magic, kind, seq, rows, length = _FIELDS.unpack(fields)
    if _CRC.unpack_from(data, offset + _FIELDS.size) != (zlib.crc32(fields),):
        raise CorruptError(offset, "the header of a record does not match its checksum")
    digest_at = body_at + length
    end_at = digest_at + _DIGEST_BYTES
    if written < end_at + len(_END):
        return None
    digest = blake2b(data[offset:digest_at], digest_size=_DIGEST_BYTES).digest()
    if bytes(data[digest_at : end_at + len(_END)]) != digest + _END:
        raise CorruptError(offset, "the body of a record does not match its checksum")
    if magic != _MAGIC or kind not in (Kind.TITLE, Kind.BATCH):
        raise CorruptError(offset, "a record is of a kind this version does not know")
    length_in_all = length + OVERHEAD_BYTES
    return Record(Kind(kind), seq, rows, offset, length_in_all, data[body_at:digest_at])


def scan(data: memoryview) -> Iterator[Record]:
    """All records of a file, in order, up to a torn tail.

    Raises:
        CorruptError: from the iterator, when it comes to a record that does not check.
    """
    written = len(bytes(data).rstrip(b"\0"))
    offset = 0
    while offset < len(data):
        record = decode(data, offset, written)
        if record is None:
            return
        yield record
        offset += record.length
