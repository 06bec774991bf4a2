"""Real days, real processes: bars are what another engine makes of the same file."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import tickflight
from ingest.files import import_ticks
from tests.flight_server.conftest import new_key, serving
from tickflightd.testing import RunningService

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "ticks"
DAYS = ("2013-10-07", "2013-10-08")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    paths = [SAMPLES / f"spy-{day}.trades.parquet" for day in DAYS]
    if not all(path.exists() for path in paths):
        if "CI" in os.environ:
            pytest.fail(f"sample files are missing in {SAMPLES}")
        pytest.skip("sample files are not here")
    return paths


@pytest.fixture(scope="module")
def client(
    files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tickflight.Client]:
    """A client of a server that has both days."""
    directory = tmp_path_factory.mktemp("spy")
    with (
        serving(directory) as house,
        tickflight.connect(house.service.uri, new_key(directory)) as client,
    ):
        import_ticks(client, files, symbol="SPY")
        yield client


def by_polars(files: list[Path], every: str) -> pl.DataFrame:
    tape = pl.concat([pl.read_parquet(path) for path in files])
    price, size = pl.col("price"), pl.col("size")
    return tape.group_by_dynamic("ts_event", every=every).agg(
        open=price.first(),
        high=price.max(),
        low=price.min(),
        close=price.last(),
        volume=size.sum(),
        vwap=(price * size).sum() / size.sum(),
        trades=pl.len().cast(pl.Int64),
    )


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["1s", "1m", "5m", "4h", "1d"])
def test_bars_of_real_days_are_those_of_polars(
    client: tickflight.Client, files: list[Path], interval: str
) -> None:
    expected = by_polars(files, interval)
    found = client.bars("SPY", interval, "2013-10-07", "2013-10-09").polars()
    exact = [name for name in expected.columns if name != "vwap"]
    assert found.select(exact).equals(expected.select(exact))
    error = (found["vwap"] - expected["vwap"]).abs().max()
    assert isinstance(error, float)
    assert error < 1e-9


@pytest.mark.slow
def test_the_bars_of_a_running_demo_are_those_of_its_ticks(tmp_path: Path) -> None:
    with (
        RunningService(tmp_path, DEMO="1") as running,
        tickflight.connect(running.uri, running.demo_key) as client,
    ):
        while len(client.bars("MNQ", "1s", "-1h")) < 3:  # the first is over by then
            time.sleep(0.05)
        command = [sys.executable, "-m", "tickflight.cli", "--uri", running.uri, "bars", "MNQ"]
        environment = {**running.environment, "TICKFLIGHT_API_KEY": running.demo_key}
        done = subprocess.run(
            [*command, "--interval", "1s", "--format", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        shown = [json.loads(line) for line in done.stdout.splitlines()]
        start, end = shown[0]["ts_event"], shown[0]["ts_recv"]
        ticks = client.ticks("MNQ", start.replace(" ", "T"), end.replace(" ", "T")).polars()
    assert shown[0]["trades"] == len(ticks)
    assert shown[0]["volume"] == ticks["size"].sum()
    assert (shown[0]["open"], shown[0]["close"]) == (ticks["price"][0], ticks["price"][-1])
