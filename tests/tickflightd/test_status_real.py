"""`status` of a real service whose processes are killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tickflight
from tickflight.reports import Status
from tickflightd.testing import RunningService

pytestmark = pytest.mark.slow  # each test starts a whole service

PATIENCE_SECONDS = 60.0


def status_when(client: tickflight.Client, holds: Callable[[Status], bool]) -> Status:
    """Ask until it holds; a server that is being restarted does not answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            status = client.status()
            if holds(status):
                return status
        except tickflight.UnavailableError:
            status = None
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def service(status: Status, name: str) -> dict[str, Any]:
    (found,) = [one for one in status.raw["services"] if one["name"] == name]
    return dict(found)


def is_running_again(name: str) -> Callable[[Status], bool]:
    def holds(status: Status) -> bool:
        found = [one for one in status.raw["services"] if one["name"] == name]
        return bool(found) and found[0]["state"] == "running" and found[0]["restarts"] == 1

    return holds


def test_a_source_that_was_killed_is_told_with_its_cause(tmp_path: Path) -> None:
    with (
        RunningService(tmp_path, DEMO="1") as running,
        tickflight.connect(running.uri, running.demo_key) as client,
    ):
        first = status_when(client, lambda status: not status.troubled)
        names = [one.name for one in first.services]
        parts = ["flight", "journal", "memory", "clock", "spot_checks", "rollover", "lake"]
        assert names == [*parts, "ingest.demo"]
        assert service(first, "ingest.demo")["restarts"] == 0

        os.kill(running.roles()["ingest demo"], signal.SIGKILL)
        in_trouble = status_when(client, lambda status: bool(status.troubled))
        assert service(in_trouble, "ingest.demo")["state"] in {"disconnected", "restarting"}

        again = service(status_when(client, is_running_again("ingest.demo")), "ingest.demo")
        assert again["since"] > service(first, "ingest.demo")["since"]
        assert "killed by SIGKILL" in str(again["detail"])


def test_a_server_that_was_killed_remembers_it(tmp_path: Path) -> None:
    with (
        RunningService(tmp_path, DEMO="1") as running,
        tickflight.connect(running.uri, running.demo_key) as client,
    ):
        first = client.status()
        os.kill(running.roles()["flight"], signal.SIGKILL)
        status = status_when(client, is_running_again("flight"))
        assert status.epoch == 2
        flight = service(status, "flight")
        assert flight["since"] > service(first, "flight")["since"]
        assert "killed by SIGKILL" in str(flight["detail"])
