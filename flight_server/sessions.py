"""Who was sending when the server ended, written down while it runs.

The journal tells what came, not who was still there: a source that is connected and quiet looks in
it like one that has left. So a small file in the data directory names the datasets that have a
stream open. It needs no fsync: it says something of the time until the process ended, and whoever
reads it after a power cut, torn or of an earlier life, takes it for nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import structlog

FILE_NAME: Final = "sessions.json"
_LOG: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """What was open at one moment.

    Attributes:
        epoch: Life of the server.
        alive: When it was last known to run, µs.
        datasets: Those with a stream open.
    """

    epoch: int
    alive: int
    datasets: frozenset[str]


@final
class SessionFile:
    """The file of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._told = False

    def read(self) -> Session | None:
        """Return what the file says; None where it says nothing that can be trusted."""
        try:
            found = json.loads(self._path.read_text())
            datasets = frozenset(map(str, found["datasets"]))
            return Session(int(found["epoch"]), int(found["alive"]), datasets)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, epoch: int, alive: int, datasets: Iterable[str]) -> None:
        """Replace the file; a disk that refuses is told of once, and nothing rests on it."""
        body = {"epoch": epoch, "alive": alive, "datasets": sorted(datasets)}
        new = self._path.with_name(f"{FILE_NAME}.new")
        try:
            new.write_text(json.dumps(body))
            new.replace(self._path)
            self._told = False
        except OSError as error:
            if not self._told:
                _LOG.warning("sessions not noted", reason=str(error))
            self._told = True
