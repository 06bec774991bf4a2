"""``tickflightd journal …`` on real files, with and without a service."""

import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage.ports import SystemClock, SystemDisk
from storage.schemas import JOBS
from storage.selection import SourcePolicy
from storage.store import Store, StoreConfig
from tests.storage.conftest import rows_of, until
from tickflightd import directory
from tickflightd.testing import own_environment, tickflightd

Run = Callable[..., subprocess.CompletedProcess[str]]
RECORDS = 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory whose journal has three records."""
    return filled(StoreConfig(tmp_path / "data", 1 << 30, SourcePolicy(("demo",), fresh_us=1)))


def filled(config: StoreConfig, *, rolled: bool = False) -> Path:
    """Journal three records, and have them rolled over if told to; return the data directory."""
    failures: list[BaseException] = []
    store = Store(config, clock=SystemClock(), disk=SystemDisk(), on_failure=failures.append)
    job = {"job_id": "j", "kind": "k", "payload": "{}", "state": "s", "priority": "p"}
    instants = {"ts_event": 1_790_000_000_000_000, "ts_recv": 1_790_000_000_000_000}
    for _ in range(RECORDS):
        stream = store.open_stream("jobs", JOBS.schema)
        stream.push(rows_of(JOBS, 2, job | instants))
        stream.end()
        while stream.next_ack() is not None:
            pass
    if rolled:
        number = store.rollover.begin(everything=True)
        until(lambda: store._segments.newest >= number)
        store.rollover.step()
    store.close()
    assert failures == []
    return config.directory


@pytest.fixture
def run(data: Path) -> Run:
    """Run a command on the data directory."""

    def run_there(*words: str) -> subprocess.CompletedProcess[str]:
        environment = own_environment(DATA_DIR=str(data), DEMO="0")
        return tickflightd(*words, environment=environment, cwd=data)

    return run_there


def damage(data: Path) -> Path:
    (path,) = (data / "journal").glob("*.journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE records SET body = zeroblob(length(body)) WHERE id = 2")
    return path


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fields


def test_an_intact_journal_verifies(run: Run) -> None:
    done = run("journal", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 records  6 rows  OK" in done.stdout
    assert answer(run("journal", "verify", "--json"))["ok"] is True
    assert "nothing is damaged" in run("journal", "repair").stdout


def test_damage_is_named_repaired_and_told(run: Run, data: Path) -> None:
    path = damage(data)
    done = run("journal", "verify")
    assert done.returncode == 1
    assert f"{path.name}  1 records  2 rows  DAMAGED, record 2, byte " in done.stdout
    assert "tickflightd journal repair" in done.stderr
    done = run("journal", "repair")
    assert done.returncode == 0, done.stderr
    assert "LOST 2 rows of jobs" in done.stdout
    assert "journal.damaged-" in done.stdout.splitlines()[-1]
    assert run("journal", "verify").returncode == 0


def test_what_a_lake_elsewhere_has_is_not_lost(tmp_path: Path) -> None:
    policy = SourcePolicy(("demo",), fresh_us=1)
    lake = tmp_path / "elsewhere"
    data = filled(StoreConfig(tmp_path / "data", 1 << 30, policy, lake=lake), rolled=True)
    for path in (data / "journal").glob("*.journal"):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE records SET body = zeroblob(length(body)) WHERE id = 2")
    environment = own_environment(DATA_DIR=str(data), DEMO="0", LAKE_URI=str(lake))
    done = tickflightd("journal", "repair", "--json", environment=environment, cwd=data)
    assert answer(done)["repaired"] is True
    assert answer(done)["lost"] == []


def test_a_repair_answers_programs_with_counts_and_spans(run: Run, data: Path) -> None:
    path = damage(data)
    (file,) = answer(run("journal", "verify", "--json"))["files"]
    assert (file["file"], file["record"], file["ok"]) == (str(path), 2, False)
    told = answer(run("journal", "repair", "--json"))
    assert told["repaired"] is True
    (lost,) = told["lost"]
    assert (lost["dataset"], lost["rows"]) == ("jobs", 2)


def test_a_service_that_runs_is_not_repaired_under_its_feet(run: Run, data: Path) -> None:
    damage(data)
    with directory.owned(data, directory.FLIGHT_LOCK):
        done = run("journal", "repair")
    assert done.returncode == 2
    assert "stop it" in done.stderr


def test_a_server_that_refuses_a_damaged_journal_says_what_to_run(run: Run, data: Path) -> None:
    path = damage(data)
    done = run("flight")
    assert done.returncode == 1
    assert path.name in done.stderr
    assert "tickflightd journal repair" in done.stderr
    assert "Traceback" not in done.stderr
