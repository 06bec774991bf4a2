"""Replays over the network: the same rows, in order of receipt, at their time."""

import json
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import replays
from flight_server.identity import Scope
from flight_server.replays import Pace
from storage.ports import SystemClock
from storage.store import Store
from tests.flight_server.conftest import (
    Caller,
    HandClock,
    House,
    caller_at,
    serving,
    ticks,
    told,
    until,
)

SECOND = 1_000_000
START = 1_790_000_000_000_000


def asked(symbol: str, speed: float = 0, **fields: Any) -> dict[str, Any]:
    span = {"start": START, "end": START + 3_600 * SECOND}
    return {"op": "live", "symbols": [symbol], "speed": speed, **span, **fields}


def chunks(caller: Caller, ticket: dict[str, Any]) -> list[tuple[pa.RecordBatch, dict[str, Any]]]:
    """Read a replay whole, with what its batches say of themselves."""
    found: list[tuple[pa.RecordBatch, dict[str, Any]]] = []
    stream = caller.stream(ticket)
    while True:
        try:
            chunk = stream.read_chunk()
        except StopIteration:
            return found
        found.append((chunk.data, json.loads(chunk.app_metadata.to_pybytes())))


def received(batches: list[tuple[pa.RecordBatch, dict[str, Any]]]) -> list[int]:
    return [at for rows, _ in batches for at in rows["ts_recv"].cast(pa.int64()).to_pylist()]


def next_rows(stream: flight.FlightStreamReader) -> int:
    """Read up to the next batch that has rows."""
    while not (count := int(stream.read_chunk().data.num_rows)):
        pass
    return count


def write(caller: Caller, symbol: str, events: list[int], receipts: list[int]) -> None:
    caller.put(
        ticks(
            len(events),
            symbol=symbol,
            contract=symbol,
            ts_event=[START + event for event in events],
            ts_recv=[START + receipt for receipt in receipts],
        )
    )


def test_speed_zero_gives_the_rows_of_the_range_by_receipt(anyone: Caller) -> None:
    # The second is a second late, the third came before its venue's clock said so.
    write(anyone, "R.ZERO", [0, 10, 20, 30], [5, 10 + SECOND, 15, 35])
    batches = chunks(anyone, asked("R.ZERO"))
    assert received(batches) == [START + at for at in (5, 15, 35, 10 + SECOND)]
    ranged = anyone.get(
        {"op": "range", "dataset": "ticks", "symbols": ["R.ZERO"], "start": 0, "end": "now"}
        | {"source": "all"}
    )
    replayed = pa.Table.from_batches([rows for rows, _ in batches])
    by = [("sequence", "ascending")]
    plain = ranged.cast(replayed.schema.remove_metadata())
    assert replayed.sort_by(by).equals(plain.sort_by(by))


def test_each_batch_says_where_it_stands(anyone: Caller, house: House) -> None:
    write(anyone, "R.META", [0], [7])
    (_, hello), (_, first), (rows, last) = chunks(anyone, asked("R.META"))
    assert (hello["start"], hello["end"]) == (START, START + 3_600 * SECOND)
    store = house.service._store
    assert isinstance(store, Store)
    assert first == {
        "epoch": store.epoch,
        "pos": first["pos"],
        "durable": first["durable"],
        "caught_up": False,
        "replay": True,
        "ts_recv": START + 7,
    }
    assert 0 < first["pos"] <= store.arrivals.end("ticks")
    assert rows.num_rows == 0
    assert last["caught_up"] is True


def test_a_span_without_rows_ends_at_once(anyone: Caller) -> None:
    _, (rows, last) = chunks(anyone, asked("R.NOTHING", speed=1))
    assert (rows.num_rows, last["caught_up"], last["ts_recv"]) == (0, True, None)


