"""Sealed tables: rows of ``control.db`` that can't change, vanish or appear unnoticed.

SQLite notices torn writes but not flipped bits. So each row carries a checksum over its table and
all its columns, and each table has a seal: how many rows it has and the sum of their checksums.
Both are keyed by the pepper. A row that is found is checked by itself; that there is none, and
what all of them are, is believed only once the whole table agrees with its seal.

Tables keep their rows in the tree of their primary key and have no other index: an index that is
damaged would hide a row that is there.
"""

import hashlib
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar, final

from flight_server.errors import ControlDamagedError

_CHECKSUM_BYTES: Final = 16
_SUMS: Final = 1 << 8 * _CHECKSUM_BYTES
_LENGTH_BYTES: Final = 8

Value: TypeAlias = str | bytes | int | None
RowT = TypeVar("RowT", bound=tuple[Value, ...])

SEALS_TABLE: Final = """
    CREATE TABLE seals (
        name TEXT PRIMARY KEY,     -- of a table
        rows INTEGER NOT NULL,
        sum BLOB NOT NULL,         -- of the checksums of its rows, modulo 2^128
        checksum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID
"""


@final
@dataclass(frozen=True, slots=True)
class Session:
    """One transaction on the control database.

    Attributes:
        connection: Where it runs.
        pepper: What checksums are keyed by.
        path: Of the file, for messages.
    """

    connection: sqlite3.Connection
    pepper: bytes
    path: Path


class _Seal(NamedTuple):
    rows: int
    sum: int


