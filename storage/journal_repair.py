"""Putting a damaged journal in order: all that is intact is kept, and what is lost is told.

A new journal is built beside the old one, verified from end to end, and put in its place; the old
one stays beside it under another name, as it was. Files that nothing is wrong with are the same
files in both. Where rows were lost the ones after them move up, since positions have no holes; a
last file is added that says so in ``gaps``. Rows that are in the lake keep their positions: files
that were rolled over are never what the rows of others depend on, so they are left out if damaged.

A power cut leaves the old journal, or a mark that makes the server refuse to start until the repair
has been run again.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from storage.errors import JournalError
from storage.journal_log import LOG_SUFFIX
from storage.journal_rewrite import Lost, Rewriter
from storage.journal_salvage import Salvage
from storage.journal_verify import FileReport, verify
from storage.ports import MICROSECONDS, Clock, Disk
from storage.recovery import REPAIR_MARK

_NAME: Final = re.compile(r"(\d{8})-\d{8}T\d{2}\.journal")


@dataclass(slots=True)
class Repaired:
    """What a repair has done.

    Attributes:
        damaged: What was wrong.
        rewritten: Files that were written anew.
        left_out: Files of which nothing could be kept, or whose rows are all in the lake.
        lost: Acknowledged rows that are gone.
        evidence: Where the journal is as it was; None when nothing was done.
        rows: Rows in the journal now.
    """

    damaged: list[FileReport] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    evidence: Path | None = None
    rows: int = 0


def repair(directory: Path, rolled: Mapping[str, int], *, clock: Clock, disk: Disk) -> Repaired:
    """Put a journal in order that no server has open.

    Args:
        directory: Of the journal.
        rolled: By dataset, the position below which the lake holds every row.
        clock: Where time comes from.
        disk: The file system.

    Raises:
        JournalError: It can't be done; the journal is as it was.
    """
    try:
        if disk.size(_beside(directory, REPAIR_MARK)):
            return Repaired(evidence=_swap(directory, clock, disk))
        reports = list(verify(directory))
        done = Repaired(damaged=[report for report in reports if report.damage is not None])
        if done.damaged:
            _rebuild(directory, _needed(reports, rolled, done), rolled, done, clock, disk)
            done.evidence = _swap(directory, clock, disk)
    except OSError as error:
        raise JournalError(f"{directory}: {error}") from error
    return done


def _needed(
    reports: list[FileReport], rolled: Mapping[str, int], done: Repaired
) -> list[FileReport]:
    """Leave out what holds nothing, and all up to the last damaged file that is in the lake."""
    named = [one for one in reports if _NAME.fullmatch(one.path.name) and one.path.exists()]
    first = 0
    for at, report in enumerate(named[:-1]):
        following = named[at + 1].header
        if report.damage and following and _is_rolled(following.positions, rolled):
            first = at + 1
    kept = [one for one in named[first:] if one.header or one.damage]
    names = {one.path.name for one in kept}
    done.left_out = [one.path.name for one in reports if one.path.name not in names]
    return kept


def _is_rolled(positions: Mapping[str, int], rolled: Mapping[str, int]) -> bool:
    return all(position <= rolled.get(name, 0) for name, position in positions.items())


def _rebuild(
    directory: Path,
    reports: list[FileReport],
    rolled: Mapping[str, int],
    done: Repaired,
    clock: Clock,
    disk: Disk,
) -> None:
    """Build the new journal under another name, and verify it."""
    target = _beside(directory, ".repairing")
    shutil.rmtree(target, ignore_errors=True)
    disk.make_directory(target)
    rewriter = Rewriter(target, rolled)
    for at, report in enumerate(reports):
        number = int(report.path.name[:8])
        rewriter.fill_up_to(number)
        following = next((one.header for one in reports[at + 1 :] if one.header), None)
        if report.damage is None and rewriter.is_continued_by(report):
            _link(report.path, target)
            rewriter.passed(report)
        else:
            salvage = Salvage.of(report.path, number)
            if salvage.is_holed:
                for near in (*reports[max(at - 1, 0) : at], *reports[at + 1 : at + 2]):
                    salvage.borrow_strings(Salvage.of(near.path, int(near.path.name[:8])))
            rewriter.rewrite(salvage, following)
            done.rewritten.append(report.path.name)
    done.lost = rewriter.lost
    if done.lost:
        rewriter.tell(clock.now())
    disk.sync_directory(target)
    for report in verify(target):
        if report.damage is not None:
            raise JournalError(f"{report.path} is still damaged: {report.damage.detail}")
        done.rows += report.rows
    shutil.rmtree(_beside(directory, ".repaired"), ignore_errors=True)
    disk.rename(target, _beside(directory, ".repaired"))
    mark = _beside(directory, REPAIR_MARK)
    disk.remove(mark)
    with disk.create(mark) as file:
        file.write(b"a new journal is being put in place\n")
    disk.sync(mark)
    disk.sync_directory(directory.parent)


def _link(path: Path, target: Path) -> None:
    for name in (path.name, path.name + LOG_SUFFIX):
        if path.with_name(name).exists():
            os.link(path.with_name(name), target / name)


def _swap(directory: Path, clock: Clock, disk: Disk) -> Path:
    """Put the new journal in place; return where the old one is now."""
    now = datetime.fromtimestamp(clock.now() // MICROSECONDS, UTC)
    evidence = _beside(directory, f".damaged-{now:%Y%m%dT%H%M%S}")
    while evidence.exists():
        evidence = evidence.with_name(evidence.name + "x")
    repaired = _beside(directory, ".repaired")
    if repaired.exists():
        if directory.exists():
            disk.rename(directory, evidence)
        disk.rename(repaired, directory)
    disk.sync_directory(directory.parent)
    disk.remove(_beside(directory, REPAIR_MARK))
    disk.sync_directory(directory.parent)
    return evidence


def _beside(directory: Path, ending: str) -> Path:
    return directory.with_name(directory.name + ending)
