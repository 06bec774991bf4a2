"""Everything that can go wrong, and whose fault it is.

TickflightError
├── ConfigurationError         yours: an address, key or path is missing or unusable
├── AuthenticationError        yours: the API key is wrong, revoked or expired
├── PermissionDeniedError      yours: the key is good, but not for this
├── InvalidRequestError        yours: what was asked or sent can't be taken as it is
│   ├── NotFoundError          yours: there is no such dataset, job or thing
│   ├── RetentionError         nobody's: the time asked for is no longer kept
│   ├── TooOldError            nobody's: a live stream was away for too long to go on
│   └── LimitError             yours: more was asked or sent than the key or the server allows
├── SequenceError              yours: a producer's batches don't follow what the server has
├── WriterClosedError          yours: written to after ``close()``
├── DeadlineError              nobody's: the answer did not come in the time you gave it
├── UnavailableError           the network's: try again, nothing is lost
├── ServerError                the server's: report it
└── SpoolError                 this machine's: the spool directory can't be used
    ├── SpoolLockedError       yours: another writer has the directory
    ├── SpoolFullError         yours: the limit is reached and the rows were not taken
    └── SpoolCorruptError      the disk's: a record is not what was written

Exceptions of pyarrow never leave this package: ``map_errors`` is where they turn into these.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import pyarrow as pa
from pyarrow import flight


class TickflightError(Exception):
    """Base of all errors of this package; never raised itself."""


@final
class ConfigurationError(TickflightError):
    """An address, key or path is missing or unusable; the message says what to set."""


@final
class AuthenticationError(TickflightError):
    """The API key is wrong, revoked or expired."""


@final
class PermissionDeniedError(TickflightError):
    """The API key lacks the scope or the symbol."""


class InvalidRequestError(TickflightError):
    """What was asked or sent can't be taken as it is; ``field`` names the part to mend."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@final
class NotFoundError(InvalidRequestError):
    """There is no such dataset, job or thing."""


@final
class RetentionError(InvalidRequestError):
    """The time asked for is no longer kept; ``oldest`` is the first instant that is, in µs."""

    def __init__(
        self, message: str, *, field: str | None = None, oldest: int | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.oldest = oldest


@final
class TooOldError(InvalidRequestError):
    """A live stream was away for so long that the server can't go on where it was.

    The rows are there, but nobody knows any more in which order they came: ask for a ``range``, or
    begin a new stream with a ``start``. ``oldest`` is the first position that can still be had.
    """

    def __init__(
        self, message: str, *, field: str | None = None, oldest: int | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.oldest = oldest


@final
class LimitError(InvalidRequestError):
    """More was asked or sent than the key or the server allows."""


@final
class SequenceError(TickflightError):
    """A producer's batches don't follow what the server has; it wants ``expected`` next."""

    def __init__(self, message: str, *, expected: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected


@final
class WriterClosedError(TickflightError):
    """The writer was closed; open another one."""


@final
class DeadlineError(TickflightError, TimeoutError):
    """The answer did not come in the time given."""


@final
class UnavailableError(TickflightError, ConnectionError):
    """The server can't be reached, is draining or is busy; asking again is right."""


@final
class ServerError(TickflightError):
    """The server failed in a way it did not foresee."""


class SpoolError(TickflightError):
    """The spool directory can't be used."""


@final
class SpoolLockedError(SpoolError):
    """Another writer has the spool directory."""


@final
class SpoolFullError(SpoolError):
    """The spool's limit is reached; the rows of this ``write`` were not taken."""


@final
class SpoolCorruptError(SpoolError):
    """A record of the spool is not what was written; nothing behind it was skipped."""

    def __init__(self, path: Path, offset: int, detail: str) -> None:
        super().__init__(
            f"{path}, byte {offset}: {detail}; move the file out of the spool directory to go on"
            " without what it holds"
        )
        self.path = path
        self.offset = offset


_NOISE: Final = (". Detail: ", " gRPC client debug context:", ". Client context:")
_UNAUTHENTICATED: Final = "Detail: Unauthenticated"
_PREAMBLE: Final = "error, with message: "


@contextmanager
def map_errors() -> Iterator[None]:
    """Turn what pyarrow raises inside the block into an error of this package."""
    try:
        yield
    except (flight.FlightError, pa.ArrowException, OSError) as error:
        if isinstance(error, TickflightError):
            raise
        raise from_foreign(error) from None


def from_foreign(error: Exception) -> TickflightError:
    """The error of this package that says what ``error`` of pyarrow or the system means."""
    message = _message(error)
    match error:
        case flight.FlightUnauthenticatedError():
            return AuthenticationError(message)
        case flight.FlightUnauthorizedError():
            return PermissionDeniedError(message)
        case flight.FlightTimedOutError():
            return DeadlineError(message)
        case flight.FlightUnavailableError() | flight.FlightCancelledError():
            return UnavailableError(message)
        case flight.FlightServerError():
            return _from_code(message, _extra(error))
        case OSError() if _UNAUTHENTICATED in str(error):
            # get_schema alone does not know Flight's own kinds.
            return AuthenticationError(message)
        case flight.FlightError() | OSError():
            # Broken transports and half-closed streams arrive under these.
            return UnavailableError(message)
        case _:
            return ServerError(message)


def _from_code(message: str, extra: dict[str, object]) -> TickflightError:
    field = _text(extra.get("field"))
    match extra.get("code"):
        case "invalid_argument":
            return InvalidRequestError(message, field=field)
        case "not_found":
            return NotFoundError(message, field=field)
        case "retention":
            return RetentionError(message, field=field, oldest=_number(extra.get("oldest")))
        case "too_old":
            return TooOldError(message, field=field, oldest=_number(extra.get("oldest")))
        case "limit":
            return LimitError(message, field=field)
        case "sequence":
            return SequenceError(message, expected=_number(extra.get("expected")))
        case "cancelled":
            return UnavailableError(message)
        case _:
            return ServerError(message)


def _extra(error: flight.FlightError) -> dict[str, object]:
    try:
        extra = json.loads(error.extra_info)
    except ValueError:
        return {}
    return extra if isinstance(extra, dict) else {}


def _message(error: Exception) -> str:
    """What the server said, without the transport's notes to itself."""
    text = str(error)
    for noise in _NOISE:
        text = text.partition(noise)[0]
    return text.rpartition(_PREAMBLE)[2].strip() or type(error).__name__


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
