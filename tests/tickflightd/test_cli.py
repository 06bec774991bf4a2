"""The command line without a service behind it."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tickflightd.testing import own_environment, tickflightd

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty working directory."""

    def run_there(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return tickflightd(*words, environment=own_environment(**settings), cwd=tmp_path)

    return run_there


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("up", "flight", "ingest", "keys", "import"):
        assert command in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from tickflightd.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "rich_click" in loaded
    assert not loaded & {"asyncio", "numpy", "pyarrow", "pydantic", "sqlite3", "structlog"}


def test_the_version_is_the_distribution_s(run: Run) -> None:
    assert run("--version").stdout.startswith("tickflightd 0.")


@pytest.mark.parametrize("words", [["nonsense"], ["ingest", "nonsense"], ["keys", "create"]])
def test_wrong_usage_is_exit_code_two(words: list[str], run: Run) -> None:
    assert run(*words).returncode == 2


def test_a_misspelt_setting_is_a_warning_and_no_obstacle(run: Run) -> None:
    done = run("keys", "list", DATADIR="x")
    assert done.returncode == 0
    assert "did you mean TICKFLIGHT_DATA_DIR?" in done.stderr


class TestKeys:
    def test_a_new_key_is_the_last_line_of_stdout(self, run: Run) -> None:
        done = run("keys", "create", "model", "--expires", "90d", "--json")
        assert done.returncode == 0, done.stderr
        new = json.loads(done.stdout.splitlines()[-1])
        assert new["key"].startswith(f"tf_{new['id']}_")

    def test_it_is_shown_to_people_too(self, run: Run) -> None:
        done = run("keys", "create", "model")
        assert "tf_" in done.stdout
        assert "can't be shown again" in done.stderr

    def test_default_scopes_are_for_reading(self, run: Run) -> None:
        run("keys", "create", "model")
        (record,) = json.loads(run("keys", "list", "--json").stdout)["keys"]
        assert record["scopes"] == ["read:history", "read:realtime"]
        assert record["symbols"] is None
        assert record["expires"] is None

    def test_scopes_and_symbols_are_as_asked(self, run: Run) -> None:
        words = ["--scope", "write", "--scope", "sql", "--symbol", "SPY", "--symbol", "MNQ"]
        run("keys", "create", "model", *words)
        (record,) = json.loads(run("keys", "list", "--json").stdout)["keys"]
        assert record["scopes"] == ["sql", "write"]
        assert record["symbols"] == ["MNQ", "SPY"]

    def test_a_rate_stays_with_the_key_that_replaces_it(self, run: Run) -> None:
        old = json.loads(run("keys", "create", "model", "--rate", "5", "--json").stdout)
        run("keys", "rotate", old["id"])
        records = json.loads(run("keys", "list", "--json").stdout)["keys"]
        assert [record["rate"] for record in records] == [5, 5]
        assert [record["last_used"] for record in records] == [None, None]
        assert "5 calls/s  never used" in run("keys", "list").stdout

    def test_a_rotated_key_replaces_the_old_one(self, run: Run) -> None:
        old = json.loads(run("keys", "create", "model", "--json").stdout)
        new = json.loads(run("keys", "rotate", old["id"], "--json").stdout)
        assert new["id"] != old["id"]
        records = json.loads(run("keys", "list", "--json").stdout)["keys"]
        states = {record["id"]: record["state"] for record in records}
        assert states == {old["id"]: "revoked", new["id"]: "valid"}

    def test_no_list_shows_a_secret(self, run: Run) -> None:
        key = json.loads(run("keys", "create", "model", "--json").stdout)["key"]
        secret = key.rpartition("_")[2]
        for words in (["keys", "list"], ["keys", "list", "--json"]):
            assert secret not in run(*words).stdout

    def test_a_damaged_key_is_named_and_a_repair_keeps_the_others(
        self, run: Run, tmp_path: Path
    ) -> None:
        ids = [
            json.loads(run("keys", "create", model, "--json").stdout)["id"] for model in ("a", "b")
        ]
        assert "nothing is damaged" in run("keys", "repair").stdout
        (path,) = tmp_path.rglob("control.db")
        path.write_bytes(path.read_bytes().replace(ids[0].encode(), ids[0].encode().swapcase()))
        listed = run("keys", "list")
        assert listed.returncode == 1
        assert "control.db is damaged" in listed.stderr
        assert "tickflightd keys repair" in listed.stderr
        done = json.loads(run("keys", "repair", "--json").stdout)
        assert (done["kept"]["keys"], done["lost"]["keys"]) == (1, 1)
        assert ids[1] in run("keys", "list").stdout

    @pytest.mark.parametrize(
        ("words", "code", "reason"),
        [
            (["create", "model", "--scope", "everything"], 2, "read:realtime"),
            (["create", "model", "--expires", "soon"], 2, "90s, 15m, 1h"),
            (["create", "model", "--symbol", "spy"], 2, "not a symbol"),
            (["create", "model", "--rate", "0"], 2, "calls a second"),
            (["create", "bad model"], 2, "model id"),
            (["create", "tickflightd:flight"], 2, "the service's own"),
            (["revoke", "nothing"], 1, "no key with this id"),
            (["rotate", "nothing"], 1, "no key with this id"),
        ],
    )
    def test_what_can_not_be_done_is_one_sentence(
        self, words: list[str], code: int, reason: str, run: Run
    ) -> None:
        done = run("keys", *words)
        assert done.returncode == code
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_they_lie_where_the_service_looks_for_them(self, run: Run, tmp_path: Path) -> None:
        run("keys", "create", "model")
        run("keys", "create", "model", DEMO="0")
        for place in ("data/demo/control.db", "data/control.db"):
            assert stat.S_IMODE((tmp_path / place).stat().st_mode) == 0o600


class TestImport:
    def test_without_a_service_it_says_how_to_start_one(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "ticks.csv").write_text("ts_event,price,size\n")
        done = run("import", "ticks", "ticks.csv", "--symbol", "SPY")
        assert done.returncode == 2
        assert "tickflightd up" in done.stderr

    def test_a_file_that_is_not_there_is_wrong_usage(self, run: Run) -> None:
        assert run("import", "ticks", "nothing.csv", "--symbol", "SPY").returncode == 2

    def test_a_mapping_that_is_none_is_wrong_usage(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "ticks.csv").write_text("ts_event,price,size\n")
        done = run("import", "ticks", "ticks.csv", "--symbol", "SPY", "--map", "price")
        assert done.returncode == 2
        assert "FIELD=COLUMN" in done.stderr
