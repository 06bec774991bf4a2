import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import flight
from structlog.testing import capture_logs

from flight_server.errors import (
    BusyError,
    ControlStoreError,
    CredentialError,
    InvalidArgumentError,
    InvalidTicketError,
    LimitError,
    NotFoundError,
    Refusal,
    ScopeError,
    to_flight_error,
)
from storage import errors as storage_errors


def extra(error: flight.FlightError) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(error.extra_info)
    return decoded


@pytest.mark.parametrize(
    ("error", "flight_class", "expected"),
    [
        (
            CredentialError(Refusal.EXPIRED),
            flight.FlightUnauthenticatedError,
            {"code": "unauthenticated"},
        ),
        (
            ScopeError("no", scope="sql"),
            flight.FlightUnauthorizedError,
            {"code": "unauthorized", "scope": "sql"},
        ),
        (
            ScopeError("no", symbol="SPY"),
            flight.FlightUnauthorizedError,
            {"code": "unauthorized", "symbol": "SPY"},
        ),
        (BusyError("full"), flight.FlightUnavailableError, {"code": "unavailable"}),
        (
            storage_errors.StoreClosedError("closed"),
            flight.FlightUnavailableError,
            {"code": "unavailable"},
        ),
        (
            InvalidTicketError("bad", field="limit"),
            flight.FlightServerError,
            {"code": "invalid_argument", "field": "limit"},
        ),
        (
            InvalidArgumentError("bad"),
            flight.FlightServerError,
            {"code": "invalid_argument"},
        ),
        (
            storage_errors.InvalidDataError("bad", field="price"),
            flight.FlightServerError,
            {"code": "invalid_argument", "field": "price"},
        ),
        (
            storage_errors.SchemaMismatchError("bad", field="x"),
            flight.FlightServerError,
            {"code": "invalid_argument", "field": "x"},
        ),
        (
            storage_errors.SequenceError("jump", expected=7),
            flight.FlightServerError,
            {"code": "sequence", "expected": 7},
        ),
        (
            storage_errors.SequenceError("taken over"),
            flight.FlightServerError,
            {"code": "sequence"},
        ),
        (NotFoundError("gone"), flight.FlightServerError, {"code": "not_found"}),
        (LimitError("too much"), flight.FlightServerError, {"code": "limit"}),
    ],
    ids=repr,
)
def test_an_error_of_ours_becomes_its_flight_class_and_code(
    error: Exception, flight_class: type[flight.FlightError], expected: dict[str, Any]
) -> None:
    converted = to_flight_error(error)
    assert type(converted) is flight_class
    assert extra(converted) == expected


def test_the_text_of_a_request_error_is_kept() -> None:
    assert str(to_flight_error(LimitError("ask for less"))) == "ask for less"


def test_a_flight_error_passes_as_it_is() -> None:
    error = flight.FlightCancelledError("gone")
    assert to_flight_error(error) is error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CANARY"),
        ControlStoreError("CANARY"),
        storage_errors.JournalError("CANARY"),
        storage_errors.JournalCorruptError(Path("/CANARY"), 1, "CANARY"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_for_the_client_is_logged_under_the_id_it_is_told(error: Exception) -> None:
    with capture_logs() as logs:
        converted = to_flight_error(error)
    assert type(converted) is flight.FlightServerError
    assert extra(converted) == {"code": "internal"}
    assert "CANARY" not in f"{converted!r} {converted} {converted.extra_info!r}"
    (entry,) = logs
    assert entry["incident"] in str(converted)
    assert "CANARY" in entry["exception"]


def test_the_log_of_an_internal_error_has_no_values_of_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        key = "".join(["CAN", "ARY"])
        raise ValueError(len(key))

    with pytest.raises(ValueError, match="6") as caught:
        fail()
    to_flight_error(caught.value)
    logged = "".join(capsys.readouterr())
    assert "in fail" in logged
    assert "CANARY" not in logged
