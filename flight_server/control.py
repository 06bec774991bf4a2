"""The control directory: ``control.db``, which several processes write, and ``control.pepper``.

The database is SQLite in WAL mode with ``synchronous=FULL``, so what was reported as done survives
a power cut. The pepper is the secret that key digests are made with; it lives in a file of its own
so that a copy of the database alone can't be used to test guesses. The two belong together: the
database remembers a digest of its pepper and is not opened with another.

Both come into being complete: they are written under a temporary name and linked to the final
one, so of several processes starting at once one wins and none sees a half-made file.
"""

import hashlib
import hmac
import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

from flight_server.control_tables import TABLES, migrate
from flight_server.errors import ControlDamagedError, ControlStoreError
from flight_server.sealing import Session
from storage.ports import SystemDisk

DATABASE_NAME: Final = "control.db"
PEPPER_NAME: Final = "control.pepper"
_PEPPER_BYTES: Final = 32
_PRIVATE_MODE: Final = 0o600
_BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long to wait for another process's write; ours take milliseconds, a stalled disk seconds."""

_UNUSABLE: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_MISUSE,
)
"""What SQLite says of a disk or a lock. Our statements are fixed, so anything else it objects to
(a column, a constraint, a page) was there once and is no more."""
_PRIMARY_CODE: Final = 0xFF
"""The bits of an error code of SQLite that are not details."""


@final
class ControlDatabase:
    """An open ``control.db``, shared by the threads of a process.

    Reads and writes have a connection each, so a read never waits for a write. Whatever SQLite
    or the file system raises becomes ``ControlStoreError``.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / DATABASE_NAME
        self._read_lock = threading.Lock()
        self._write_lock = threading.Lock()
        with store_errors(self._path), ExitStack() as undo:
            SystemDisk().make_directory(directory)
            if not self._path.exists():
                _create(directory)
            self.pepper = read_pepper(directory)
            self._reader = undo.enter_context(closing(connect(self._path)))
            self._writer = undo.enter_context(closing(connect(self._path)))
            self._inode = self._path.stat().st_ino
            self._prepare()
            undo.pop_all()

    def close(self) -> None:
        """Close both connections; calls after it fail."""
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Read: all of it as it was at one moment, held alone until the block ends."""
        with self._read_lock, store_errors(self._path), _transaction(self._reader, "DEFERRED"):
            yield self._session(self._reader)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A write transaction: durable when the block ends, undone if the block raises.

        What is reported as done is folded into the file itself: a log that is damaged is cut off
        where the damage begins, and what it held, such as a revocation, would be forgotten.
        """
        with self._write_lock, store_errors(self._path):
            with _transaction(self._writer, "IMMEDIATE"):
                yield self._session(self._writer)
            _fold(self._writer)

    def require_same_file(self) -> None:
        """Raise unless the open file is still the one that other processes would open.

        SQLite keeps reading a deleted file without a word, and would never see a revocation.
        """
        with store_errors(self._path):
            if self._path.stat().st_ino != self._inode:
                raise ControlStoreError(
                    f"{self._path} was replaced while in use: restart the service"
                )

    def changes(self) -> int:
        """Return a number that changes when another connection has written something."""
        with self._read_lock, store_errors(self._path):
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            return int(version)

    def _session(self, connection: sqlite3.Connection) -> Session:
        return Session(connection, self.pepper, self._path)

    def _prepare(self) -> None:
        _require_sound(self._reader, self._path)
        with _transaction(self._writer, "IMMEDIATE"):
            _require_pepper(self._writer, self._path, self.pepper)
            migrate(self._session(self._writer))
        _fold(self._writer)
        with self.read() as session:
            for table in TABLES:
                table.all(session)


def _create(directory: Path) -> None:
    """Make the pair; either file may appear at any moment by another process's hand."""
    with suppress(FileExistsError):
        _publish(directory / PEPPER_NAME, secrets.token_bytes(_PEPPER_BYTES))
    pepper = read_pepper(directory)
    scratch = directory / f".{DATABASE_NAME}.{secrets.token_hex(8)}"
    try:
        write_new(scratch, pepper, {})
        with suppress(FileExistsError):
            _link(scratch, directory / DATABASE_NAME)
    finally:
        scratch.unlink(missing_ok=True)


def write_new(path: Path, pepper: bytes, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write a whole database to a new file, durable but for its name; ``rows`` by table."""
    _write_private(path, b"")
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()  # it is committed at the end
        with _transaction(connection, "IMMEDIATE"):
            session = Session(connection, pepper, path)
            migrate(session)
            for table in TABLES:
                table.fill(session, rows.get(table.name, ()))
            check = ("pepper_check", _check_of(pepper))
            connection.execute("INSERT INTO meta VALUES (?, ?)", check)
        _fold(connection)


def connect(path: Path) -> sqlite3.Connection:
    """Open the database as every reader and writer of it must."""
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous=FULL")
    # What was deleted is overwritten: a damaged pointer must not lead to what a row was before.
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def _require_sound(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ControlDamagedError(path, verdict)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        raise ControlDamagedError(path, f"it is in journal mode {mode}, not WAL")


def _require_pepper(connection: sqlite3.Connection, path: Path, pepper: bytes) -> None:
    row = connection.execute("SELECT value FROM meta WHERE name = 'pepper_check'").fetchone()
    if row is None or not hmac.compare_digest(row[0], _check_of(pepper)):
        raise ControlStoreError(
            f"{path} and {PEPPER_NAME} don't belong together: restore both from the same backup"
        )


def _check_of(pepper: bytes) -> bytes:
    return hashlib.blake2b(b"pepper check", key=pepper, digest_size=32).digest()


def read_pepper(directory: Path) -> bytes:
    """Return the pepper, which must be whole and ours alone."""
    path = directory / PEPPER_NAME
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pepper = file.read(_PEPPER_BYTES + 1)
    except FileNotFoundError as error:
        raise ControlStoreError(
            f"{path} is missing, and no key can be checked without it: restore it from a backup"
        ) from error
    if mode & 0o077:
        raise ControlStoreError(f"{path} has mode {mode:04o}, open to others: chmod 600 it")
    if len(pepper) != _PEPPER_BYTES:
        raise ControlStoreError(f"{path} is not a pepper: restore it from a backup")
    return pepper


def _publish(path: Path, content: bytes) -> None:
    """Give ``path`` its content all at once, or raise ``FileExistsError``."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _write_private(scratch, content)
    try:
        _link(scratch, path)
    finally:
        scratch.unlink()


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(scratch: Path, path: Path) -> None:
    path.hardlink_to(scratch)
    SystemDisk().sync_directory(path.parent)


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _fold(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite or the file system raises into ``ControlStoreError``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
        if code & _PRIMARY_CODE in _UNUSABLE:
            raise ControlStoreError(_unusable(path, error)) from error
        raise ControlDamagedError(path, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite quotes what it finds
        raise ControlDamagedError(path, "it holds text that is none") from error
    except OSError as error:
        raise ControlStoreError(_unusable(path, error)) from error


def _unusable(path: Path, error: Exception) -> str:
    return f"{path} can't be used: {error}; see that the disk has room and the service owns it"
