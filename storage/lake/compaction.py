"""Compaction: the files of one symbol, date and source become one.

An hour brings a file of its own, and so does each import. Joined, a day is one file: sorted as a
whole, with row groups of full size. Only files that every snapshot sees are joined, so memory never
holds rows of a joined file. What was joined is compared with what was committed about its parts,
and stays on disk until vacuum finds that nobody can be reading it any more.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from storage.errors import LakeCorruptError
from storage.lake import layout
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.layout import FileName
from storage.lake.merging import merged
from storage.lake.row_hash import as_text, combine, from_text
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile, verified_rows, writing
from storage.ports import Disk
from storage.schemas import DATASETS, Dataset


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Some files of one table to join into one.

    Attributes:
        lake: Directory of all tables.
        dataset: Name of the table's.
        path: Where to, below the table's root.
        inputs: What to join, below the table's root, in the order in which their rows came.
        rows: How many rows they have.
        row_hash: Of their rows.
    """

    lake: str
    dataset: str
    path: str
    inputs: tuple[str, ...]
    rows: int
    row_hash: int

    def to_json(self) -> str:
        """Return it as a child process reads it, in one line."""
        return json.dumps({**asdict(self), "row_hash": as_text(self.row_hash)})

    @classmethod
    def from_json(cls, text: str) -> "JoinTask":
        """Read what ``to_json`` has made."""
        content = json.loads(text)
        content["inputs"] = tuple(content["inputs"])
        return cls(**{**content, "row_hash": from_text(content["row_hash"])})


@dataclass(frozen=True, slots=True)
class Joined:
    """What compaction has done to one symbol, date and source.

    Attributes:
        dataset: Name of the table's.
        symbol: None where the table isn't partitioned by symbol.
        date: The partition.
        files: How many files became one.
        rows: How many rows it has.
        bytes_before: Of the files that were joined.
        bytes: Of what they became; None before that is done.
    """

    dataset: str
    symbol: str | None
    date: str
    files: int
    rows: int
    bytes_before: int
    bytes: int | None


Join = Callable[[JoinTask], WrittenFile]
"""Writes the file of a task: ``join``, or a child process that calls it."""


def groups_to_join(
    index: FileIndex, dataset: Dataset, until: int | None = None
) -> list[tuple[LakeFile, ...]]:
    """Return the files that belong together, where there are several.

    Args:
        index: Files that every snapshot sees from now on: ``FileIndex.visible``.
        dataset: Whose they are.
        until: Files with rows from this instant on are left out, µs; None leaves out none.
    """
    groups: dict[tuple[str, str, str], list[LakeFile]] = {}
    by_source = layout.has_one_source_a_file(dataset)
    for file in index:
        if file.kind is FileKind.BARS:  # which replace each other by themselves
            continue
        if until is not None and file.last >= until:
            continue
        source = (file.source or "") if by_source else ""
        groups.setdefault((file.date, file.symbol or "", source), []).append(file)
    return [
        tuple(sorted(files, key=lambda file: (file.end, file.part, file.path)))
        for _, files in sorted(groups.items())
        if len(files) > 1
    ]


def compact(
    table: LakeTable, base: int, join: Join, shown: Callable[[LakeTable], None]
) -> Iterator[Joined]:
    """Join what belongs together, one group after another; yields what was done.

    Each group is a commit of its own: whatever fails or is cut off, those before it stand, and the
    rest is found again the next time.

    Args:
        table: Whose files are joined.
        base: Position below which memory holds no rows of the dataset, for ever.
        join: Writes the file.
        shown: Called after each commit, to let readers see it.

    Raises:
        LakeFullError: There is no room.
        LakeCorruptError: A file is not what was committed.
        LakeError: The disk refuses.
    """
    facts = table.ledger()
    for group in groups_to_join(table.index.visible(base), table.dataset):
        done = join_group(table, group, facts, join)
        shown(table)
        yield done


def join_group(
    table: LakeTable, group: Sequence[LakeFile], facts: Mapping[str, WrittenFile], join: Join
) -> Joined:
    """Join the files of one group, in one commit.

    Args:
        table: Whose files they are.
        group: One of ``groups_to_join``.
        facts: What was committed about them.
        join: Writes the file.

    Raises:
        LakeError: See ``compact``; the table is as it was, or has the joined file.
    """
    written = join(task_for(table, group, facts))
    table.replace(group, [written], metadata={"joined": len(group)}, same_rows=True)
    return replace(summary(table, group), bytes=written.bytes)


def summary(table: LakeTable, group: Sequence[LakeFile]) -> Joined:
    """Return what one of ``groups_to_join`` is, not joined yet."""
    return Joined(
        table.dataset.name,
        group[0].symbol,
        group[0].date,
        len(group),
        sum(file.rows for file in group),
        sum(file.bytes for file in group),
        None,
    )


def task_for(
    table: LakeTable, group: Sequence[LakeFile], facts: Mapping[str, WrittenFile]
) -> JoinTask:
    """Return the task of joining some files of a table.

    Args:
        table: Whose they are.
        group: In the order in which their rows came.
        facts: What was committed about them.

    Raises:
        LakeCorruptError: The log says nothing of one of them.
    """
    unknown = [file.path for file in group if file.path not in facts]
    if unknown:
        raise LakeCorruptError(table.root / unknown[0], "the log says nothing about it")
    name = FileName(
        FileKind.COMPACT,
        max(file.end for file in group),
        max(file.part for file in group),
        secrets.token_hex(8),
    )
    return JoinTask(
        lake=str(table.root.parent),
        dataset=table.dataset.name,
        path=layout.file_path(table.dataset, group[0].symbol, group[0].date, name),
        inputs=tuple(file.path for file in group),
        rows=sum(file.rows for file in group),
        row_hash=combine(facts[file.path].row_hash for file in group),
    )


def join(task: JoinTask, disk: Disk) -> WrittenFile:
    """Write the file of a task; nothing is committed.

    Raises:
        LakeFullError: There is no room.
        LakeCorruptError: What the files hold is not what was committed.
        LakeError: The disk refuses.
    """
    dataset = DATASETS[task.dataset]
    root = layout.table_root(Path(task.lake), dataset)
    sources = [verified_rows(root / path, dataset) for path in task.inputs]
    with writing(root, dataset, task.path, disk) as writer:
        for rows in merged(sources, dataset):
            writer.write(rows)
        written = writer.finish()
    if (written.rows, written.row_hash) != (task.rows, task.row_hash):
        disk.remove(root / task.path)
        detail = f"with {len(task.inputs) - 1} more it holds other rows than were committed"
        raise LakeCorruptError(root / task.inputs[0], detail)
    return written
