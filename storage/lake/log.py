"""The log of a Delta table as files: which entries there are, and that they are durable.

Format: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Delta Log Entries". Only files
that delta-rs has written are read here, and none is written but as a copy of itself.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.errors import LakeCorruptError
from storage.ports import Disk

LOG: Final = "_delta_log"
METADATA: Final = "tickflight"
"""Key in a commit's metadata of what we say about it."""

CHECKPOINTS_KEPT: Final = 2
"""Newest checkpoints that stay: somebody may be reading the one before the newest."""

_ENTRY: Final = re.compile(r"(\d{20})\.json")
_LAST_CHECKPOINT: Final = "_last_checkpoint"
_CHECKPOINT: Final = ".checkpoint"
_ACTIONS: Final = ("add", "remove", "txn")


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit, as its log entry tells of it.

    Attributes:
        version: Of the table, after it.
        committed: When, µs.
        about: What we said about it; nothing where it is not of ours.
        removed: Paths of the files it took out.
    """

    version: int
    committed: int
    about: Mapping[str, Any]
    removed: tuple[str, ...]


class Log:
    """The log of the table at ``root``, which may have none yet."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._directory = root / LOG
        self._disk = disk
        self._durable = -1

    def newest(self) -> int:
        """Return the newest version, -1 where there is none."""
        return max(self._versions(), default=-1)

    def newest_whole(self) -> int:
        """Return the newest version whose entry is whole, -1 where there is none."""
        newest = self.newest()
        while newest >= 0 and _is_torn(self._path(newest).read_bytes()):
            newest -= 1
        return newest

    def settle(self) -> None:
        """Make durable what a life that ended, or a commit that failed, has left in the log.

        Raises:
            LakeCorruptError: An entry is not what was written.
            OSError: The disk refuses.
        """
        newest = self.newest()
        if newest <= self._durable:
            return
        path = self._path(newest)
        content = path.read_bytes()
        if _is_torn(content):
            self._disk.rename(path, path.with_name(f"{path.name}.torn"))
            self._disk.sync_directory(self._directory)
            self.settle()
            return
        # A sync that failed once may say that all is well the next time: a copy has to be written.
        copy = path.with_name(f"{path.name}.copy")
        self._disk.remove(copy)
        with self._disk.create(copy) as file:
            file.write(content)
        self._disk.sync(copy)
        self._disk.rename(copy, path)
        self._disk.sync_directory(self._directory)
        self._durable = newest

    def sync_newest(self) -> None:
        """Make the newest entry durable."""
        newest = self.newest()
        self._disk.sync(self._path(newest))
        self._disk.sync_directory(self._directory)
        self._durable = newest

    def sync_checkpoints(self) -> None:
        """Make the checkpoints durable."""
        for path in self._checkpoints():
            self._disk.sync(path)
        self._disk.sync_directory(self._directory)

    def drop_checkpoints(self) -> None:
        """Remove what the log can do without, first what points to the rest."""
        self._disk.remove(self._directory / _LAST_CHECKPOINT)
        self._disk.sync_directory(self._directory)
        for path in self._checkpoints():
            self._disk.remove(path)

    def newest_first(self, newest: int | None = None) -> Iterator[Entry]:
        """Yield the commits, newest first.

        Args:
            newest: Version to begin with; None is the newest there is.

        Raises:
            LakeCorruptError: An entry is not what was written.
        """
        for version in sorted(self._versions(), reverse=True):
            if newest is not None and version > newest:
                continue
            path = self._path(version)
            try:
                lines = _lines(path.read_bytes())
            except ValueError as error:
                raise LakeCorruptError(path, "the entry of the log is unreadable") from error
            yield _entry(version, lines)

    def left_over(self) -> list[Path]:
        """Return files beside the log that nobody needs: of commits that failed."""
        if not self._directory.is_dir():
            return []
        needed = (_LAST_CHECKPOINT,)
        return [
            path
            for path in self._disk.list(self._directory)
            if path.name not in needed
            and not _ENTRY.fullmatch(path.name)
            and not path.name.endswith((".parquet", ".torn"))
        ]

    def old_checkpoints(self) -> list[Path]:
        """Return all checkpoints but the newest ones, oldest first: nobody reads them any more."""
        if not self._directory.is_dir():
            return []
        paths = [path for path in self._checkpoints() if path.name != _LAST_CHECKPOINT]
        versions = sorted({_version_of(path) for path in paths})[:-CHECKPOINTS_KEPT]
        return [path for path in paths if _version_of(path) in versions]

    def _versions(self) -> Iterator[int]:
        if self._directory.is_dir():
            for path in self._disk.list(self._directory):
                if found := _ENTRY.fullmatch(path.name):
                    yield int(found[1])

    def _path(self, version: int) -> Path:
        return self._directory / f"{version:020d}.json"

    def _checkpoints(self) -> list[Path]:
        return [
            path
            for path in self._disk.list(self._directory)
            if _CHECKPOINT in path.name or path.name == _LAST_CHECKPOINT
        ]


def _version_of(checkpoint: Path) -> str:
    return checkpoint.name.partition(".")[0]


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines() if line]


def _is_torn(content: bytes) -> bool:
    """Whether an entry is only the beginning of one: its writer was cut off before its sync."""
    try:
        lines = _lines(content.rstrip(b"\0"))
    except ValueError:
        return True
    if not lines or content.endswith(b"\0"):
        return True
    expected = _about(lines).get("actions")
    found = sum(1 for line in lines for action in _ACTIONS if action in line)
    return expected is not None and found != expected


def _said(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next((dict(line["commitInfo"]) for line in lines if "commitInfo" in line), {})


def _about(lines: list[dict[str, Any]]) -> Mapping[str, Any]:
    about = _said(lines).get(METADATA, {})
    return about if isinstance(about, dict) else {}


def _entry(version: int, lines: list[dict[str, Any]]) -> Entry:
    removed = tuple(line["remove"]["path"] for line in lines if "remove" in line)
    committed = _said(lines).get("timestamp", 0) * 1_000
    return Entry(version, committed, _about(lines), removed)
