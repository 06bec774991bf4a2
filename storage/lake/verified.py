"""What is known of the lake's files: when each was read whole last, and which are damaged.

Kept in ``verified.json`` in the lake's directory, so that a restart neither forgets damage nor
begins to verify anew. It is no more than a memory: without it, files are read again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.lake.outside import errors_as_ours
from storage.lake.scrub import FileReport
from storage.ports import Disk

NAME: Final = "verified.json"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was committed.

    Attributes:
        since: When that was found, µs.
        report: What was found last.
    """

    since: int
    report: FileReport


class Verified:
    """Remembers what verifications found; used by one thread at a time.

    Args:
        lake: Directory of all tables.
        disk: Where it lies.
    """

    def __init__(self, lake: Path, disk: Disk) -> None:
        self._path = lake / NAME
        self._disk = disk
        self._read_at: dict[tuple[str, str], int] = {}
        self._damage: dict[tuple[str, str], Damage] = {}
        self._changed = False
        self._load()

    def read_at(self, dataset: str, path: str) -> int:
        """Return when a file was read whole last, µs; 0 is never."""
        return self._read_at.get((dataset, path), 0)

    def is_damaged(self, dataset: str, path: str) -> bool:
        """Whether a file was not what was committed when it was read last."""
        return (dataset, path) in self._damage

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What is damaged, by table and path."""
        return tuple(damage for _, damage in sorted(self._damage.items()))

    def note(self, reports: Iterable[FileReport], now: int) -> None:
        """Take what a verification found."""
        for report in reports:
            self._changed = True
            key = (report.dataset, report.path)
            self._read_at[key] = now
            known = self._damage.pop(key, None)
            if report.damage is not None:
                self._damage[key] = Damage(known.since if known else now, report)

    def keep_only(self, paths: Mapping[str, frozenset[str]]) -> None:
        """Forget all files but some, by table: nobody reads the others any more."""
        for known in (self._read_at, self._damage):
            for dataset, path in [key for key in known if key[1] not in paths.get(key[0], ())]:
                self._changed = True
                del known[dataset, path]

    def save(self) -> None:
        """Make it durable, where it has changed.

        Raises:
            LakeError: The disk refuses.
        """
        if not self._changed:
            return
        scratch = self._path.with_name(f"{NAME}.tmp")
        with errors_as_ours(self._path):
            self._disk.remove(scratch)
            with self._disk.create(scratch) as file:
                file.write(json.dumps(self._to_json()).encode())
            self._disk.sync(scratch)
            self._disk.rename(scratch, self._path)
            self._disk.sync_directory(self._path.parent)
        self._changed = False

    def _to_json(self) -> dict[str, Any]:
        damage = [{"since": one.since, **one.report.to_json()} for one in self.damage]
        return {"read": [[*key, at] for key, at in self._read_at.items()], "damage": damage}

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_bytes())
            self._read_at = {(dataset, path): at for dataset, path, at in content["read"]}
            self._damage = {(one.report.dataset, one.report.path): one for one in _damage(content)}
        except (OSError, ValueError, KeyError, TypeError):
            self._read_at, self._damage = {}, {}  # then all files are read again


def _damage(content: Mapping[str, Any]) -> Iterator[Damage]:
    for one in content["damage"]:
        since = one.pop("since")
        yield Damage(since, FileReport.from_json(one))
