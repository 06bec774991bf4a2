"""How much each key was used, a row a key and day in ``control.db``."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from flight_server.control import ControlDatabase


@final
@dataclass(slots=True)
class Usage:
    """What a key did since it was last written down."""

    key_id: str
    model_id: str
    calls: int = 0
    rows: int = 0
    bytes: int = 0


@final
class UsageTable:
    """The table ``usage`` of ``directory/control.db``; the flight process alone writes it.

    Every method raises ``ControlStoreError`` when the store can't be used.
    """

    def __init__(self, directory: Path) -> None:
        self._database = ControlDatabase(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; calls after it fail."""
        self._database.close()

    def add(self, day: dt.date, used: Iterable[Usage]) -> None:
        """Add what keys did on a day, UTC."""
        rows = [(day.isoformat(), u.key_id, u.model_id, u.calls, u.rows, u.bytes) for u in used]
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO usage (day, key_id, model_id, calls, rows, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key_id, day) DO UPDATE SET"
                " calls = calls + excluded.calls, rows = rows + excluded.rows,"
                " bytes = bytes + excluded.bytes",
                rows,
            )

    def forget(self, before: dt.date) -> None:
        """Remove the rows of days before ``before``."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM usage WHERE day < ?", (before.isoformat(),))

    def totals(self, day: dt.date) -> tuple[Usage, ...]:
        """Return what each model did on a day; ``key_id`` is empty."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT model_id, SUM(calls), SUM(rows), SUM(bytes) FROM usage"
                " WHERE day = ? GROUP BY model_id ORDER BY model_id",
                (day.isoformat(),),
            )
            return tuple(Usage("", *row) for row in rows)

    def last_days(self) -> Mapping[str, dt.date]:
        """Return the last day each key was used, by its id."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT key_id, MAX(day) FROM usage GROUP BY key_id")
            return {key_id: dt.date.fromisoformat(day) for key_id, day in rows}
