"""The SDK's replays: strict order over datasets, each row once, at its time."""

import threading
import time
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tickflight
from flight_server.identity import Scope
from storage import merge, reordering, streams
from tests.flight_server.conftest import House
from tests.replay.conftest import SECOND, START, instants, write
from tickflight.replay import STEP_SECONDS, Pace, Replay

END = START + 86_400 * SECOND
NAMES = count()

WHEN = st.integers(0, 20).map(lambda at: at * SECOND)
"""Few instants, so that many rows have the same."""
LATE = st.sampled_from([0, 0, 0, 1, 700_000, -300_000, 5 * SECOND, 90_000 * SECOND])
ROWS = st.lists(st.tuples(WHEN, LATE), min_size=1, max_size=25)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are many batches."""
    monkeypatch.setattr(merge, "BLOCK_ROWS_TARGET", 4)
    monkeypatch.setattr(streams, "BLOCK_ROWS_TARGET", 4)
    monkeypatch.setattr(reordering, "BLOCK_ROWS_TARGET", 3)
    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 2_000)


def new_symbol() -> str:
    return f"S{next(NAMES)}"


def store(client: tickflight.Client, dataset: str, symbol: str, parts: list[Any]) -> None:
    """Write parts of rows, and roll each but the last over into the lake."""
    first = 0
    for at, part in enumerate(parts):
        events = [event for event, _ in part]
        write(client, dataset, symbol, events, [event + late for event, late in part], first)
        first += len(part)
        if at < len(parts) - 1:
            client.action("rollover", {"all": True}, timeout=60)


def ranged(client: tickflight.Client, dataset: str, symbol: str) -> pa.Table:
    return client.range(dataset, symbol, START, END, source="all").arrow()


def by_receipt(rows: pa.Table) -> pa.Table:
    """The rows of a range as a replay gives them: a stable sort keeps the total order."""
    order = np.argsort(np.array(instants(rows), np.int64), kind="stable")
    return rows.take(pa.array(order)).replace_schema_metadata(None)


def gathered(replay: Replay) -> tuple[dict[str, pa.Table], list[tuple[int, int]]]:
    """Read a replay whole: rows by dataset, and receipt and rank of each in the order given."""
    names = list(replay.schemas)
    batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in names}
    order: list[tuple[int, int]] = []
    for dataset, batch in replay:
        assert batch.num_rows
        batches[dataset].append(batch)
        order += [(receipt, names.index(dataset)) for receipt in instants(batch)]
    tables = {
        name: pa.Table.from_batches(batches[name], schema.remove_metadata())
        for name, schema in replay.schemas.items()
    }
    return tables, order


@pytest.mark.slow
@pytest.mark.usefixtures("_small_blocks")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ticks=st.lists(ROWS, min_size=1, max_size=3),
    quotes=st.lists(ROWS, min_size=1, max_size=2),
    cuts=st.sets(st.integers(0, 30), max_size=4),
)
def test_over_memory_lake_and_cuts_every_row_comes_once_in_strict_order(
    ticks: list[Any], quotes: list[Any], cuts: set[int], client: tickflight.Client
) -> None:
    symbol = new_symbol()
    store(client, "ticks", symbol, ticks)
    store(client, "quotes", symbol, quotes)
    with client.replay(["quotes", "ticks"], symbol, START, END, speed=0) as replay:
        cut_now_and_then(replay, cuts)
        tables, order = gathered(replay)
    assert order == sorted(order)
    for dataset, table in tables.items():
        assert table.equals(by_receipt(ranged(client, dataset, symbol)))


def cut_now_and_then(replay: Replay, cuts: set[int]) -> None:
    """Lose the connection of a dataset before some of its reads."""
    for feed in replay._feeds:
        reads = count()
        stream = feed._stream
        read = stream._watch.reading

        def reading(reads: Any = reads, read: Any = read, stream: Any = stream) -> Any:
            if next(reads) in cuts:
                stream.cancel()
            return read()

        stream._watch.reading = reading  # type: ignore[method-assign] # what a network does
        stream._delay = lambda: 0.0  # type: ignore[method-assign]


def test_a_lost_connection_is_counted(client: tickflight.Client) -> None:
    symbol = new_symbol()
    write(client, "ticks", symbol, [0, SECOND], [0, SECOND])
    with client.replay("ticks", symbol, START, END, speed=0) as replay:
        cut_now_and_then(replay, {0})
        assert sum(batch.num_rows for _, batch in replay) == 2
        assert replay.reconnects == 1


@pytest.mark.parametrize("speed", [60.0, 600.0])
def test_a_paced_replay_keeps_time(speed: float, client: tickflight.Client) -> None:
    symbol = new_symbol()
    offsets = [row * SECOND for row in range(int(2 * speed))]
    write(client, "ticks", symbol, offsets, offsets)
    write(client, "quotes", symbol, offsets, offsets)
    arrivals: list[tuple[float, int]] = []
    for _, batch in client.replay(["ticks", "quotes"], symbol, START, END, speed=speed):
        now = time.monotonic()
        arrivals += [(now, receipt) for receipt in instants(batch)]
    began = arrivals[0][0]
    late = [now - began - (receipt - START) / SECOND / speed for now, receipt in arrivals]
    assert min(late) > -0.001
    assert np.median(late) < 1.0  # a loaded machine; the pace itself is tested by a clock of ours


def test_rows_that_fall_due_together_come_together(client: tickflight.Client) -> None:
    symbol = new_symbol()
    offsets = [row * SECOND // 100 for row in range(6_000)]  # a minute of 100 rows a second
    write(client, "ticks", symbol, offsets, offsets)
    began = time.monotonic()
    batches = list(client.replay("ticks", symbol, START, END, speed=60))
    assert sum(batch.num_rows for _, batch in batches) == len(offsets)
    assert len(batches) <= (time.monotonic() - began) / STEP_SECONDS + 2


def test_a_live_call_with_a_speed_gives_batches_as_live_streams_do(
    client: tickflight.Client,
) -> None:
    symbol = new_symbol()
    write(client, "ticks", symbol, [0, SECOND], [5 * SECOND, SECOND])
    with client.live(symbol, start=START, end=END, speed=0, columns=["price", "sequence"]) as live:
        assert live.schema.names == ["price", "sequence"]
        assert (live.caught_up, live.position, live.reconnects) == (True, None, 0)
        assert list(live.coverage.symbols) == [symbol]
        rows = pa.Table.from_batches(live)
    assert rows["sequence"].to_pylist() == [1, 0]
    taken: list[int] = []
    with client.live(symbol, start=START, end=END, speed=0) as live:
        live.each(lambda batch: taken.append(batch.num_rows))
    assert sum(taken) == 2


def test_a_live_call_with_a_speed_needs_a_span(client: tickflight.Client) -> None:
    with pytest.raises(tickflight.InvalidRequestError, match="start and an end"):
        client.live("MNQ", start="-1h", speed=1)  # type: ignore[call-overload] # as people may


def test_columns_may_differ_by_dataset(client: tickflight.Client) -> None:
    symbol = new_symbol()
    for dataset in ("ticks", "quotes"):
        write(client, dataset, symbol, [0], [0])
    columns = {"ticks": ["price"], "quotes": ["bid", "ask"]}
    replay = client.replay(["ticks", "quotes"], symbol, START, END, speed=0, columns=columns)
    assert [(name, batch.schema.names) for name, batch in replay] == [
        ("ticks", ["price"]),
        ("quotes", ["bid", "ask"]),
    ]
    same = (name for name in ("symbol", "source"))
    replay = client.replay(["ticks", "quotes"], symbol, START, END, speed=0, columns=same)
    assert [batch.schema.names for _, batch in replay] == [["symbol", "source"]] * 2


def test_a_span_that_is_relative_to_now_is_the_same_for_all_datasets(
    client: tickflight.Client,
) -> None:
    with client.replay(["ticks", "quotes"], "NOBODY", "-1h", "now", speed=0) as replay:
        spans = [feed._ticket["start"] for feed in replay._feeds]
        assert spans[0] == spans[1]
        assert list(replay) == []


def test_each_item_says_how_far_the_replay_is(client: tickflight.Client) -> None:
    symbol = new_symbol()
    write(client, "ticks", symbol, [0, SECOND], [7, SECOND + 9])
    seen = []
    with client.replay("ticks", symbol, START, END, speed=0) as replay:
        assert replay.at is None
        replay.each(lambda _, batch: seen.append((instants(batch)[-1], replay.at)))
    assert seen
    assert all(last == at for last, at in seen)


def test_a_replay_that_waits_ends_when_it_is_closed(client: tickflight.Client) -> None:
    symbol = new_symbol()
    write(client, "ticks", symbol, [0, 80_000 * SECOND], [0, 80_000 * SECOND])
    replay = client.replay("ticks", symbol, START, END, speed=1)
    assert next(replay)[1].num_rows == 1
    closing = threading.Timer(0.2, replay.close)
    closing.start()
    assert list(replay) == []
    closing.join()


def test_a_key_without_the_right_is_told_at_once(house: House) -> None:
    key = house.keys.create("live.alone", scopes=[Scope.READ_REALTIME]).key
    with (
        tickflight.connect(house.service.uri, key) as client,
        pytest.raises(tickflight.PermissionDeniedError),
    ):
        client.replay("ticks", "MNQ", "-1h", speed=0)


@pytest.mark.parametrize(
    ("datasets", "speed"),
    [
        ([], 1.0),
        (["ticks", "ticks"], 1.0),
        (["ticks"], -1.0),
        (["ticks"], float("nan")),
        (["ticks"], float("inf")),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(
    datasets: list[str], speed: float, client: tickflight.Client
) -> None:
    with pytest.raises(tickflight.InvalidRequestError):
        client.replay(datasets, "MNQ", "-1h", speed=speed)


class TestPaceInTheSdk:
    """The clock of a replay, driven by a test."""

    def test_it_keeps_time_to_the_step(self) -> None:
        clock = [100.0]
        pace = Pace(60, END, lambda: clock[0])
        receipts = [START + at * SECOND // 10 for at in range(36_000)]  # an hour
        late = []
        for receipt in receipts:
            while pace.now(receipt) < receipt:
                clock[0] += max(pace.seconds_to(receipt), 1e-6)
            late.append(clock[0] - 100.0 - (receipt - START) / SECOND / 60)
        assert min(late) > -1e-6
        assert max(late) < 0.006
        assert clock[0] - 100.0 == pytest.approx(60, rel=0.01)

    def test_what_was_received_after_the_end_is_due_with_it(self) -> None:
        clock = [0.0]
        pace = Pace(60, START + 60 * SECOND, lambda: clock[0])
        assert pace.now(START) == START
        assert pace.seconds_to(END) == pytest.approx(1.0)
        clock[0] = 1.0
        assert pace.now(END) > END
