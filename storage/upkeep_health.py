"""How the upkeep of the lake is doing: what is wrong, and since when."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from storage.errors import StorageError, StoreClosedError
from storage.lake.verified import Damage
from storage.lake_verification import LakeVerification
from storage.own_rows import OwnRows
from storage.ports import Clock
from storage.rollover_parts import State
from storage.upkeep_parts import LakeHealth

SERVICE: Final = "lake"
"""Name that troubles are told under in ``service_events``."""
NAMED_MAX: Final = 3
"""Damaged files named in a sentence; ``damaged`` has all."""


class UpkeepHealth:
    """Remembers failures and damage, and tells when the state changes; safe to share.

    Args:
        own_rows: Where it is told.
        verification: What is damaged, and how long ago files were read.
        clock: Where time comes from.
    """

    def __init__(self, own_rows: OwnRows, verification: LakeVerification, clock: Clock) -> None:
        self._own_rows = own_rows
        self._clock = clock
        self._changing = threading.Lock()
        self._since = clock.now()
        self._failures: dict[str, tuple[int, str]] = {}
        self._verification = verification
        self._upkept: int | None = None
        self._told = ""

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Note what becomes of a task."""
        try:
            yield
        except StoreClosedError:
            raise
        except Exception as error:
            said = str(error) if isinstance(error, StorageError) else repr(error)
            with self._changing:
                since, _ = self._failures.get(name, (self._clock.now(), ""))
                self._failures[name] = (since, f"{name} failed: {said}")
            self._tell()
            raise
        with self._changing:
            self._failures.pop(name, None)
        self._tell()

    def note_upkept(self) -> None:
        """Note that the daily tasks are done."""
        with self._changing:
            self._upkept = self._clock.now()

    def status(self) -> LakeHealth:
        """Return how the lake is doing."""
        with self._changing:
            failures = list(self._failures.values())
            since, upkept = self._since, self._upkept
        damage = self._verification.damage
        began = [at for at, _ in failures] + [one.since for one in damage]
        details = [said for _, said in failures]
        if damage:
            details.insert(0, _sentence(damage))
        return LakeHealth(
            state=State.DEGRADED if began else State.RUNNING,
            since=min(began, default=since),
            detail="; ".join(details),
            damaged=damage,
            verified_since=self._verification.since(),
            upkept=upkept,
        )

    def _tell(self) -> None:
        """Tell of a change in ``service_events``."""
        status = self.status()
        with self._changing:
            if status.detail == self._told:
                return
            self._told = status.detail
            if not status.detail:
                self._since = self._clock.now()
        level = "error" if status.detail else "info"
        detail = status.detail or "the lake is in order again"
        try:
            self._own_rows.tell_event(SERVICE, level, status.state.value, detail)
        except StorageError:
            return  # it is in the status all the same


def _sentence(damage: Sequence[Damage]) -> str:
    names = [f"{one.report.dataset}/{one.report.path}" for one in damage[:NAMED_MAX]]
    more = f" and {len(damage) - NAMED_MAX} more" if len(damage) > NAMED_MAX else ""
    files = "file is" if len(damage) == 1 else "files are"
    return (
        f"{len(damage)} {files} damaged ({', '.join(names)}{more}): run `tickflightd lake verify`"
    )
