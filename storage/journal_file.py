"""One journal file: its SQLite schema, its records and their checksums.

A journal file is an SQLite database in WAL mode with ``synchronous=FULL``: what a commit has
returned survives a power cut. SQLite notices torn writes but not flipped bits (a database page has
no checksum), so every record carries one, over all its columns and the number of its file, and it
is verified on every read.

Tables
    header   one row: what the file continues, as JSON with a checksum
    records  id 1, 2, …; a record holds the rows [position, position + rows) of one dataset
    seal     one row once the file is finished: how many records it has, with a checksum

A record's body is Arrow IPC: encapsulated record batch messages of the dataset's journal schema
(strings of columnar datasets as int32 codes), one after another, LZ4-compressed where ``size`` is
not 0 (then ``size`` is the uncompressed length). ``strings`` introduces the codes that the file
first uses in this record, ``marks`` says which batch of each producer is now durable.
"""

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from storage.errors import JournalCorruptError, JournalError, JournalFullError
from storage.journal_log import LOG_SUFFIX
from storage.ports import MICROSECONDS, Disk

APPLICATION_ID: Final = 0x54464C4A  # "TFLJ"
FORMAT_VERSION: Final = 1
PAGE_BYTES: Final = 8192
"""As fast as 64 KiB in bulk, and a sixth of the bytes when small batches trickle in."""
CACHE_KIBIBYTES: Final = 16_384
CHECKSUM_BYTES: Final = 16
COMPRESS_BYTES_MIN: Final = 4096
"""Below this a body costs more to compress than its pages cost to write."""
BUSY_TIMEOUT_MS: Final = 5_000
SUFFIX: Final = ".journal"

_CODEC: Final = pa.Codec("lz4_raw")
_CREATE: Final = f"""
BEGIN;
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={FORMAT_VERSION};
CREATE TABLE header (content TEXT NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    dataset TEXT NOT NULL,
    position INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    arrival INTEGER NOT NULL,
    marks TEXT NOT NULL,
    strings TEXT NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL,
    checksum BLOB NOT NULL
);
CREATE TABLE seal (records INTEGER NOT NULL, checksum BLOB NOT NULL);
"""
_SEAL: Final = "INSERT INTO seal SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM seal)"
_RECORD_TYPES: Final = (int, str, int, int, int, str, str, int, bytes, bytes)
_INSERT: Final = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


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
    """

    number: int
    epoch: int
    hour: int
    positions: Mapping[str, int]
    marks: Mapping[str, int]
    previous_records: int


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


def file_name(number: int, hour: int) -> str:
    """Return the name of a journal file: its number, then its UTC hour."""
    began = datetime.fromtimestamp(hour // MICROSECONDS, UTC)
    return f"{number:08d}-{began:%Y%m%dT%H}{SUFFIX}"


class JournalWriter:
    """Appends records to one new file. Used by one thread."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.records = 0
        with _mapped_errors(path):
            if path.exists():
                raise JournalError(f"{path} exists already; a journal file is never continued")
            self._connection = connect(path)
            try:
                self._create()
            except sqlite3.Error:
                self._connection.close()
                raise

    def _create(self) -> None:
        """Make tables and header in one transaction: a file has all of them or none."""
        self._connection.executescript(_CREATE)
        content = json.dumps(asdict(self.header))
        checksum = _digest(self.header.number, content)
        self._connection.execute("INSERT INTO header VALUES (?, ?)", (content, checksum))
        self._connection.execute("COMMIT")

    def commit(self, records: list[Record]) -> None:
        """Write records in one transaction; durable once this returns.

        Raises:
            JournalError: Nothing of it is kept.
        """
        rows = [self._row(self.records + n, r) for n, r in enumerate(records, start=1)]
        with _mapped_errors(self.path):
            self._connection.execute("BEGIN")
            try:
                self._connection.executemany(_INSERT, rows)
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self.records += len(records)

    def seal(self) -> None:
        """Write down how many records there are, fold the log into the file and close it.

        Raises:
            JournalError: It is as it was, or has its seal; sealing it again is fine.
        """
        with _mapped_errors(self.path):
            checksum = _digest(self.header.number, "seal", self.records)
            self._connection.execute(_SEAL, (self.records, checksum))
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.close()

    def _row(self, number: int, record: Record) -> tuple[object, ...]:
        body: Any = record.body
        size = 0
        if len(body) > COMPRESS_BYTES_MIN:
            size, body = len(body), _CODEC.compress(body)
        columns = (
            record.dataset,
            record.position,
            record.rows,
            record.arrival,
            json.dumps(dict(record.marks)),
            json.dumps(dict(record.strings)),
            size,
            body,
        )
        return (number, *columns, _digest(self.header.number, number, *columns))


