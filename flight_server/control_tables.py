"""The tables of ``control.db``: their rows, and the steps that brought them to where they are."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from flight_server.errors import ControlStoreError
from flight_server.sealing import SEALS_TABLE, SealedTable, Session


class KeyRow(NamedTuple):
    """A key; scopes and symbols are JSON lists, no symbols mean all, instants are µs."""

    id: str
    digest: bytes
    model_id: str
    scopes: str
    symbols: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    calls_per_second: int | None


class FileRow(NamedTuple):
    """An imported file; options are a JSON object, instants are µs."""

    digest: str
    number: int
    name: str
    dataset: str
    options: str
    producer: str
    registered_at: int
    completed_at: int | None
    rows: int | None


class UsageRow(NamedTuple):
    """What a key did on a day, UTC, such as 2026-11-21."""

    key_id: str
    day: str
    model_id: str
    calls: int
    rows: int
    bytes: int


KEYS: Final = SealedTable("keys", KeyRow)
FILES: Final = SealedTable("files", FileRow)
USAGE: Final = SealedTable("usage", UsageRow, key_columns=2)
TABLES: Final[tuple[SealedTable[Any], ...]] = (KEYS, FILES, USAGE)

_BEFORE: Final = "unsealed_"
"""Prefix of the tables that version 3 takes the place of."""


def _seal(session: Session) -> None:
    for table in TABLES:
        columns = ", ".join(table.columns)
        found = session.connection.execute(f"SELECT {columns} FROM {_BEFORE}{table.name}")  # noqa: S608
        table.fill(session, [table.row(values) for values in found])


_MIGRATIONS: Final[tuple[tuple[str | Callable[[Session], None], ...], ...]] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
        """
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            digest BLOB NOT NULL,
            model_id TEXT NOT NULL,
            scopes TEXT NOT NULL,
            symbols TEXT,
            created_at INTEGER NOT NULL,
            expires_at INTEGER,
            revoked_at INTEGER
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE files (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            digest TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            dataset TEXT NOT NULL,
            options TEXT NOT NULL,
            producer TEXT NOT NULL,
            registered_at INTEGER NOT NULL,
            completed_at INTEGER,
            rows INTEGER
        ) STRICT
        """,
    ),
    (
        "ALTER TABLE keys ADD COLUMN calls_per_second INTEGER",
        """
        CREATE TABLE usage (
            day TEXT NOT NULL,
            key_id TEXT NOT NULL,
            model_id TEXT NOT NULL,
            calls INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            PRIMARY KEY (key_id, day)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        *(f"ALTER TABLE {table.name} RENAME TO {_BEFORE}{table.name}" for table in TABLES),
        SEALS_TABLE,
        """
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            digest BLOB NOT NULL,
            model_id TEXT NOT NULL,
            scopes TEXT NOT NULL,
            symbols TEXT,
            created_at INTEGER NOT NULL,
            expires_at INTEGER,
            revoked_at INTEGER,
            calls_per_second INTEGER,
            checksum BLOB NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE files (
            digest TEXT PRIMARY KEY,
            number INTEGER NOT NULL,
            name TEXT NOT NULL,
            dataset TEXT NOT NULL,
            options TEXT NOT NULL,
            producer TEXT NOT NULL,
            registered_at INTEGER NOT NULL,
            completed_at INTEGER,
            rows INTEGER,
            checksum BLOB NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE usage (
            key_id TEXT NOT NULL,
            day TEXT NOT NULL,
            model_id TEXT NOT NULL,
            calls INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            checksum BLOB NOT NULL,
            PRIMARY KEY (key_id, day)
        ) STRICT, WITHOUT ROWID
        """,
        _seal,
        *(f"DROP TABLE {_BEFORE}{table.name}" for table in TABLES),
    ),
)
"""Step n brings a database from ``user_version`` n to n + 1; steps are only ever appended."""


def migrate(session: Session) -> None:
    """Bring a database to this version, inside the caller's transaction.

    Raises:
        ControlStoreError: It is of a later version.
    """
    (version,) = session.connection.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise ControlStoreError(
            f"{session.path} was written by a newer version: upgrade the service"
        )
    for step in _MIGRATIONS[version:]:
        for action in step:
            if callable(action):
                action(session)
            else:
                session.connection.execute(action)
    if version < len(_MIGRATIONS):
        session.connection.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")
