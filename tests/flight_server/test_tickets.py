"""Tickets: every wrong field is named, and nothing unknown passes."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import flight

from flight_server.errors import InvalidTicketError
from flight_server.instants import INSTANT_MAX
from flight_server.tickets import (
    TICKET_BYTES_MAX,
    LatestTicket,
    LiveTicket,
    RangeTicket,
    Ticket,
    parse_descriptor,
    parse_ticket,
    ticket_bytes,
)
from storage.selection import Order

LATEST = {"op": "latest", "symbols": ["MNQ"]}
LIVE = {"op": "live", "symbols": ["MNQ"]}
RANGE = {"op": "range", "dataset": "ticks", "symbols": ["MNQ"], "start": 0, "end": "now"}


def parsed(ticket: dict[str, Any]) -> Ticket:
    return parse_ticket(json.dumps(ticket).encode())


def test_what_is_left_out_has_its_documented_value() -> None:
    ticket = parsed({"op": "latest"})
    assert ticket == LatestTicket(op="latest", dataset="ticks", symbols=(), limit=100)
    ticket = parsed(RANGE)
    assert isinstance(ticket, RangeTicket)
    assert (ticket.order, ticket.compression, ticket.source) == (Order.TIME, None, None)
    ticket = parsed({"op": "live"})
    assert ticket == LiveTicket(op="live", dataset="ticks", symbols=())
    assert (ticket.start, ticket.after, ticket.speed) == (None, None, None)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"op": "nope"}, "op"),
        ({"op": None}, "op"),
        ({"symbol": ["MNQ"]}, "symbol"),
        ({"range": 1}, "range"),
        ({"latest": 1}, "latest"),
        ({"symbols": "MNQ"}, "symbols"),
        ({"symbols": ["mnq"]}, "symbols"),
        ({"symbols": ["MNQ\n"]}, "symbols"),
        ({"symbols": ["A"] * 10_001}, "symbols"),
        ({"dataset": 7}, "dataset"),
        ({"columns": []}, "columns"),
        ({"columns": "price"}, "columns"),
        ({"source": ["demo"]}, "source"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
def test_a_wrong_field_is_named(ticket: dict[str, Any], wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidTicketError) as caught:
        parsed({**ticket, **wrong})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("ticket", "field"),
    [
        ({**LATEST, "limit": 0}, "limit"),
        ({**LATEST, "limit": 1_000_001}, "limit"),
        ({**LATEST, "limit": "5"}, "limit"),
        ({**LATEST, "limit": True}, "limit"),
        ({**LATEST, "limit": 1.0}, "limit"),
        ({**LATEST, "start": 0}, "start"),
        ({**RANGE, "limit": 5}, "limit"),
        ({**RANGE, "order": "size"}, "order"),
        ({**RANGE, "compression": "gzip"}, "compression"),
        ({**RANGE, "start": 1.5}, "start"),
        ({**RANGE, "end": None}, "end"),
        ({key: RANGE[key] for key in RANGE if key != "end"}, "end"),
        ({key: RANGE[key] for key in RANGE if key != "op"}, "op"),
        ({**LIVE, "source": "demo"}, "source"),
        ({**LIVE, "min_interval_ms": 0}, "min_interval_ms"),
        ({**LIVE, "min_interval_ms": "5"}, "min_interval_ms"),
        ({**LIVE, "after": 7}, "after"),
        ({**LIVE, "after": {"epoch": 1}}, "after"),
        ({**LIVE, "after": {"epoch": 0, "pos": 1}}, "after"),
        ({**LIVE, "after": {"epoch": 1, "pos": 1, "at": 1}}, "after"),
        ({**LIVE, "after": {"epoch": 1, "pos": 1, "key": [1]}}, "after"),
        ({**LIVE, "after": {"epoch": 1, "pos": 1, "key": [1.5]}, "start": 0}, "after"),
        ({**LIVE, "speed": -1, "start": 0, "end": 1}, "speed"),
        ({**LIVE, "speed": "1", "start": 0, "end": 1}, "speed"),
        ({**LIVE, "speed": 1, "start": 0}, "end"),
        ({**LIVE, "speed": 1, "end": 0}, "start"),
        ({**LIVE, "speed": 1, "start": 0, "end": 1, "min_interval_ms": 1}, "min_interval_ms"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_field_of_one_op_is_checked_too(ticket: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidTicketError) as caught:
        parsed(ticket)
    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"null", b'"latest"', b"\x00" * 9])
def test_what_is_no_ticket_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidTicketError):
        parse_ticket(data)


def test_a_ticket_beyond_the_limit_is_not_even_read() -> None:
    with pytest.raises(InvalidTicketError, match="longer than"):
        parse_ticket(json.dumps(LATEST).encode() + b" " * TICKET_BYTES_MAX)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_ticket_or_refused(data: bytes) -> None:
    with suppress(InvalidTicketError):
        parse_ticket(data)


@pytest.mark.parametrize(
    "ticket",
    [
        LATEST,
        {**RANGE, "order": "symbol", "compression": "lz4"},
        {**LIVE, "start": "-5m", "after": {"epoch": 1, "pos": 2, "key": [3, "a", None]}},
        {**LIVE, "start": 0, "end": "now", "speed": 60},
    ],
)
def test_a_ticket_written_out_reads_the_same(ticket: dict[str, Any]) -> None:
    assert parse_ticket(ticket_bytes(parsed(ticket))) == parsed(ticket)


def test_a_path_is_short_for_the_whole_range() -> None:
    ticket = parse_descriptor(flight.FlightDescriptor.for_path("ticks", "MNQ"))
    assert ticket == RangeTicket(
        op="range", dataset="ticks", symbols=("MNQ",), start=0, end=INSTANT_MAX
    )
    everything = parse_descriptor(flight.FlightDescriptor.for_path("ticks"))
    assert everything.symbols == ()


@pytest.mark.parametrize("path", [(), ("ticks", "MNQ", "x"), ("ticks", "mnq"), ("ticks", b"\xff")])
def test_any_other_path_is_refused(path: tuple[str | bytes, ...]) -> None:
    with pytest.raises(InvalidTicketError):
        parse_descriptor(flight.FlightDescriptor.for_path(*path))


def test_a_command_is_a_ticket() -> None:
    command = flight.FlightDescriptor.for_command(json.dumps(LATEST).encode())
    assert parse_descriptor(command) == parsed(LATEST)