class JournalReader:
    """Reads one file from start to end, and trusts nothing it has not verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _mapped_errors(path), closing(_connect_to_read(path)) as connection:
            self._check_format(connection)
            found = connection.execute("SELECT content, checksum FROM header").fetchall()
            sealed = connection.execute("SELECT records, checksum FROM seal").fetchall()
        self.header = self._header(found)
        self._sealed = self._seal(sealed)

    def records(self) -> Iterator[Record]:
        """Yield the records in order.

        Raises:
            JournalCorruptError: A record is not what was written; the records before it were.
        """
        with _mapped_errors(self.path), closing(_connect_to_read(self.path)) as connection:
            expected = 1
            for row in connection.execute("SELECT * FROM records ORDER BY id"):
                if row[0] != expected:
                    raise JournalCorruptError(self.path, expected, "the record is missing")
                yield self._record(row)
                expected += 1
        if self._sealed not in (None, expected - 1):
            detail = f"the record is missing: the file was sealed with {self._sealed}"
            raise JournalCorruptError(self.path, expected, detail)

    def _check_format(self, connection: sqlite3.Connection) -> None:
        for pragma, expected in (
            ("application_id", APPLICATION_ID),
            ("user_version", FORMAT_VERSION),
        ):
            (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if value != expected:
                detail = f"not a journal of format {FORMAT_VERSION} ({pragma} is {value})"
                raise JournalCorruptError(self.path, None, detail)

    def _header(self, found: list[tuple[str, bytes]]) -> Header:
        if len(found) != 1:
            raise JournalCorruptError(self.path, None, "the header is missing")
        content, checksum = found[0]
        try:
            header = Header(**json.loads(content))
        except (TypeError, ValueError) as error:
            raise JournalCorruptError(self.path, None, "the header is unreadable") from error
        if _digest(header.number, content) != checksum:
            raise JournalCorruptError(self.path, None, "the header's checksum is wrong")
        return header

    def _seal(self, found: list[tuple[int, bytes]]) -> int | None:
        """Return how many records a finished file has; None while it is being written."""
        if not found:
            return None
        records, checksum = found[0]
        if type(records) is not int or _digest(self.header.number, "seal", records) != checksum:
            raise JournalCorruptError(self.path, None, "the seal's checksum is wrong")
        return records

    def _record(self, row: tuple[Any, ...]) -> Record:
        number, *columns, checksum = row
        if tuple(map(type, row)) != _RECORD_TYPES:
            raise JournalCorruptError(self.path, number, "a column is of another type")
        if _digest(self.header.number, number, *columns) != checksum:
            raise JournalCorruptError(self.path, number, "the checksum is wrong")
        dataset, position, rows, arrival, marks, strings, size, body = columns
        if size:
            body = _CODEC.decompress(body, size)
        return Record(
            dataset, position, rows, arrival, json.loads(marks), json.loads(strings), body
        )


def connect(path: Path) -> sqlite3.Connection:
    """Open a journal file as every reader and writer of it must, and check that it took.

    Raises:
        JournalError: SQLite refused one of the settings that durability rests on.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2)):
        (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if value != expected:
            connection.close()
            raise JournalError(f"{path}: SQLite runs with {pragma}={value}, not {expected}")
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    # Text that is no UTF-8 any more must reach its checksum.
    connection.text_factory = lambda data: data.decode(errors="replace")
    return connection


def is_unfinished(path: Path) -> bool:
    """Whether a file was cut off while it was made, before its header: then it holds nothing.

    Raises:
        JournalCorruptError: The file is not an SQLite database at all, or has lost its tables.
    """
    with _mapped_errors(path):
        used = path.stat().st_size > PAGE_BYTES
        with closing(connect(path)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if used and tables == 0:
        raise JournalCorruptError(path, None, "its tables are missing")
    return bool(tables == 0)


def remove(path: Path, disk: Disk) -> None:
    """Delete a journal file with all that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        disk.remove(path.with_name(path.name + suffix))
    disk.sync_directory(path.parent)


def fold(path: Path, disk: Disk) -> None:
    """Fold the log that a killed life has left into its file.

    The kill may have come before the sync, so what can be read is not durable yet. Closing the file
    would do this too, but keep quiet when it fails.

    Raises:
        JournalError: The disk refuses, so nothing in the log may be acknowledged again.
    """
    if disk.size(path.with_name(path.name + LOG_SUFFIX)) == 0:
        return
    with _mapped_errors(path), closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def checkpoint(path: Path) -> None:
    """Copy what is committed from the write-ahead log into the file, blocking nobody."""
    with _mapped_errors(path), closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _digest(*parts: object) -> bytes:
    """Hash parts with their lengths, so that no two lists of parts look alike."""
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        encoded: Any = str(part).encode() if isinstance(part, str | int) else part
        digest.update(struct.pack("<q", len(encoded)))
        digest.update(encoded)
    return digest.digest()


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Absent from errors that Python itself finds, such as text it can't decode.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code == sqlite3.SQLITE_FULL:
            raise JournalFullError(f"{path}: the disk is full") from error
        # Our own statements are right, so SQLite can only stumble over what it finds in the file.
        if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
            raise JournalError(f"{path}: {error}") from error
        raise JournalCorruptError(path, None, str(error)) from error
    except UnicodeDecodeError as error:  # a column's name, which no text factory sees
        raise JournalCorruptError(path, None, str(error)) from error
    except OSError as error:
        raise JournalError(f"{path}: {error}") from error
