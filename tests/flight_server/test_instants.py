"""Instants as people and programs write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flight_server.errors import InvalidTicketError
from flight_server.instants import INSTANT_MAX, parse_instant

NOW = 1_790_000_000_000_000


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        (0, 0),
        (INSTANT_MAX, INSTANT_MAX),
        ("now", NOW),
        (" now ", NOW),
        ("-15m", NOW - 900_000_000),
        ("-1s", NOW - 1_000_000),
        ("-2h", NOW - 7_200_000_000),
        ("+15m", NOW + 900_000_000),
        ("-999999d", 0),
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:00.000001+00:00", 1),
        ("1970-01-01T02:00:00+02:00", 0),
        ("2026-11-20T14:30:00.123456Z", 1_795_185_000_123_456),
    ],
)
def test_every_documented_form_is_read(text: str | int, instant: int) -> None:
    assert parse_instant(text, now=NOW, field="start") == instant


@pytest.mark.parametrize(
    "text",
    [
        *(
            -1,
            INSTANT_MAX + 1,
            "",
            "soon",
            "15m",
            "-15",
            "-15w",
            "+-1s",
            "+999999999d",
            "2026-11-20T14:30:00",
        ),
        *("2026-13-01", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"),
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_anything_else_names_the_field(text: str | int) -> None:
    with pytest.raises(InvalidTicketError) as caught:
        parse_instant(text, now=NOW, field="end")
    assert caught.value.field == "end"


@given(st.text() | st.integers() | st.datetimes(timezones=st.timezones()).map(str))
def test_whatever_is_sent_is_an_instant_or_refused(value: str | int) -> None:
    try:
        instant = parse_instant(value, now=NOW, field="start")
    except InvalidTicketError:
        return
    assert 0 <= instant <= INSTANT_MAX
