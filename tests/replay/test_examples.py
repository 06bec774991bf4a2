"""The examples run, and a model says the same of a market live and replayed."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.momentum import Momentum, by_second
from storage.schemas import TIMESTAMP
from tests.replay.conftest import SECOND, START
from tickflightd.testing import RunningService

REPOSITORY = Path(__file__).parents[2]
LIVE_SECONDS = 8
HISTORY_SECONDS = 4
LATE_SECONDS = 5
"""How late rows may come from a demo that a busy machine holds up: a live stream does not wait for
them at its end, so what it says of its last seconds is not compared."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    directory = tmp_path_factory.mktemp("demo")
    with RunningService(directory, DEMO="1", DEMO_RATE="6000", SYMBOLS="MNQ") as service:
        yield service


def example(demo: RunningService, name: str, *words: str) -> list[str]:
    """Run an example as the README says, and return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *words],
        cwd=REPOSITORY,
        env={**demo.environment, "TICKFLIGHT_API_KEY": demo.demo_key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def instant(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()


@pytest.mark.slow
def test_a_model_says_the_same_live_and_replayed(demo: RunningService) -> None:
    time.sleep(HISTORY_SECONDS)  # so that the live run begins with history
    now = int(time.time())
    last = now + LIVE_SECONDS
    span = ["--start", instant(now - HISTORY_SECONDS), "--end", instant(last + LATE_SECONDS)]
    span += ["--deviations", "0"]  # speaks of nearly every second, however calm the market
    live = example(demo, "live_signals", "MNQ", *span)
    assert time.time() >= last
    said = before(live, last)
    assert said, "a demo in which nothing ever happens proves nothing"
    for speed in ("0", "60"):
        replayed = example(demo, "replay_signals", "MNQ", *span, "--speed", speed)
        assert before(replayed, last) == said


def before(lines: list[str], second: int) -> list[str]:
    return [line for line in lines if int(line.split()[0]) < second]


def market(rows: int) -> pa.RecordBatch:
    """A price that runs up and down, ten ticks a second."""
    instants = pa.array([START + row * SECOND // 10 for row in range(rows)]).cast(TIMESTAMP)
    return pa.record_batch(
        {
            "ts_event": instants,
            "symbol": ["MNQ"] * rows,
            "price": [100.0 + abs(row % 400 - 200) for row in range(rows)],
            "size": [1.0] * rows,
            "side": pa.array([1 if row % 400 >= 200 else -1 for row in range(rows)], pa.int8()),
        }
    )


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=20))
def test_a_model_does_not_care_how_rows_are_cut(cuts: list[int]) -> None:
    rows = market(600)
    whole = list(Momentum("MNQ").add(rows))
    model = Momentum("MNQ")
    borders = sorted({0, *cuts, 600})
    cut = [signal for a, b in pairwise(borders) for signal in model.add(rows.slice(a, b - a))]
    assert cut == whole
    assert {signal.side for signal in whole} == {"buy", "sell"}


def test_seconds_are_cut_where_they_change() -> None:
    parts = list(by_second(market(25)))
    assert [part.num_rows for _, part in parts] == [10, 10, 5]
    assert [second - START // SECOND for second, _ in parts] == [0, 1, 2]
