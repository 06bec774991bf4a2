"""Repair of ``control.db``: a new one of all rows that are intact; the old one stays beside it.

A key whose row is lost is refused from then on. The number of a lost file must never be given to
another, so numbers go on far behind those that are known.
"""

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flight_server.control import (
    DATABASE_NAME,
    ControlDatabase,
    connect,
    read_pepper,
    store_errors,
    write_new,
)
from flight_server.control_tables import FILES, TABLES, FileRow
from flight_server.errors import ControlStoreError
from flight_server.sealing import Session
from storage.ports import Clock, SystemDisk

NUMBERS_SKIPPED: Final = 1_000_000
"""More than the files that anybody imports; there are two thousand times as many numbers."""

Rows = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has done.

    Attributes:
        evidence: The database as it was.
        kept: Rows that were intact, by table.
        lost: Rows that were not, by table; None where it can't be said how many there were.
    """

    evidence: Path
    kept: Mapping[str, int]
    lost: Mapping[str, int | None]


def repair(directory: Path, clock: Clock) -> Repaired | None:
    """Put ``control.db`` in order; no process may have it open. None: nothing was damaged.

    Raises:
        ControlStoreError: It can't be done; the database is as it was.
    """
    try:
        ControlDatabase(directory).close()
    except ControlStoreError:
        path = directory / DATABASE_NAME
        with store_errors(path):
            pepper = read_pepper(directory)
            rows, lost = _salvaged(path, pepper)
            if not any(rows.values()):
                raise
            kept = {name: len(of_table) for name, of_table in rows.items()}
            if lost[FILES.name] != 0:
                rows = {**rows, FILES.name: [*rows[FILES.name], _marker(rows, clock.now())]}
            return Repaired(_replace(path, pepper, rows, clock.now()), kept, lost)
    return None


def _salvaged(path: Path, pepper: bytes) -> tuple[Rows, Mapping[str, int | None]]:
    rows, lost = {}, {}
    with closing(connect(path)) as connection:
        session = Session(connection, pepper, path)
        for table in TABLES:
            rows[table.name] = table.intact(session)
            sealed = table.sealed_rows(session)
            lost[table.name] = None if sealed is None else sealed - len(rows[table.name])
    return rows, lost


def _marker(rows: Rows, now: int) -> FileRow:
    """Return a row whose number keeps those of lost files from being given out again.

    It is of an import that never came to its end, so nobody looks for its rows.
    """
    known = max((row.number for row in rows[FILES.name]), default=0)
    return FileRow(
        digest=f"lost {now}",
        number=known + NUMBERS_SKIPPED,
        name="lost in a repair",
        dataset="",
        options="{}",
        producer="",
        registered_at=now,
        completed_at=None,
        rows=None,
    )


def _replace(path: Path, pepper: bytes, rows: Rows, now: int) -> Path:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    evidence = path.with_name(f"{path.name}.damaged-{now}")
    try:
        write_new(scratch, pepper, rows)
        # First the log, which SQLite would take for the new file's. It holds nothing that was
        # reported as done, and what else could be read of it is in the new file.
        for suffix in ("-wal", "-shm"):
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                beside.rename(evidence.with_name(evidence.name + suffix))
        evidence.hardlink_to(path)
        scratch.replace(path)
    except (OSError, sqlite3.Error):
        scratch.unlink(missing_ok=True)
        raise
    SystemDisk().sync_directory(path.parent)
    return evidence
