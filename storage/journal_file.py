"""One journal file: its SQLite schema, its records and their checksums.

A journal file is an SQLite database in WAL mode with ``synchronous=FULL``: what a commit has
returned survives a power cut. SQLite notices torn writes but not flipped bits (a database page has
no checksum), so every record carries one, over all its columns and the number of its file, and it
is verified on every read.

Tables
    header   one row: what the file continues, as JSON with a checksum
    records  id 1, 2, …; see ``journal_record``
    seal     one row once the file is finished: how many records it has, with a checksum
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final

from storage.errors import JournalCorruptError, JournalError, JournalFullError
from storage.journal_log import LOG_SUFFIX
from storage.journal_pages import PAGE_BYTES, place_of
from storage.journal_record import Header, Intact, Record, Row, digest, intact, record_of, row_of
from storage.ports import MICROSECONDS, Disk

__all__ = [
    "Access",
    "Header",
    "JournalReader",
    "JournalWriter",
    "Record",
    "checkpoint",
    "connect",
    "file_name",
    "fold",
    "is_unfinished",
    "remove",
]

APPLICATION_ID: Final = 0x54464C4A  # "TFLJ"
FORMAT_VERSION: Final = 2
FORMAT_VERSIONS_READ: Final = (1, 2)
"""Format 1 did not say what its records look like, and could not tell a lost body from the rest."""
CACHE_KIBIBYTES: Final = 16_384
BUSY_TIMEOUT_MS: Final = 5_000
READ_RECORDS: Final = 16
"""Records read at a time: some 160 MB of them at most."""
SUFFIX: Final = ".journal"
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""What SQLite says when the disk has no room, the second for what processes share of a log. That
is never synced, so trying it again is as good as the first time."""

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
_SELECT: Final = "SELECT * FROM records WHERE id > ? ORDER BY id LIMIT ?"
_STRINGS: Final = (
    "SELECT strings FROM records WHERE id <= ? AND dataset = ? AND strings <> '{}' ORDER BY id"
)
_INSERT: Final = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def file_name(number: int, hour: int) -> str:
    """Return the name of a journal file: its number, then its UTC hour."""
    began = datetime.fromtimestamp(hour // MICROSECONDS, UTC)
    return f"{number:08d}-{began:%Y%m%dT%H}{SUFFIX}"


class Access(Enum):
    """How a reader opens a file."""

    OWN = "own"
    """As its only user, before anything is written."""
    BESIDE = "beside"
    """As a guest who changes nothing, whether or not a server writes to it."""


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
        checksum = digest(self.header.number, content)
        self._connection.execute("INSERT INTO header VALUES (?, ?)", (content, checksum))
        self._connection.execute("COMMIT")

    def commit(self, records: list[Record]) -> None:
        """Write records in one transaction; durable once this returns.

        Raises:
            JournalError: Nothing of it is kept.
        """
        rows = [
            row_of(self.header.number, self.records + n, record)
            for n, record in enumerate(records, start=1)
        ]
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
            checksum = digest(self.header.number, "seal", self.records)
            self._connection.execute(_SEAL, (self.records, checksum))
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.close()

    def close(self) -> None:
        """Close the file as it is; again is fine."""
        self._connection.close()


class JournalReader:
    """Reads one file from start to end, and trusts nothing it has not verified."""

    def __init__(self, path: Path, access: Access = Access.OWN) -> None:
        self.path = path
        self._access = access
        with _mapped_errors(path), closing(_connect_to_read(path, access)) as connection:
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
        expected = 1
        for rows in self._pages():
            for row in rows:
                if row[0] != expected:
                    raise self._corrupt(expected, "the record is missing")
                if (state := intact(self.header.number, row)) is not Intact.ALL:
                    whose = "the checksum" if state is Intact.NOTHING else "its rows' checksum"
                    raise self._corrupt(expected, f"{whose} is wrong")
                yield record_of(row)
                expected += 1
        if self._sealed not in (None, expected - 1):
            detail = f"the record is missing: the file was sealed with {self._sealed}"
            raise JournalCorruptError(self.path, expected, detail)

    def _pages(self) -> Iterator[list[Row]]:
        """Yield some records at a time; between them the file can be folded and sealed."""
        with (
            _mapped_errors(self.path),
            closing(_connect_to_read(self.path, self._access)) as connection,
        ):
            last = 0
            while rows := connection.execute(_SELECT, (last, READ_RECORDS)).fetchall():
                yield rows
                last = max(last + 1, rows[-1][0])

    def _corrupt(self, record: int, detail: str) -> JournalCorruptError:
        place = place_of(self.path, record)
        if place is None:
            return JournalCorruptError(self.path, record, detail)
        where = "" if place.path == self.path else f" (in its log {place.path.name})"
        return JournalCorruptError(self.path, record, detail + where, offset=place.offset)

    def record(self, number: int) -> Record:
        """Return one record, with all strings of its dataset that the file knows by then.

        Raises:
            JournalCorruptError: It is not what was written.
            JournalError: The file can't be read.
        """
        with (
            _mapped_errors(self.path),
            closing(_connect_to_read(self.path, self._access)) as connection,
        ):
            row = connection.execute(_SELECT, (number - 1, 1)).fetchone()
            if row is None or row[0] != number:
                raise self._corrupt(number, "the record is missing")
            if intact(self.header.number, row) is not Intact.ALL:
                raise self._corrupt(number, "the checksum is wrong")
            record = record_of(row)
            strings: dict[str, list[str]] = {}
            for (told,) in connection.execute(_STRINGS, (number, record.dataset)):
                for column, values in json.loads(told).items():
                    strings.setdefault(column, []).extend(values)
        return replace(record, strings=strings)

    def newest(self) -> tuple[int, int]:
        """Return the number of the last record, and when it arrived, µs; 0 for both without one.

        Raises:
            JournalError: The file can't be read.
        """
        with (
            _mapped_errors(self.path),
            closing(_connect_to_read(self.path, self._access)) as connection,
        ):
            found = connection.execute("SELECT id, arrival FROM records ORDER BY id DESC LIMIT 1")
            number, arrival = found.fetchone() or (0, 0)
        return number, arrival

    def _check_format(self, connection: sqlite3.Connection) -> None:
        for pragma, known in (
            ("application_id", (APPLICATION_ID,)),
            ("user_version", FORMAT_VERSIONS_READ),
        ):
            (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if value not in known:
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
        if digest(header.number, content) != checksum:
            raise JournalCorruptError(self.path, None, "the header's checksum is wrong")
        return header

    def _seal(self, found: list[tuple[int, bytes]]) -> int | None:
        """Return how many records a finished file has; None while it is being written."""
        if not found:
            return None
        records, checksum = found[0]
        if type(records) is not int or digest(self.header.number, "seal", records) != checksum:
            raise JournalCorruptError(self.path, None, "the seal's checksum is wrong")
        return records


def connect(path: Path) -> sqlite3.Connection:
    """Open a journal file as every reader and writer of it must, and check that it took.

    Raises:
        JournalError: SQLite refused one of the settings that durability rests on.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    # Read to its end: the change is committed after the answer, and a commit that fails then would
    # leave the file without a write-ahead log, whatever SQLite says when it is asked.
    try:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
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


def _connect_to_read(path: Path, access: Access) -> sqlite3.Connection:
    connection = connect(path) if access is Access.OWN else _connect_beside(path)
    # Text that is no UTF-8 any more must reach its checksum.
    connection.text_factory = lambda data: data.decode(errors="replace")
    return connection


def _connect_beside(path: Path) -> sqlite3.Connection:
    """Open a file read-only: who may write folds the log when it closes, and makes files beside."""
    log = path.with_name(path.name + LOG_SUFFIX)
    alone = not log.exists() or not log.stat().st_size
    # Without a log nothing writes to the file, or it is about to and begins with a log.
    mode = "mode=ro&immutable=1" if alone else "mode=ro"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None
    )
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    return connection


def is_unfinished(path: Path, access: Access = Access.OWN) -> bool:
    """Whether a file was cut off while it was made, before its header: then it holds nothing.

    Raises:
        JournalCorruptError: The file is not an SQLite database at all, or has lost its tables.
    """
    with _mapped_errors(path):
        used = path.stat().st_size > PAGE_BYTES
        with closing(_connect_to_read(path, access)) as connection:
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


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Absent from errors that Python itself finds, such as text it can't decode.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code in _FULL:
            raise JournalFullError(f"{path}: the disk is full") from error
        # Our own statements are right, so SQLite can only stumble over what it finds in the file.
        if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
            raise JournalError(f"{path}: {error}") from error
        raise JournalCorruptError(path, None, str(error)) from error
    except UnicodeDecodeError as error:  # a column's name, which no text factory sees
        raise JournalCorruptError(path, None, str(error)) from error
    except OSError as error:
        raise JournalError(f"{path}: {error}") from error
