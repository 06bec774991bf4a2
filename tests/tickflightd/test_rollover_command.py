"""``tickflightd rollover`` against a service that runs."""

import json
from pathlib import Path

import polars as pl
import pytest

from tickflightd.testing import RunningService, own_environment, tickflightd

pytestmark = pytest.mark.slow  # each test starts a whole service


def test_the_running_hour_is_in_the_lake_when_the_command_returns(tmp_path: Path) -> None:
    with RunningService(tmp_path, DEMO="1", LAKE_URI=str(tmp_path / "lake")) as running:
        done = running.run("rollover", "--all", "--json")
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["rows"] > 0
        rows = pl.scan_delta(str(tmp_path / "lake" / "demo" / "ticks")).select(pl.len())
        assert rows.collect().item() > 0
        again = running.run("rollover")
        assert "nothing to do" in again.stdout


def test_without_a_service_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = tickflightd("rollover", environment=own_environment(), cwd=tmp_path)
    assert done.returncode != 0
    assert "tickflightd up" in done.stderr