def test_other_datasets_are_replayed_too(anyone: Caller) -> None:
    ticket = asked("R.ANY") | {"dataset": "gex"}
    assert chunks(anyone, ticket)[-1][1]["caught_up"] is True


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"end": None}, "end"),
        ({"start": None}, "start"),
        ({"speed": -1}, "speed"),
        ({"end": START - 1}, "end"),
        ({"columns": ["nonsense"]}, "columns"),
        ({"after": {"epoch": 1, "pos": 0}}, "after"),
    ],
)
def test_a_ticket_that_makes_no_replay_is_refused_by_field(
    change: dict[str, Any], field: str, anyone: Caller
) -> None:
    fields = {name: value for name, value in (asked("MNQ") | change).items() if value is not None}
    with pytest.raises(flight.FlightServerError) as caught:
        chunks(anyone, fields)
    assert told(caught.value) == {"code": "invalid_argument", "field": field}


def test_a_replay_needs_the_right_to_history(house: House) -> None:
    with pytest.raises(flight.FlightUnauthorizedError):
        chunks(house.caller(Scope.READ_REALTIME), asked("MNQ"))


def test_a_replay_gives_no_symbol_that_the_key_may_not_read(house: House, anyone: Caller) -> None:
    write(anyone, "R.MINE", [0], [0])
    write(anyone, "R.OTHER", [0], [0])
    mine = house.caller(Scope.READ_HISTORY, symbols=["R.MINE"])
    batches = chunks(mine, asked("R.MINE") | {"symbols": []})
    assert {name for rows, _ in batches for name in rows["symbol"].to_pylist()} == {"R.MINE"}
    with pytest.raises(flight.FlightUnauthorizedError):
        chunks(mine, asked("R.OTHER"))


