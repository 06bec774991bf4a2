"""Scrub: every file of the lake is still what was committed.

A file is read whole: its bytes are compared with their digest, and where that is right, its pages
with their checksums and its rows with their number and hash. All of these were committed with it,
in the table's log.
Nothing here writes, so it may be done beside a running service, and without one.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from storage.errors import LakeCorruptError, LakeError
from storage.lake import layout
from storage.lake.files import FileKind, LakeFile
from storage.lake.log import LOG
from storage.lake.row_hash import as_text
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile, file_digest, summary_of
from storage.ports import SystemDisk
from storage.schemas import DATASETS, Dataset

RESTORE: Final = "put this file back from a backup, under the same name"
REPAIR: Final = (
    "run `tickflightd lake repair` while what it was made of is still there, for about a day; later"
    f" {RESTORE}"
)
_MADE_AGAIN: Final = (FileKind.PART, FileKind.COMPACT)
RESTART: Final = (
    "restart the service, which does without damaged checkpoints; if that does not help, put the"
    f" table's {LOG} back from a backup"
)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What was found about one file.

    Attributes:
        dataset: Name of the table's.
        path: Where it lies below the table's root; the log's directory where that is damaged.
        rows: As the log has them.
        bytes: Likewise.
        damage: What is wrong; None where nothing is.
        advice: What to do about it; empty where nothing is wrong.
    """

    dataset: str
    path: str
    rows: int
    bytes: int
    damage: str | None = None
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "FileReport":
        """Read what ``to_json`` has made."""
        return cls(**content)


@dataclass(frozen=True, slots=True)
class ScrubTask:
    """Some files of one table to compare with what was committed.

    Attributes:
        lake: Directory of all tables.
        dataset: Name of the table's.
        paths: Below the table's root; None is all files it has.
    """

    lake: str
    dataset: str
    paths: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a child process reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ScrubTask":
        """Read what ``to_json`` has made."""
        paths = content["paths"]
        return cls(**{**content, "paths": None if paths is None else tuple(paths)})


def scrub(task: ScrubTask) -> Iterator[FileReport]:
    """Read the files of a task; yields a report of each that the table still has.

    The first report is of the table's log, where there is one.

    Raises:
        LakeError: The disk refuses to list a log.
    """
    dataset = DATASETS[task.dataset]
    table = LakeTable(layout.table_root(Path(task.lake), dataset), dataset, SystemDisk())
    try:
        table.peek()
        facts = table.ledger()
    except LakeCorruptError as error:
        detail = str(error).partition(": ")[2]
        yield FileReport(dataset.name, LOG, 0, 0, detail, RESTART)
        for path in task.paths or ():
            yield FileReport(dataset.name, path, 0, 0, "its table's log can't be read", RESTART)
        return
    if table.index.version >= 0:
        yield FileReport(dataset.name, LOG, 0, 0)
    yield from _reports(table, facts, task.paths)


def _reports(
    table: LakeTable, facts: dict[str, WrittenFile], paths: Collection[str] | None
) -> Iterator[FileReport]:
    wanted = None if paths is None else frozenset(paths)
    for file in sorted(table.index, key=lambda file: file.path):
        if wanted is None or file.path in wanted:
            damage = damage_of(table.root, table.dataset, file, facts.get(file.path))
            advice = (REPAIR if file.kind in _MADE_AGAIN else RESTORE) if damage else ""
            yield FileReport(table.dataset.name, file.path, file.rows, file.bytes, damage, advice)


def damage_of(
    root: Path, dataset: Dataset, file: LakeFile, facts: WrittenFile | None
) -> str | None:
    """Read one file whole; return what is wrong with it, None where nothing is.

    Args:
        root: The table's directory.
        dataset: What it holds.
        file: As the table has it.
        facts: What was committed about it.
    """
    if facts is None:
        return "the log says nothing about it"
    listed = (file.rows, file.bytes, file.first, file.last)
    if listed != (facts.rows, facts.bytes, facts.first, facts.last):
        return "the log says two different things about it"
    path = root / file.path
    try:
        size = path.stat().st_size
        digest = file_digest(path)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    if size != facts.bytes:
        return f"it has {size:,} bytes, and {facts.bytes:,} were committed"
    if digest != facts.digest:
        return "its bytes are not those that were committed"
    return _wrong_rows(path, dataset, file, facts)


def _wrong_rows(path: Path, dataset: Dataset, file: LakeFile, facts: WrittenFile) -> str | None:
    try:
        found = summary_of(path, dataset, file.symbol)
    except LakeError as error:
        return str(error).partition(": ")[2]
    if found.rows != facts.rows:
        return f"it has {found.rows:,} rows, and {facts.rows:,} were committed"
    if found.row_hash != facts.row_hash:
        return f"its rows hash to {as_text(found.row_hash)}, and not {as_text(facts.row_hash)}"
    return None
