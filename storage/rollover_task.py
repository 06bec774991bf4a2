"""What a child process is asked to write of a journal file, and what it answers; as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from storage.lake.files import FileKind
from storage.lake.row_hash import as_text, from_text
from storage.lake.writer import WrittenFile


@dataclass(frozen=True, slots=True)
class PartTask:
    """One part to write: rows of one dataset.

    Attributes:
        dataset: Its name.
        part: Number of the part.
        first: Position of its first row; the journal file has all of them.
        end: Position after its last row.
        without_synthetic: Symbols whose SYNTHETIC rows are left out.
        kind: What the files are: those of old data lie below every position.
    """

    dataset: str
    part: int
    first: int
    end: int
    without_synthetic: tuple[str, ...] = ()
    kind: FileKind = FileKind.PART


@dataclass(frozen=True, slots=True)
class RolloverTask:
    """Some parts to write out of one finished journal file.

    Attributes:
        journal: Path of the file.
        lake: Directory of all tables.
        token: Unique for each attempt: lower-case letters and digits. Names of files end with it.
        parts: What to write; each dataset once.
    """

    journal: str
    lake: str
    token: str
    parts: tuple[PartTask, ...]

    def to_json(self) -> str:
        """Return it as the child reads it, in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RolloverTask":
        """Read what ``to_json`` has made."""
        content = json.loads(text)
        parts = tuple(
            PartTask(
                **{
                    **part,
                    "without_synthetic": tuple(part["without_synthetic"]),
                    "kind": FileKind(part["kind"]),
                }
            )
            for part in content.pop("parts")
        )
        return cls(**content, parts=parts)


@dataclass(frozen=True, slots=True)
class PartResult:
    """One part that was written: durable and verified, but not committed.

    Attributes:
        dataset: Its name.
        part: Number of the part.
        first: As it was asked for; so is ``end``.
        end: Position after its last row.
        files: What was written; none where all rows were left out.
        rows: Rows in the files.
        skipped: SYNTHETIC rows that were left out.
        row_hash: Of the rows in the files.
    """

    dataset: str
    part: int
    first: int
    end: int
    files: tuple[WrittenFile, ...]
    rows: int
    skipped: int
    row_hash: int

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "PartResult":
        """Read it out of JSON."""
        files = tuple(WrittenFile.from_json(file) for file in content["files"])
        return cls(**{**content, "files": files, "row_hash": from_text(content["row_hash"])})


@dataclass(frozen=True, slots=True)
class RolloverResult:
    """What became of a ``RolloverTask``: its parts, in the order they were asked for."""

    parts: tuple[PartResult, ...]

    def to_json(self) -> str:
        """Return it as the child writes it, in one line."""
        parts = [{**asdict(part), "row_hash": as_text(part.row_hash)} for part in self.parts]
        return json.dumps({"parts": parts})

    @classmethod
    def from_json(cls, text: str) -> "RolloverResult":
        """Read what ``to_json`` has made."""
        return cls(tuple(PartResult.of(part) for part in json.loads(text)["parts"]))
