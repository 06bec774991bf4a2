"""Everything a call can be refused for, whose fault it is, and what the client gets to see.

FlightServiceError
├── RequestError                the caller's; its text is written for the caller
│   ├── CredentialError         no key, or one that isn't accepted     → FlightUnauthenticatedError
│   ├── ScopeError              the key lacks a scope or a symbol      → FlightUnauthorizedError
│   ├── BusyError               too much at once, or draining; retry   → FlightUnavailableError
│   ├── InvalidArgumentError    a value can't be taken as it is        → FlightServerError
│   │   └── InvalidTicketError  a ticket can't be read                 → FlightServerError
│   ├── NotFoundError           what was named does not exist          → FlightServerError
│   ├── LimitError              the answer or request is too large     → FlightServerError
│   └── LakeFailedError         the disk's; what was ordered failed    → FlightServerError
├── AddressError                the operator's: the address is taken or not ours to listen on
├── UnansweredError             nobody's: the server was too busy to answer itself
└── ControlStoreError           the disk's: keys or files can't be read or written; clients are
    │                           told "internal error" and an id to look up in the log
    └── ControlDamagedError     what is there is not what was written

Handlers raise these (or let storage's errors pass) and convert at one place, `to_flight_error`:
whatever else leaves a handler, pyarrow sends to the client with its traceback.
"""

import json
import secrets
import traceback
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Final, final

import structlog
from pyarrow import flight

from storage import errors as storage_errors

_LOG: Final = structlog.get_logger(__name__)
_INCIDENT_BYTES: Final = 4
"""Enough to find one line in a log; short enough to be read out over the phone."""
_TEXT_CHARS_MAX: Final = 1_000
"""Errors travel in HTTP/2 trailers, which clients take 8 KB of, and repeat what was sent to us."""


class FlightServiceError(Exception):
    """Base of all errors of this package; never raised itself."""


class RequestError(FlightServiceError):
    """The call can't be served as it was made; never raised itself.

    ``code`` is stable: clients branch on it, not on the text.
    """

    code: ClassVar[str]
    flight_class: ClassVar[type[flight.FlightError]] = flight.FlightServerError

    def details(self) -> dict[str, str | int]:
        """What ``extra_info`` says beside the code."""
        return {}


class Refusal(StrEnum):
    """Why a credential was refused: for the log and the counters, never for the client."""

    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    WRONG_MODEL = "wrong_model"
    UNCHECKED = "unchecked"
    """The store of keys can't be read, so nobody gets in."""


@final
class CredentialError(RequestError):
    """The call carries no credential that is accepted.

    The text is the same whatever the cause, so that guessing teaches nothing.
    """

    code = "unauthenticated"
    flight_class = flight.FlightUnauthenticatedError

    def __init__(self, refusal: Refusal) -> None:
        super().__init__("invalid credentials: send a valid key as 'authorization: Bearer tf_...'")
        self.refusal = refusal


@final
class ScopeError(RequestError):
    """The key is good but lacks a scope or may not read a symbol; one of the two is set."""

    code = "unauthorized"
    flight_class = flight.FlightUnauthorizedError

    def __init__(
        self, message: str, *, scope: str | None = None, symbol: str | None = None
    ) -> None:
        super().__init__(message)
        self.scope = scope
        self.symbol = symbol

    def details(self) -> dict[str, str | int]:
        """See ``RequestError.details``."""
        named = {"scope": self.scope, "symbol": self.symbol}
        return {name: value for name, value in named.items() if value is not None}


@final
class BusyError(RequestError):
    """The server has no room for the call now, or is shutting down; a retry may work."""

    code = "unavailable"
    flight_class = flight.FlightUnavailableError

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, str | int]:
        """See ``RequestError.details``."""
        return {} if self.retry_after_ms is None else {"retry_after_ms": self.retry_after_ms}


class InvalidArgumentError(RequestError):
    """A value can't be taken as it is; ``field`` names it."""

    code = "invalid_argument"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def details(self) -> dict[str, str | int]:
        """See ``RequestError.details``."""
        return {} if self.field is None else {"field": self.field}


@final
class InvalidTicketError(InvalidArgumentError):
    """A ticket or descriptor can't be read."""


@final
class NotFoundError(RequestError):
    """What the call names does not exist."""

    code = "not_found"


