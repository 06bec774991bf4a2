"""The chain of journal files by their headers alone: quick, read-only, beside a running server.

Reading records and checking every one of them is recovery's business. Files are opened read-only:
whoever closes a database last that it may write to folds the log into it, and with it whatever
a damaged log could still tell.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from storage.errors import JournalError
from storage.journal_file import SUFFIX, Header


@dataclass(frozen=True, slots=True)
class JournalFile:
    """One file of the chain.

    Attributes:
        path: Where it is.
        size: Bytes, its write-ahead log included.
        header: What it continues; None when it was cut off while it was made.
    """

    path: Path
    size: int
    header: Header | None


def journal_files(directory: Path) -> list[JournalFile]:
    """Return the files of a journal, in the order of their names; none without a directory.

    Raises:
        JournalError: One of them can't be read.
    """
    if not directory.is_dir():
        return []
    paths = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    return [JournalFile(path, _size(path), _header(path)) for path in paths]


def breaks(files: Sequence[JournalFile]) -> list[str]:
    """Return a sentence for each place where the chain does not hold."""
    return [sentence for before, after in pairwise(files) for sentence in _break(before, after)]


def _break(before: JournalFile, after: JournalFile) -> Iterator[str]:
    # The last file may have been cut off while it was made; any other has a successor that says so.
    if before.header is None:
        yield f"{before.path.name} has no header, and is not the last file"
        return
    if after.header is None:
        return
    if after.header.number != before.header.number + 1:
        yield (f"{after.path.name} follows {before.path.name}, so a file between them is missing")
    if after.header.epoch < before.header.epoch or after.header.hour < before.header.hour:
        yield f"{after.path.name} is older than {before.path.name}, which it should follow"
    for dataset, position in before.header.positions.items():
        if after.header.positions.get(dataset, 0) < position:
            yield f"{after.path.name} begins {dataset} before {before.path.name} does"


def _size(path: Path) -> int:
    parts = (path.with_name(path.name + suffix) for suffix in ("", "-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())


def _header(path: Path) -> Header | None:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if not tables:
                return None
            (content,) = connection.execute("SELECT content FROM header").fetchone()
        return Header(**json.loads(content))
    except (sqlite3.Error, OSError, TypeError, ValueError) as error:
        raise JournalError(f"{path}: the header can't be read ({error})") from error
