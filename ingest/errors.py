"""Everything that can go wrong on the way in, and whose fault it is.

IngestError
├── ConfigurationError       the operator's: a setting can't work, and no retry will mend it
├── SourceError              the feed's: it failed; the runner starts it again
│   ├── SourceRefusedError   the operator's: the feed said no (credentials, entitlements)
│   └── SourceSilentError    the feed's: connected, it seems, and nothing comes
├── MirrorError              Redis's: it is away, or does not take what is written
├── ImportFileError          the file's: it can't be read, or a value in it can't
├── BadValueError            the file's: a value is not what its column holds; raised as the above
├── ColumnMappingError       the caller's: which column is what is missing or contradictory
└── ImportConflictError      the caller's: half of this file is in under other options
"""

from pathlib import Path
from typing import final


class IngestError(Exception):
    """Base of all errors of this package; never raised itself."""


@final
class ConfigurationError(IngestError):
    """A setting can't work; starting again with the same one can't either."""


class SourceError(IngestError):
    """A feed failed in a way that a new connection may cure."""


@final
class SourceRefusedError(SourceError):
    """A feed refused us for good: only other credentials or another entitlement help."""


@final
class MirrorError(IngestError):
    """Redis can't be reached, does not answer or refuses us; it is tried again."""


@final
class SourceSilentError(SourceError):
    """A feed says nothing; ``since`` when (µs since 1970), if it seemed alive for longer."""

    def __init__(self, detail: str, *, since: int | None = None) -> None:
        super().__init__(detail)
        self.since = since


@final
class ImportFileError(IngestError):
    """A file can't be imported as it is; ``where`` is the part of it to look at."""

    def __init__(self, path: Path, detail: str, *, where: str | None = None) -> None:
        place = f"{path}" if where is None else f"{path}, {where}"
        super().__init__(f"{place}: {detail}")
        self.path = path
        self.where = where


@final
class BadValueError(IngestError):
    """A value can't be converted; ``row`` is its number in the rows that were looked at.

    ``ImportFileError`` carries it out, with the file and the row of the file.
    """

    def __init__(self, row: int, detail: str) -> None:
        super().__init__(detail)
        self.row = row


@final
class ColumnMappingError(IngestError):
    """The columns of a file do not give what a tick needs, or a mapping contradicts itself."""


@final
class ImportConflictError(IngestError):
    """The file is known under other options, so what is missing can't follow what is there."""
