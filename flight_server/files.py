"""The registry of imported files: which content has a number, and how far its import got.

A file is its content digest (a live file: the digest of its generation), whatever its name. The
number it gets here goes into the upper half of each row's ``sequence``, so rows keep their identity
when the same file is imported again, by another process or under another name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, final

from flight_server.control import ControlDatabase
from flight_server.control_tables import FILES, FileRow
from flight_server.errors import InvalidArgumentError, LimitError, NotFoundError
from flight_server.sealing import Session
from storage.ports import Clock
from storage.schemas import DATASETS

DIGEST_PATTERN: Final = re.compile(r"[0-9a-f]{32,128}")
_MAX_TEXT_CHARS: Final = 1_024
"""File names end at 255 bytes, paths rarely pass this."""
_MAX_OPTIONS_CHARS: Final = 65_536
"""A column mapping takes hundreds; whoever sends more has mistaken this for a store."""
_MAX_NUMBER: Final = 2**31 - 1
"""``sequence`` is ``number << 32 | row`` in a signed 64-bit column."""
_MAX_ROWS: Final = 2**32


class ImportState(StrEnum):
    """How far the import of a file got."""

    NEW = "new"
    PARTIAL = "partial"
    COMPLETE = "complete"


@final
@dataclass(frozen=True, slots=True)
class Registration:
    """What the registry knows of a file.

    Attributes:
        number: Unique, from 1 up; never given to another file.
        state: New to this very call, begun by an earlier one, or finished.
        options: How it was first imported; a resumed import must go on in the same way.
        producer: Under which id it was first imported; its batch numbers tell where to resume.
        rows: How many it has, once complete.
    """

    number: int
    state: ImportState
    options: Mapping[str, Any]
    producer: str
    rows: int | None


@final
@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A file that was imported whole.

    Attributes:
        number: Upper half of the ``sequence`` of its rows.
        name: For people.
        dataset: Where its rows are.
        options: How it was imported.
        rows: How many it has.
    """

    number: int
    name: str
    dataset: str
    options: Mapping[str, Any]
    rows: int


@final
class FileRegistry:
    """The files of ``directory/control.db``; safe to share between threads and processes.

    Every method raises ``ControlStoreError`` when the store can't be used.
    """

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._database = ControlDatabase(directory)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; calls after it fail."""
        self._database.close()

    def register(
        self, digest: str, *, name: str, dataset: str, options: Mapping[str, Any], producer: str
    ) -> Registration:
        """Give a file its number, or tell what became of it when it has one.

        Of several calls at once for one digest exactly one is answered ``NEW``.

        Args:
            digest: Of the content: 32 to 128 hexadecimal digits.
            name: For people; the first one stays.
            dataset: Where its rows go; another one than at first is refused.
            options: How it is read, as JSON can hold it; the first ones stay.
            producer: Id under which its batches are sent.

        Raises:
            InvalidArgumentError: An argument is not as described; ``field`` names it.
            LimitError: There are no numbers left.
        """
        digest = _checked_digest(digest)
        if dataset not in DATASETS:
            raise InvalidArgumentError(f"{dataset!r} is not a dataset", field="dataset")
        row = FileRow(
            digest=digest,
            number=0,
            name=_checked_text("name", name),
            dataset=dataset,
            options=_encoded_options(options),
            producer=_checked_text("producer", producer),
            registered_at=self._clock.now(),
            completed_at=None,
            rows=None,
        )
        with self._database.write() as session:
            known = FILES.find(session, digest)
            row = _insert(session, row) if known is None else known
        if row.dataset != dataset:
            raise InvalidArgumentError(
                f"this file was imported into {row.dataset}: a file goes into one dataset",
                field="dataset",
            )
        begun = ImportState.PARTIAL if row.rows is None else ImportState.COMPLETE
        state = ImportState.NEW if known is None else begun
        return Registration(row.number, state, json.loads(row.options), row.producer, row.rows)

    def imported(self) -> list[ImportedFile]:
        """Return the files that were imported whole, in the order of their numbers."""
        with self._database.read() as session:
            known = FILES.all(session)
        found = [
            ImportedFile(row.number, row.name, row.dataset, json.loads(row.options), row.rows)
            for row in known
            if row.rows is not None
        ]
        return sorted(found, key=lambda file: file.number)

    def complete(self, digest: str, rows: int) -> None:
        """Record that the last row of a file is durable; a second time is fine.

        Raises:
            InvalidArgumentError: ``rows`` is impossible, or not what was recorded before.
            NotFoundError: The file was never registered.
        """
        digest = _checked_digest(digest)
        if not 0 <= rows <= _MAX_ROWS:
            raise InvalidArgumentError(f"a file has 0 to {_MAX_ROWS} rows", field="rows")
        with self._database.write() as session:
            row = FILES.find(session, digest)
            if row is None:
                raise NotFoundError("no file with this digest is registered: register it first")
            if row.rows not in (None, rows):
                raise InvalidArgumentError(
                    f"the file was completed with {row.rows} rows before", field="rows"
                )
            if row.rows is None:
                completed = row._replace(completed_at=self._clock.now(), rows=rows)
                FILES.replace(session, row, completed)


def _insert(session: Session, row: FileRow) -> FileRow:
    # Files are never forgotten, so the next number was never given to another.
    number = 1 + max((known.number for known in FILES.all(session)), default=0)
    if number > _MAX_NUMBER:
        raise LimitError("the registry has given out all its numbers")
    numbered = row._replace(number=number)
    FILES.insert(session, numbered)
    return numbered


def _checked_digest(digest: str) -> str:
    if DIGEST_PATTERN.fullmatch(digest.lower()) is None:
        raise InvalidArgumentError("a digest is 32 to 128 hexadecimal digits", field="digest")
    return digest.lower()


def _checked_text(field: str, text: str) -> str:
    if not 0 < len(text) <= _MAX_TEXT_CHARS or not text.isprintable():
        raise InvalidArgumentError(
            f"the {field} is 1 to {_MAX_TEXT_CHARS} printable characters", field=field
        )
    return text


def _encoded_options(options: Mapping[str, Any]) -> str:
    try:
        encoded = json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError("the options must be JSON", field="options") from error
    if len(encoded) > _MAX_OPTIONS_CHARS:
        raise InvalidArgumentError(
            f"the options take more than {_MAX_OPTIONS_CHARS} characters of JSON", field="options"
        )
    return encoded