def test_rows_come_when_they_were_received_at_the_speed_asked_for(anyone: Caller) -> None:
    offsets = [row * SECOND // 2 for row in range(240)]  # two minutes
    write(anyone, "R.PACE", offsets, offsets)
    stream = anyone.stream(asked("R.PACE", speed=60))
    arrivals: list[float] = []
    while len(arrivals) < len(offsets):
        count = next_rows(stream)
        arrivals += [time.monotonic()] * count
    due = np.array(offsets) / SECOND / 60
    late = np.array(arrivals) - arrivals[0] - due
    # Two seconds long; what is late is late because the machine is.
    assert late.min() > -0.1
    assert np.median(late) < 1.0


def test_rows_that_fall_due_together_are_sent_together(anyone: Caller) -> None:
    offsets = [row * SECOND // 100 for row in range(6_000)]
    write(anyone, "R.STEP", offsets, offsets)
    began = time.monotonic()
    batches = chunks(anyone, asked("R.STEP", speed=60))
    assert len(received(batches)) == len(offsets)
    assert len(batches) <= (time.monotonic() - began) / replays.STEP_SECONDS + 4


def test_a_replay_that_is_cancelled_gives_its_place_back(house: House, anyone: Caller) -> None:
    write(anyone, "R.LEFT", [0, 3_000 * SECOND], [0, 3_000 * SECOND])
    assert house.service._door is not None
    slots = house.service._door.replays
    stream = anyone.stream(asked("R.LEFT", speed=1))
    assert next_rows(stream) == 1
    assert slots.taken == 1
    stream.cancel()
    until(lambda: slots.taken == 0)


def test_silence_is_broken_by_empty_batches(
    anyone: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "HEARTBEAT_SECONDS", 0.05)
    write(anyone, "R.QUIET", [0, 3_000 * SECOND], [0, 3_000 * SECOND])
    stream = anyone.stream(asked("R.QUIET", speed=1))
    sizes = [stream.read_chunk().data.num_rows for _ in range(5)]
    stream.cancel()
    assert sizes == [0, 1, 0, 0, 0]


def test_a_key_that_is_revoked_ends_its_replays(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "WELCOME_SECONDS", 0.1)
    key = house.keys.create("model", scopes=list(Scope))
    caller = caller_at(house.service.uri, key.key)
    write(caller, "R.KEY", [0, 3_000 * SECOND], [0, 3_000 * SECOND])
    stream = caller.stream(asked("R.KEY", speed=1))
    assert next_rows(stream) == 1
    house.keys.revoke(key.id)
    with pytest.raises(flight.FlightUnauthenticatedError):
        stream.read_all()


def test_only_so_many_replays_run_at_once(house: House, anyone: Caller) -> None:
    write(anyone, "R.MANY", [0, 3_000 * SECOND], [0, 3_000 * SECOND])
    assert house.service._door is not None
    slots = house.service._door.replays
    until(lambda: slots.taken == 0)  # those of other tests
    streams = []
    for _ in range(replays.REPLAYS_PER_KEY_MAX):
        streams.append(anyone.stream(asked("R.MANY", speed=1)))
        next_rows(streams[-1])
    with pytest.raises(flight.FlightUnavailableError):
        chunks(anyone, asked("R.MANY"))
    for stream in streams:
        stream.cancel()
    until(lambda: slots.taken == 0)


def test_a_server_that_stops_does_not_wait_for_a_replay_s_end(tmp_path: Any) -> None:
    ended = threading.Event()
    with serving(tmp_path) as house:
        caller = house.caller()
        write(caller, "R.STOP", [0, 3_000 * SECOND], [0, 3_000 * SECOND])
        stream = caller.stream(asked("R.STOP", speed=1))
        next_rows(stream)

        def read_on() -> None:
            try:
                while True:
                    stream.read_chunk()
            except flight.FlightUnavailableError:
                ended.set()

        reader = threading.Thread(target=read_on)
        reader.start()
        began = time.monotonic()
        house.service.stop(60)
        assert time.monotonic() - began < 30
        assert ended.wait(20)
        reader.join()


class TestPace:
    """The clock of a replay, which a test's clock drives."""

    RECEIPTS = np.array([START, START + 60 * SECOND, START + 120 * SECOND], np.int64)
    END = START + 3_600 * SECOND

    def test_the_first_row_starts_it(self, clock: HandClock) -> None:
        pace = Pace(60, self.END, clock)
        clock.seconds += 1_000
        assert pace.due(self.RECEIPTS) == 1

    def test_a_row_is_due_to_the_moment(self, clock: HandClock) -> None:
        pace = Pace(60, self.END, clock)
        pace.due(self.RECEIPTS)
        assert pace.seconds_to(int(self.RECEIPTS[1])) == pytest.approx(1.0)
        clock.seconds += 0.999
        assert pace.due(self.RECEIPTS) == 1
        clock.seconds += 0.002
        assert pace.due(self.RECEIPTS) == 2

    def test_who_is_behind_gets_all_that_was_due_meanwhile(self, clock: HandClock) -> None:
        pace = Pace(60, self.END, clock)
        pace.due(self.RECEIPTS)
        clock.seconds += 500
        assert pace.due(self.RECEIPTS) == 3

    def test_what_was_received_after_the_end_comes_with_the_end(self, clock: HandClock) -> None:
        days_later = np.array([START, self.END + 86_400 * SECOND], np.int64)
        pace = Pace(60, self.END, clock)
        assert pace.due(days_later) == 1
        assert pace.seconds_to(int(days_later[1])) == pytest.approx(60)
        clock.seconds += 60.001
        assert pace.due(days_later) == 2

    def test_speed_zero_never_waits(self, clock: HandClock) -> None:
        pace = Pace(0, self.END, clock)
        assert pace.due(self.RECEIPTS) == 3
        assert pace.seconds_to(int(self.RECEIPTS[2])) == 0

    def test_a_day_at_sixty_takes_a_sixtieth_of_it(self, clock: HandClock) -> None:
        day = START + np.arange(0, 86_400 * SECOND, SECOND // 10)
        pace = Pace(60, START + 86_400 * SECOND, clock)
        began = clock.monotonic()
        sent = 0
        while sent < len(day):
            due = pace.due(day[sent:])
            sent += due
            if not due:
                clock.sleep(max(pace.seconds_to(int(day[sent])), replays.STEP_SECONDS))
        assert clock.monotonic() - began == pytest.approx(86_400 / 60, rel=0.001)


def test_the_clock_of_the_machine_serves_as_well() -> None:
    pace = Pace(1_000_000, TestPace.END, SystemClock())
    assert pace.due(TestPace.RECEIPTS) >= 1
