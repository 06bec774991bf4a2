"""How the server treats clients that are rude, and leaves when it must."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import flight

from flight_server.errors import AddressError
from flight_server.identity import Scope
from flight_server.service import FlightService
from storage.ports import SystemClock, SystemDisk
from tests.flight_server.conftest import (
    House,
    Server,
    caller_at,
    config,
    new_key,
    serving,
    ticks,
    until,
)

RANGE = {"op": "range", "dataset": "ticks", "start": 0, "end": "now"}
ROWS = 100_000
"""More than the wire holds: a server that sends them waits for its client."""
STOP_SECONDS = 5
"""Promised to whoever runs the service."""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with more ticks than fit into the wire."""
    with serving(tmp_path_factory.mktemp("full")) as house:
        house.caller().put(ticks(ROWS))
        yield house


class TestReadersWhoLeave:
    def test_one_that_cancels_gives_its_slot_back(self, full: House) -> None:
        for _ in range(30):
            caller = full.caller()
            stream = caller.stream(RANGE)
            stream.cancel()
        until(lambda: full.streams == 0)

    def test_one_that_leaves_in_the_middle_gives_its_slot_back(self, full: House) -> None:
        for _ in range(5):
            caller = full.caller()
            stream = caller.stream(RANGE)
            assert stream.read_chunk().data.num_rows > 0
            stream.cancel()
        until(lambda: full.streams == 0)

    def test_one_that_dies_before_it_has_read_anything_gives_its_slots_back(
        self, full: House, tmp_path: Path
    ) -> None:
        code = """
import json, os, sys
from pyarrow import flight
client = flight.connect(sys.argv[1])
headers = [(b"authorization", b"Bearer " + sys.argv[2].encode())]
ticket = flight.Ticket(sys.argv[3].encode())
streams = [client.do_get(ticket, flight.FlightCallOptions(headers=headers)) for _ in range(10)]
print(len(streams), flush=True)
os._exit(9)
"""
        assert full.service.uri
        key = full.keys.create("dies", scopes=[Scope.READ_HISTORY]).key
        ticket = '{"op": "range", "dataset": "ticks", "start": 0, "end": "now"}'
        command = [sys.executable, "-c", code, full.service.uri, key, ticket]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.stdout.strip() == "10", done.stderr
        until(lambda: full.streams == 0)

    def test_one_that_does_not_read_holds_up_nobody(self, full: House) -> None:
        rude, other = full.caller(), full.caller()
        streams = [rude.stream(RANGE) for _ in range(20)]
        until(lambda: full.streams == 20)
        began = time.monotonic()
        assert other.get({**RANGE, "columns": ["price"]}).num_rows == ROWS
        assert other.put(ticks(1, symbol="POLITE"))["rows"] == 1
        assert time.monotonic() - began < 10
        for stream in streams:
            stream.cancel()
        until(lambda: full.streams == 0)


class TestStopping:
    def test_it_takes_less_than_five_seconds_with_clients_that_do_not_read(
        self, tmp_path: Path
    ) -> None:
        server = Server(tmp_path)
        caller = caller_at(server.uri, new_key(tmp_path))
        caller.put(ticks(ROWS), producer="p")
        readers = [caller.stream(RANGE) for _ in range(30)]
        writers = [caller.open() for _ in range(5)]
        for writer in writers:
            writer.write(ticks(10))
        assert server.stop() < STOP_SECONDS
        assert server.process.returncode == 0
        del readers, writers

    def test_what_was_acknowledged_before_is_there_afterwards(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        key = new_key(tmp_path)
        caller_at(server.uri, key).put(ticks(1_000), producer="p")
        server.stop()
        server = Server(tmp_path)
        caller = caller_at(server.uri, key)
        assert caller.get(RANGE).num_rows == 1_000
        server.stop()

    def test_new_calls_are_turned_away_while_it_drains(self, tmp_path: Path) -> None:
        with serving(tmp_path) as house:
            caller = house.caller()
            caller.put(ticks(1))
            assert house.service._door is not None
            house.service._door.drain(0)
            with pytest.raises(flight.FlightUnavailableError):
                caller.get(RANGE)
            with pytest.raises(flight.FlightUnavailableError):
                caller.put(ticks(1))


def test_a_port_that_is_taken_is_said_so(house: House, tmp_path: Path) -> None:
    service = FlightService(
        config(tmp_path, house.service.uri),
        clock=SystemClock(),
        disk=SystemDisk(),
        on_failure=lambda _: None,
    )
    with pytest.raises(AddressError, match="another program has the port"):
        service.start()
    service.stop(0)
