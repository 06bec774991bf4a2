"""``tickflightd lake …`` on a real lake, with and without a service."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.lake.layout import table_root
from storage.schemas import TICKS
from tests.lake.lake_making import tick_table, with_parts
from tickflightd.testing import RunningService, own_environment, tickflightd

Run = Callable[..., subprocess.CompletedProcess[str]]
FILES = 3


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A lake with three files of one date, away from the data directory."""
    place = tmp_path / "lake"
    with_parts(table_root(place, TICKS), [tick_table(100, 1 + 100 * n) for n in range(FILES)])
    return place


def damage(lake: Path) -> str:
    path = sorted(lake.rglob("*.parquet"))[1]
    content = bytearray(path.read_bytes())
    content[300] ^= 4
    path.write_bytes(content)
    return path.name


class TestWithoutService:
    @pytest.fixture
    def run(self, tmp_path: Path, lake: Path) -> Run:
        def run_there(*words: str) -> subprocess.CompletedProcess[str]:
            place = {"DATA_DIR": str(tmp_path / "data"), "LAKE_URI": str(lake), "DEMO": "0"}
            return tickflightd(*words, environment=own_environment(**place), cwd=tmp_path)

        return run_there

    def test_a_lake_in_order_is_said_to_be(self, run: Run) -> None:
        done = run("lake", "verify")
        assert done.returncode == 0, done.stderr
        assert "3 files, 300 rows" in done.stdout
        assert "all as they were written" in done.stdout

    def test_damage_is_named_with_what_to_do(self, run: Run, lake: Path) -> None:
        before = sorted(path for path in lake.rglob("*"))
        name = damage(lake)
        done = run("lake", "verify", "--json")
        assert done.returncode == 1
        answer = json.loads(done.stdout.splitlines()[-1])
        assert (answer["ok"], answer["files"]) == (False, FILES)
        (report,) = answer["damaged"]
        assert report["path"].endswith(name)
        said = run("lake", "verify", "--dataset", "ticks")
        assert said.returncode == 1
        assert f"{name}  DAMAGED: its bytes are not those that were committed" in said.stdout
        assert "backup" in said.stdout
        assert sorted(path for path in lake.rglob("*")) == before

    def test_an_unknown_table_is_a_wrong_usage(self, run: Run) -> None:
        done = run("lake", "verify", "--dataset", "tick")
        assert done.returncode == 2
        assert "the datasets are ticks" in done.stderr

    @pytest.mark.parametrize("command", ["status", "compact", "retain", "vacuum", "repair"])
    def test_what_needs_a_service_says_so(self, run: Run, command: str) -> None:
        done = run("lake", command)
        assert done.returncode == 2
        assert "start it with `tickflightd up`" in done.stderr


@pytest.mark.slow
def test_a_running_service_does_it_all(tmp_path: Path, lake: Path) -> None:
    settings = {"LAKE_URI": str(lake), "DEMO": "0"}

    def asked(running: RunningService, *words: str, code: int = 0) -> dict[str, Any]:
        done = running.run("lake", *words, "--json")
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    with RunningService(tmp_path, **settings) as running:
        assert asked(running, "verify", "--dataset", "ticks")["files"] == FILES
        assert asked(running, "verify")["ok"]
        (would,) = asked(running, "compact", "--dry-run")["joined"]
        (joined,) = asked(running, "compact")["joined"]
        assert (joined["files"], joined["rows"]) == (would["files"], would["rows"]) == (FILES, 300)
        assert asked(running, "retain", "--dry-run")["dropped"] == []
        assert asked(running, "vacuum")["removed"] == []
        sizes = {one["dataset"]: one for one in asked(running, "status")["tables"]}
        assert (sizes["ticks"]["files"], sizes["ticks"]["rows"]) == (1, 300)
        (joined_file,) = (lake / "ticks").rglob("compact-*.parquet")
        joined_file.write_bytes(joined_file.read_bytes()[:-1])
        (report,) = asked(running, "verify", "--dataset", "ticks", code=1)["damaged"]
        assert report["path"].endswith(joined_file.name)
        (repaired,) = asked(running, "repair")["repaired"]
        assert repaired["path"] == report["path"]
        (lake / "ticks" / repaired["became"]).unlink()
        assert asked(running, "verify", "--dataset", "ticks", code=1)["files"] == 1
        status = running.run("lake", "status")
        assert "degraded" in status.stdout
        assert "DAMAGED: it is missing" in status.stdout
