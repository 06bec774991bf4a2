"""How much each key was used, a row a key and day in ``control.db``."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from flight_server.control import ControlDatabase
from flight_server.control_tables import USAGE, UsageRow


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
        with self._database.write() as session:
            for one in used:
                row = UsageRow(
                    one.key_id, day.isoformat(), one.model_id, one.calls, one.rows, one.bytes
                )
                known = USAGE.find(session, one.key_id, row.day)
                if known is None:
                    USAGE.insert(session, row)
                else:
                    USAGE.replace(session, known, _sum(known, row))

    def forget(self, before: dt.date) -> None:
        """Remove the rows of days before ``before``."""
        with self._database.write() as session:
            old = [row for row in USAGE.all(session) if row.day < before.isoformat()]
            USAGE.remove(session, old)

    def totals(self, day: dt.date) -> tuple[Usage, ...]:
        """Return what each model did on a day; ``key_id`` is empty."""
        totals: dict[str, Usage] = {}
        for row in self._rows():
            if row.day == day.isoformat():
                total = totals.setdefault(row.model_id, Usage("", row.model_id))
                total.calls += row.calls
                total.rows += row.rows
                total.bytes += row.bytes
        return tuple(totals[model_id] for model_id in sorted(totals))

    def last_days(self) -> Mapping[str, dt.date]:
        """Return the last day each key was used, by its id."""
        # The days of a key come in order.
        return {row.key_id: dt.date.fromisoformat(row.day) for row in self._rows()}

    def _rows(self) -> list[UsageRow]:
        with self._database.read() as session:
            return USAGE.all(session)


def _sum(known: UsageRow, more: UsageRow) -> UsageRow:
    return known._replace(
        calls=known.calls + more.calls,
        rows=known.rows + more.rows,
        bytes=known.bytes + more.bytes,
    )
