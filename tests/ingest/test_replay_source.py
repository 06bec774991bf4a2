"""Files played as if they were live: every row once, in order, when its time has come."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tickflight
from ingest.errors import ConfigurationError, ImportFileError
from ingest.ports import SystemClock
from ingest.replay import ReplayProgress, ReplaySource, open_tape, tape
from ingest.replay.source import STEP_SECONDS
from ingest.runner import RunOptions, RunState, run_source
from storage.schemas import TIMESTAMP, Flag

FIRST = 1_381_132_800_000_000
SECOND = 1_000_000


@dataclass
class Recorder:
    """Keeps what is written and when, and fails where a test wants it to."""

    clock: Any
    written: list[pa.RecordBatch] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    flushed: int = 0
    attempts: int = 0
    failing: frozenset[int] = frozenset()

    async def write(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        assert dataset == "ticks"
        assert isinstance(rows, pa.RecordBatch)
        self.attempts += 1
        if self.attempts in self.failing:
            raise tickflight.UnavailableError("the service has gone")
        self.written.append(rows)
        self.at.append(self.clock.monotonic())

    async def missed(self, dataset: str, symbol: str, start: int, end: int) -> None:
        raise AssertionError((dataset, symbol, start, end))

    async def remark(self, detail: str) -> None:
        raise AssertionError(detail)

    async def alive(self, heard: int | None = None) -> None:
        pass

    async def flush(self) -> None:
        self.flushed += 1

    def column(self, name: str) -> list[Any]:
        table = pa.Table.from_batches(self.written)
        values = table[name]
        return list((values.cast(pa.int64()) if name.startswith("ts_") else values).to_pylist())

    @property
    def arrivals(self) -> np.ndarray:
        """When each row was written."""
        return np.repeat(self.at, [batch.num_rows for batch in self.written])


def write_file(path: Path, instants: Sequence[int | None], **columns: Any) -> Path:
    prices = [100.0 + row for row in range(len(instants))]
    table = {"ts_event": pa.array(instants, pa.int64()).cast(TIMESTAMP), "price": prices}
    pq.write_table(pa.table({**table, "size": [1.0] * len(instants), **columns}), path)
    return path


def play(clock: Any, *paths: Path, speed: float = 1.0) -> Recorder:
    recorder = Recorder(clock)
    source = ReplaySource(open_tape(paths, symbol="SPY"), speed=speed, clock=clock)
    asyncio.run(source.run(recorder))
    return recorder


@pytest.mark.parametrize("speed", [0.5, 1.0, 60.0])
def test_rows_come_when_they_happened_at_that_speed(
    speed: float, clock: Any, tmp_path: Path
) -> None:
    instants = [FIRST + row * row * SECOND // 10 for row in range(100)]
    recorder = play(clock, write_file(tmp_path / "day", instants), speed=speed)
    due = (np.array(instants) - FIRST) / SECOND / speed
    late = recorder.arrivals - due
    # A row that the float clock finds due a hair too soon is sent the next time.
    assert late.min() > -1e-6
    assert late.max() <= STEP_SECONDS + 1e-6
    assert recorder.flushed == 1


def test_rows_due_together_go_out_together(clock: Any, tmp_path: Path) -> None:
    instants = [FIRST + row * 100 for row in range(10_000)]  # a second of 10,000 rows
    recorder = play(clock, write_file(tmp_path / "busy", instants))
    assert len(recorder.written) <= 1 / STEP_SECONDS + 2


def test_speed_zero_never_waits(clock: Any, tmp_path: Path) -> None:
    instants = [FIRST + row * SECOND for row in range(100)]
    recorder = play(clock, write_file(tmp_path / "day", instants), speed=0)
    assert clock.slept == []
    assert len(recorder.column("ts_event")) == 100


def test_the_market_s_clock_begins_now_and_keeps_distances(clock: Any, tmp_path: Path) -> None:
    received: list[int | None] = [FIRST + 7, None]
    path = write_file(
        tmp_path / "two",
        [FIRST, FIRST + 90 * SECOND],
        ts_recv=pa.array(received, pa.int64()).cast(TIMESTAMP),
    )
    now = clock.now()
    recorder = play(clock, path, speed=60)
    assert recorder.column("ts_event") == [now, now + 90 * SECOND]
    assert recorder.column("ts_recv") == [now + 7, now + 90 * SECOND]


def test_rows_say_what_they_are(clock: Any, tmp_path: Path) -> None:
    recorder = play(clock, write_file(tmp_path / "one", [FIRST]))
    assert recorder.column("source") == ["replay"]
    assert recorder.column("flags") == [Flag.VALID_TICK | Flag.SYNTHETIC]


def test_a_second_replay_of_a_file_repeats_no_sequence(clock: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "day", [FIRST + row for row in range(1_000)])
    one = play(clock, path).column("sequence")
    clock.time += 0.001
    other = play(clock, path).column("sequence")
    assert (np.diff(one) == 1).all()
    assert max(one) < min(other)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1))
def test_any_files_give_all_rows_in_order_of_time(
    parts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("parts")
    paths = [
        write_file(directory / str(number), [FIRST + instant for instant in part])
        for number, part in enumerate(parts)
    ]
    played = open_tape(paths, symbol="SPY")
    rows = pa.Table.from_batches(played.batches())
    instants = rows["ts_event"].cast(pa.int64()).to_pylist()
    assert instants == sorted(FIRST + instant for part in parts for instant in part)
    assert (played.rows, played.first, played.last) == (len(instants), instants[0], instants[-1])


def test_rows_without_a_time_are_counted_and_left_out(tmp_path: Path) -> None:
    played = open_tape([write_file(tmp_path / "day", [FIRST, None, FIRST + 1])], symbol="SPY")
    assert (played.rows, played.untimed) == (2, 1)
    assert sum(batch.num_rows for batch in played.batches()) == 2


def test_files_without_any_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="nothing to replay"):
        open_tape([write_file(tmp_path / "none", [None, None])], symbol="SPY")


def test_too_many_rows_to_sort_are_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "SORTED_ROWS_MAX", 2)
    in_order = write_file(tmp_path / "fine", [FIRST, FIRST + 1, FIRST + 2])
    assert open_tape([in_order], symbol="SPY").rows == 3
    mixed = write_file(tmp_path / "mixed", [FIRST, FIRST + 2, FIRST + 1])
    with pytest.raises(ImportFileError, match="sort by ts_event first"):
        open_tape([mixed], symbol="SPY")


@pytest.mark.parametrize("speed", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float, clock: Any, tmp_path: Path) -> None:
    played = open_tape([write_file(tmp_path / "one", [FIRST])], symbol="SPY")
    with pytest.raises(ConfigurationError, match="speed"):
        ReplaySource(played, speed=speed, clock=clock)


def test_a_replay_that_failed_goes_on_where_it_was(clock: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "day", [FIRST + row * SECOND for row in range(50)])
    failing = frozenset({1, 7, 8})
    recorder = Recorder(clock, failing=failing)
    source = ReplaySource(open_tape([path], symbol="SPY"), speed=10, clock=clock)
    for _ in failing:
        with pytest.raises(tickflight.UnavailableError):
            asyncio.run(source.run(recorder))
    asyncio.run(source.run(recorder))
    prices = [100.0 + row for row in range(50)]
    assert recorder.column("price") == prices


def test_a_file_that_goes_bad_meanwhile_ends_the_replay_for_good(
    clock: Any, service: Any, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "day", [FIRST])
    source = ReplaySource(open_tape([path], symbol="SPY"), speed=0, clock=clock)
    path.write_bytes(b"")
    result = asyncio.run(
        run_source(source, service, stop=asyncio.Event(), options=RunOptions(clock=clock))
    )
    assert result.state is RunState.FAILED
    assert "the file is empty" in (result.detail or "")


def test_progress_tells_rows_and_the_instant_of_the_tape(clock: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "two", [FIRST, FIRST + SECOND])
    news: list[ReplayProgress] = []
    source = ReplaySource(open_tape([path], symbol="SPY"), speed=1, clock=clock, report=news.append)
    asyncio.run(source.run(Recorder(clock)))
    assert [(one.rows, one.at) for one in news] == [(1, FIRST), (2, FIRST + SECOND)]


def test_what_was_played_is_durable_and_beyond_suspicion(
    client: tickflight.Client, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "day", [FIRST + row * SECOND for row in range(5_000)])
    source = ReplaySource(open_tape([path], symbol="SPY"), speed=0, clock=SystemClock())
    result = asyncio.run(run_source(source, client, stop=asyncio.Event()))
    assert result.state is RunState.STOPPED
    rows = client.latest("SPY", limit=10_000).arrow()
    assert rows.num_rows == 5_000
    # An hour ahead of the wall clock, which is no fault of a market with a clock of its own.
    assert set(rows["flags"].to_pylist()) == {Flag.VALID_TICK | Flag.SYNTHETIC}


def command(server: tuple[str, str], *words: str) -> tuple[list[str], dict[str, str]]:
    uri, key = server
    environment = {"TICKFLIGHT_FLIGHT_URI": uri, "TICKFLIGHT_API_KEY": key}
    return [sys.executable, "-m", "tickflightd", "ingest", "replay", *words], environment


def test_the_command_replays_to_the_end(
    server: tuple[str, str], client: tickflight.Client, tmp_path: Path, own_env: Any
) -> None:
    path = write_file(tmp_path / "day", [FIRST + row * SECOND for row in range(120)])
    words, environment = command(server, str(path), "--symbol", "SPY.R", "--speed", "600")
    done = subprocess.run(
        words, env=own_env(environment), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "120 of 120 rows replayed as SPY.R\n"
    assert client.latest("SPY.R", limit=1_000).arrow().num_rows == 120


def test_an_interrupted_replay_ends_cleanly_with_what_it_sent(
    server: tuple[str, str], client: tickflight.Client, tmp_path: Path, own_env: Any
) -> None:
    path = write_file(tmp_path / "day", [FIRST + row * SECOND for row in range(1_000)])
    words, environment = command(server, str(path), "--symbol", "SPY", "--speed", "1")
    with subprocess.Popen(
        words, env=own_env(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not client.latest("SPY").arrow().num_rows:
                assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
        said, logged = process.communicate(timeout=30)
    assert process.returncode == 0, logged
    assert "Traceback" not in logged
    sent = int(said.split()[0])
    assert 0 < sent < 1_000
    assert client.latest("SPY", limit=1_000).arrow().num_rows == sent
