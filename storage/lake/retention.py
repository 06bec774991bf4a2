"""Retention: dates whose time is over leave the lake, whole files at a time.

All files of a symbol and date go together, once the date and the newest row that came for it are
both older than the limit: what was imported lately stays as long as what came live. The commit that
takes them out moves the table's watermark, and readers are told ``retention`` below it only. The
files stay on disk until vacuum finds that nobody can be reading them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from storage.lake import layout
from storage.lake.files import LakeFile
from storage.lake.table import RETENTION, LakeTable


@dataclass(frozen=True, slots=True)
class Dropped:
    """One symbol and date that goes, or has gone.

    Attributes:
        dataset: Name of the table's.
        symbol: None where the table isn't partitioned by symbol.
        date: The partition.
        files: How many.
        rows: In them.
        bytes: Of them.
    """

    dataset: str
    symbol: str | None
    date: str
    files: int
    rows: int
    bytes: int


def expired(table: LakeTable, base: int, cutoff: int) -> list[tuple[LakeFile, ...]]:
    """Return the files whose time is over, those of a symbol and date together, oldest first.

    Args:
        table: Whose files they are.
        base: Position below which memory holds no rows of the dataset.
        cutoff: µs; older rows that came earlier than this go. Its own date stays whole.
    """
    limit = cutoff // layout.DAY_US
    groups: dict[tuple[str, str], list[LakeFile]] = {}
    for file in table.index:
        if layout.last_day(file.date) < limit:
            groups.setdefault((file.date, file.symbol or ""), []).append(file)
    return [
        tuple(files)
        for _, files in sorted(groups.items())
        if all(file.end <= base and table.came(file) < cutoff for file in files)
    ]


def drop(table: LakeTable, groups: Iterable[Sequence[LakeFile]], cutoff: int) -> None:
    """Take what ``expired`` has returned out of the table, in one commit.

    Raises:
        LakeError: The disk refuses, or the table has changed since.
    """
    files = [file for group in groups for file in group]
    limit = cutoff // layout.DAY_US
    watermark = max(limit, table.counter(RETENTION) or 0)
    about = {"retained_from": watermark, "dropped": sum(file.rows for file in files)}
    table.replace(files, (), transactions={RETENTION: watermark}, metadata=about)


def summary(table: LakeTable, group: Sequence[LakeFile]) -> Dropped:
    """Return what one of the groups of ``expired`` is."""
    return Dropped(
        table.dataset.name,
        group[0].symbol,
        group[0].date,
        len(group),
        sum(file.rows for file in group),
        sum(file.bytes for file in group),
    )