@final
class SealedTable(Generic[RowT]):
    """A table whose every answer is checked.

    All methods raise ``ControlDamagedError`` where the table is not what was written.

    Args:
        name: Of the table.
        row: A named tuple: a field a column, those of the primary key first.
        key_columns: How many columns the primary key has.
    """

    def __init__(self, name: str, row: type[RowT], key_columns: int = 1) -> None:
        self.name = name
        self.columns: tuple[str, ...] = row._fields  # type: ignore[attr-defined]
        self._make = row
        self._key_columns = key_columns
        where = " AND ".join(f"{column} = ?" for column in self.columns[:key_columns])
        marks = ", ".join("?" * (len(self.columns) + 1))
        # Names are constants of this package, never what somebody sent.
        self._all = f"SELECT {', '.join(self.columns)}, checksum FROM {name}"  # noqa: S608
        self._one = f"{self._all} WHERE {where}"
        self._insert = f"INSERT INTO {name} VALUES ({marks})"  # noqa: S608
        self._remove = f"DELETE FROM {name} WHERE {where}"  # noqa: S608

    def row(self, values: Iterable[Value]) -> RowT:
        """Return a row of these values."""
        return self._make(*values)  # type: ignore[arg-type]

    def find(self, session: Session, *key: Value) -> RowT | None:
        """Return the row of a key, if there is one."""
        found = session.connection.execute(self._one, key).fetchone()
        if found is not None:
            return self._checked(session, found)
        if any(row[: self._key_columns] == key for row in self.all(session)):
            self._raise_damaged(session, f"row {key} can't be found by its key")
        return None

    def all(self, session: Session) -> list[RowT]:
        """Return all rows, in the order of their keys."""
        found = session.connection.execute(self._all).fetchall()
        rows = [self._checked(session, one) for one in found]
        total = sum(int.from_bytes(checksum) for *_, checksum in found)
        if self._seal(session) != _Seal(len(rows), total % _SUMS):
            self._raise_damaged(session, "rows are missing, or there more than once")
        return rows

    def insert(self, session: Session, row: RowT) -> None:
        """Write a row whose key is not there."""
        session.connection.execute(self._insert, self._sealed(session, row))
        self._reseal(session, row, 1)

    def replace(self, session: Session, before: RowT, after: RowT) -> None:
        """Write a row in place of one that is there, under the same key."""
        self.remove(session, [before])
        self.insert(session, after)

    def remove(self, session: Session, rows: Iterable[RowT]) -> None:
        """Remove rows that are there."""
        for row in rows:
            session.connection.execute(self._remove, row[: self._key_columns])
            self._reseal(session, row, -1)

    def intact(self, session: Session) -> list[RowT]:
        """Return the rows that can be read and are as they were written, whatever else is not."""
        found: dict[tuple[Value, ...], RowT] = {}
        keys = self.columns[: self._key_columns]
        for direction in ("ASC", "DESC"):  # from both sides of what can't be read
            order = ", ".join(f"{key} {direction}" for key in keys)
            with suppress(sqlite3.Error, UnicodeDecodeError):
                for *values, checksum in session.connection.execute(
                    f"{self._all} ORDER BY {order}"
                ):
                    if checksum == self._checksum(session, values):
                        found[tuple(values[: self._key_columns])] = self.row(values)
        return list(found.values())

    def sealed_rows(self, session: Session) -> int | None:
        """Return how many rows there should be; None where the seal is damaged, too."""
        try:
            return self._seal(session).rows
        except (ControlDamagedError, sqlite3.Error, UnicodeDecodeError):
            return None

    def fill(self, session: Session, rows: Collection[RowT]) -> None:
        """Write the first rows of a table that was just created."""
        sealed = [self._sealed(session, row) for row in rows]
        session.connection.executemany(self._insert, sealed)
        total = sum(int.from_bytes(self._checksum(session, row)) for row in rows)
        self._write_seal(session, _Seal(len(sealed), total % _SUMS))

    def _checked(self, session: Session, found: tuple[Value, ...]) -> RowT:
        *values, checksum = found
        expected = self._checksum(session, values)
        if checksum != expected:
            key = ", ".join(map(repr, values[: self._key_columns]))
            self._raise_damaged(session, f"the checksum of row {key} does not match")
        return self.row(values)

    def _sealed(self, session: Session, row: RowT) -> tuple[Value, ...]:
        return (*row, self._checksum(session, row))

    def _checksum(self, session: Session, values: Iterable[Value]) -> bytes:
        return _digest(session, self.name, *values)

    def _reseal(self, session: Session, row: RowT, times: int) -> None:
        rows, total = self._seal(session)
        change = times * int.from_bytes(self._checksum(session, row))
        self._write_seal(session, _Seal(rows + times, (total + change) % _SUMS))

    def _seal(self, session: Session) -> _Seal:
        query = "SELECT rows, sum, checksum FROM seals WHERE name = ?"
        found = session.connection.execute(query, (self.name,)).fetchone()
        if found is None:
            self._raise_damaged(session, "its seal is missing")
        rows, total, checksum = found
        if checksum != _digest(session, "seals", self.name, rows, total):
            self._raise_damaged(session, "the checksum of its seal does not match")
        return _Seal(rows, int.from_bytes(total))

    def _write_seal(self, session: Session, seal: _Seal) -> None:
        total = seal.sum.to_bytes(_CHECKSUM_BYTES)
        checksum = _digest(session, "seals", self.name, seal.rows, total)
        session.connection.execute(
            "INSERT OR REPLACE INTO seals VALUES (?, ?, ?, ?)",
            (self.name, seal.rows, total, checksum),
        )

    def _raise_damaged(self, session: Session, found: str) -> NoReturn:
        raise ControlDamagedError(session.path, f"table {self.name}: {found}")


def _digest(session: Session, *values: Value) -> bytes:
    checksum = hashlib.blake2b(
        key=session.pepper, digest_size=_CHECKSUM_BYTES, person=b"control.db"
    )
    for value in values:
        kind, text = _encoded(value)
        checksum.update(kind + len(text).to_bytes(_LENGTH_BYTES) + text)
    return checksum.digest()


def _encoded(value: Value) -> tuple[bytes, bytes]:
    match value:
        case None:
            return b"n", b""
        case int():
            return b"i", str(value).encode("ascii")
        case str():
            return b"s", value.encode()
        case _:
            return b"b", value