@final
class LimitError(RequestError):
    """The request, or the answer to it, is larger than the server allows."""

    code = "limit"


@final
class LakeFailedError(RequestError):
    """Upkeep of the lake failed: told whole, for only administrators order it."""

    code = "internal"


@final
class AddressError(FlightServiceError):
    """The server can't listen where it should."""


@final
class UnansweredError(FlightServiceError):
    """The server asked itself a question, and got no answer."""


class ControlStoreError(FlightServiceError):
    """The control database or its pepper can't be used; the text says what to do about it."""


@final
class ControlDamagedError(ControlStoreError):
    """The control database does not hold what was written to it; none of that is used."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(
            f"{path} is damaged: {found}. Stop the service and run `tickflightd keys repair`, which"
            f" keeps what is intact; the rest is in a backup of {path.name} and {path.stem}.pepper"
        )


def to_flight_error(error: Exception) -> flight.FlightError:
    """Turn what a handler raised into what may leave the server.

    Our errors and storage's keep their text and get their code as JSON in ``extra_info``. A
    ``FlightError`` passes as it is. Anything else is logged here, with its traceback and a short
    id, and the client learns the id and nothing more.
    """
    match error:
        case flight.FlightError():
            return error
        case RequestError():
            return _answer(error.flight_class, str(error), code=error.code, **error.details())
        case storage_errors.InvalidDataError():
            return to_flight_error(InvalidArgumentError(str(error), field=error.field))
        case storage_errors.TooLargeError() | storage_errors.StoreClosedError():
            return to_flight_error(_request_error(error))
        case storage_errors.SequenceError(expected=None):
            return _answer(flight.FlightServerError, str(error), code="sequence")
        case storage_errors.SequenceError(expected=int(expected)):
            return _answer(flight.FlightServerError, str(error), code="sequence", expected=expected)
        case storage_errors.RetentionError():
            oldest = error.oldest
            return _answer(flight.FlightServerError, str(error), code="retention", oldest=oldest)
        case storage_errors.TooOldError():
            oldest, epoch = error.oldest, error.epoch
            return _answer(
                flight.FlightServerError, str(error), code="too_old", oldest=oldest, epoch=epoch
            )
        case storage_errors.LakeCorruptError():
            _LOG.error("the lake is damaged", file=str(error.path), exception=traceback_of(error))
            return _answer(flight.FlightServerError, _damage(error), code="internal")
        case _:
            return _internal(error)


def _request_error(error: storage_errors.StorageError) -> RequestError:
    if isinstance(error, storage_errors.TooLargeError):
        return LimitError(str(error))
    return BusyError("the server is shutting down; retry in a moment")


def outcome_of(error: Exception) -> str:
    """Return what the history says of a call that ended with ``error``."""
    match error:
        case ScopeError():
            return "denied"
        case RequestError():
            return f"error:{error.code}"
        case storage_errors.InvalidDataError():
            return f"error:{InvalidArgumentError.code}"
        case storage_errors.SequenceError():
            return "error:sequence"
        case storage_errors.RetentionError():
            return "error:retention"
        case storage_errors.TooOldError():
            return "error:too_old"
        case storage_errors.TooLargeError():
            return f"error:{LimitError.code}"
        case storage_errors.StoreClosedError():
            return f"error:{BusyError.code}"
        case _:
            return "error:internal"


def traceback_of(error: Exception) -> str:
    """Format a traceback for the log without the values of local variables.

    Left to the log's renderer, it may come with them, and a key is a local variable somewhere.
    """
    return "".join(traceback.format_exception(error))


def _answer(
    flight_class: type[flight.FlightError], message: str, **extra: str | int
) -> flight.FlightError:
    short = {
        name: _cut(value) if isinstance(value, str) else value for name, value in extra.items()
    }
    return flight_class(_cut(message), json.dumps(short).encode())


def _damage(error: storage_errors.LakeCorruptError) -> str:
    # The name alone: where files lie is nothing for clients.
    return f"{error.path.name} of the lake is damaged; run `tickflightd lake verify` on the server"


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]}…"


def _internal(error: Exception) -> flight.FlightError:
    incident = secrets.token_hex(_INCIDENT_BYTES)
    _LOG.error("internal error", incident=incident, exception=traceback_of(error))
    message = f"internal error {incident}: the server's log has the cause under this id"
    return _answer(flight.FlightServerError, message, code="internal")
