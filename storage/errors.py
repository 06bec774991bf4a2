"""Everything that can go wrong in storage, and whose fault it is.

StorageError
├── InvalidDataError        the caller's: what was sent can't be taken as it is
│   └── SchemaMismatchError the caller's: a column is unknown, missing or of another type
├── RetentionError          the caller's: rows of that age were dropped
├── TooOldError             the caller's: arrivals that far back are not kept
├── TooLargeError           the caller's: an answer takes more room than there is for it
├── SequenceError           the producer's: its batch numbers jumped, or another stream took over
├── JournalError            the disk's: the journal can't be written
│   ├── JournalFullError    the disk's: no room; goes on by itself once there is some
│   └── JournalCorruptError the disk's: the journal holds something we did not write
├── LakeError               the disk's: the lake can't be written or read
│   ├── LakeFullError       the disk's: no room; what was not committed is tried again
│   └── LakeCorruptError    the disk's: a file of the lake holds something we did not write
└── StoreClosedError        nobody's: the store is shutting down
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import final


class StorageError(Exception):
    """Base of all errors of this package; never raised itself."""


class InvalidDataError(StorageError):
    """What was sent can't be taken as it is; ``field`` names the part to mend."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@final
class SchemaMismatchError(InvalidDataError):
    """A column is unknown, missing or of another type than the dataset's."""


@final
class RetentionError(StorageError):
    """Rows were asked for that are dropped by now; none are older than ``oldest``, µs."""

    def __init__(self, oldest: int) -> None:
        since = datetime.fromtimestamp(oldest // 1_000_000, UTC)
        super().__init__(f"rows from before {since:%Y-%m-%d} were dropped; begin there or later")
        self.oldest = oldest


@final
class TooOldError(StorageError):
    """Arrivals were asked for that are in the lake alone, which has no order of arrival.

    Attributes:
        oldest: Position of the oldest row that can still be had in that order.
        epoch: The life of the server that says so.
    """

    def __init__(self, oldest: int, epoch: int) -> None:
        super().__init__(
            f"what arrived then is no longer kept in the order it came, which begins at position"
            f" {oldest} of epoch {epoch}; ask for a start in time instead"
        )
        self.oldest = oldest
        self.epoch = epoch


@final
class TooLargeError(StorageError):
    """An answer takes more memory or disk than there is for it; the text says what to ask for."""


@final
class SequenceError(StorageError):
    """A producer's batch does not follow the last one the store has taken from it."""

    def __init__(self, message: str, *, expected: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected


class JournalError(StorageError):
    """The journal can't be written; nothing that was acknowledged is lost."""


@final
class JournalFullError(JournalError):
    """The disk is full; what was not written is tried again."""


@final
class JournalCorruptError(JournalError):
    """A journal file holds something that was never written to it.

    Attributes:
        path: The file.
        record: Which of its records, where that is known.
        offset: Where in the file, or in its log, the damage was met, in bytes.
    """

    def __init__(
        self, path: Path, record: int | None, detail: str, *, offset: int | None = None
    ) -> None:
        where = f"{path}" if record is None else f"{path}, record {record}"
        at = "" if offset is None else f", byte {offset}"
        super().__init__(f"{where}{at}: {detail}")
        self.path = path
        self.record = record
        self.offset = offset
        self.detail = detail


class LakeError(StorageError):
    """The lake can't be written or read; memory and journal are as they were."""


@final
class LakeFullError(LakeError):
    """The disk is full; what was not committed is tried again."""


@final
class LakeCorruptError(LakeError):
    """A file of the lake holds something that was never written to it."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


@final
class StoreClosedError(StorageError):
    """The store is shutting down and takes nothing more."""
