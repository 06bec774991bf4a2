"""`tickflightd up` as people and service managers meet it: real processes, ports and signals."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tickflight
from tickflightd.testing import RunningService, is_alive, own_environment, tickflightd

pytestmark = pytest.mark.slow  # each test starts a whole service

REPOSITORY = Path(__file__).parents[2]
PROMISED_STOP_SECONDS = 5.0
PROMISED_DEATH_SECONDS = 1.0
PATIENCE_SECONDS = 30.0


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A demo that tests look at, and none stops."""
    with RunningService(tmp_path_factory.mktemp("demo"), DEMO="1") as service:
        yield service


class TestDemo:
    def test_ready_is_printed_once_and_last(self, demo: RunningService) -> None:
        lines = demo.output.splitlines()
        assert lines[-1] == f"ready flight={demo.uri}"
        assert [line for line in lines if line.startswith("ready")] == lines[-1:]

    def test_every_symbol_has_ticks_once_it_is_ready(self, demo: RunningService) -> None:
        with tickflight.connect(demo.uri, demo.demo_key) as client:
            table = client.latest(["MES", "MNQ", "NQ", "SPY", "QQQ", "VIX"], limit=1).arrow()
        assert sorted(table["symbol"].to_pylist()) == ["MES", "MNQ", "NQ", "QQQ", "SPY", "VIX"]

    def test_the_printed_key_reads_and_does_nothing_else(self, demo: RunningService) -> None:
        records = json.loads(demo.run("keys", "list", "--json").stdout)["keys"]
        (record,) = [one for one in records if one["id"] == demo.demo_key.split("_")[1]]
        assert record["model"] == "demo"
        assert record["scopes"] == ["read:history", "read:realtime"]
        assert record["expires"] is not None

    def test_the_printed_commands_work_in_a_second_terminal(self, demo: RunningService) -> None:
        commands = [line for line in demo.output.splitlines() if " TICKFLIGHT_API_KEY=" in line]
        assert len(commands) == 2
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", command],
                env=own_environment(),
                cwd=demo.directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert "MNQ" in done.stdout

    def test_commands_of_the_same_machine_find_their_key(self, demo: RunningService) -> None:
        path = demo.directory / "data" / "demo" / "local.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        local = json.loads(path.read_text())
        assert local["uri"] == demo.uri
        with tickflight.connect(local["uri"], local["key"]) as client:
            assert client.symbols("ticks")

    def test_no_secret_is_on_a_command_line_or_in_the_log(self, demo: RunningService) -> None:
        for pid in (demo.process.pid, *demo.roles().values()):
            assert b"tf_" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert demo.demo_key not in demo.log
        assert (
            json.loads((demo.directory / "data/demo/local.key").read_text())["key"] not in demo.log
        )

    def test_every_role_is_deaf_to_the_terminal(self, demo: RunningService) -> None:
        ours = os.getpgid(demo.process.pid)
        assert ours not in [os.getpgid(pid) for pid in demo.roles().values()]

    def test_a_second_service_on_its_directory_is_refused(self, demo: RunningService) -> None:
        other = {**demo.environment, "TICKFLIGHT_FLIGHT_URI": "grpc://127.0.0.1:0"}
        done = tickflightd("up", environment=other, cwd=demo.directory)
        assert done.returncode == 2
        assert "a service is running on" in done.stderr.splitlines()[-1]
        with tickflight.connect(demo.uri, demo.demo_key) as client:
            assert client.symbols("ticks"), "the first one is unharmed"

    def test_a_second_server_on_its_directory_is_refused(self, demo: RunningService) -> None:
        other = {**demo.environment, "TICKFLIGHT_FLIGHT_URI": "grpc://127.0.0.1:0"}
        done = tickflightd("flight", environment=other, cwd=demo.directory)
        assert done.returncode == 2
        assert "a service is running on" in done.stderr.splitlines()[-1]

    def test_its_port_is_refused_to_another_service(
        self, demo: RunningService, tmp_path: Path
    ) -> None:
        other = {**demo.environment, "TICKFLIGHT_DATA_DIR": str(tmp_path / "other")}
        done = tickflightd("up", environment=other, cwd=tmp_path)
        assert done.returncode == 2
        port = demo.uri.rpartition(":")[2]
        assert f"port {port} on 127.0.0.1 is in use" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "other").exists(), "nothing was created"

    def test_a_new_key_works_at_once_and_a_revoked_one_soon_not_at_all(
        self, demo: RunningService
    ) -> None:
        made = demo.run("keys", "create", "model", "--symbol", "SPY", "--json")
        new = json.loads(made.stdout.splitlines()[-1])
        with tickflight.connect(demo.uri, new["key"]) as client:
            assert client.latest("SPY").arrow().num_rows > 0
            with pytest.raises(tickflight.PermissionDeniedError):
                client.latest("MNQ").arrow()
            assert demo.run("keys", "revoke", new["id"]).returncode == 0

            def refused() -> bool:
                try:
                    client.symbols()
                except tickflight.AuthenticationError:
                    return True
                return False

            assert within(PATIENCE_SECONDS, refused)


@pytest.fixture
def file(demo: RunningService) -> Path:
    """A file of ticks whose column of times has a name of its own."""
    path = demo.directory / "ticks.csv"
    rows = [f"2026-03-02T15:30:{second:02}.5Z,500.25,{second + 1}" for second in range(60)]
    path.write_text("\n".join(["time,price,size", *rows]))
    return path


class TestImport:
    def import_it(self, demo: RunningService, file: Path, *more: str) -> dict[str, Any]:
        words = ["import", "ticks", str(file), "--symbol", "REAL", "--map", "ts_event=time"]
        done = demo.run(*words, "--json", *more)
        assert done.returncode == 0, done.stderr
        (report,) = json.loads(done.stdout.splitlines()[-1])["files"]
        return dict(report)

    def test_a_file_is_visible_when_the_command_returns_and_imported_once(
        self, demo: RunningService, file: Path
    ) -> None:
        first = self.import_it(demo, file)
        assert (first["outcome"], first["rows"]) == ("imported", 60)
        second = self.import_it(demo, file)
        assert second["outcome"] == "already imported"
        with tickflight.connect(demo.uri, demo.demo_key) as client:
            table = client.latest("REAL", limit=1_000).arrow()
        assert table["size"].to_pylist() == [float(second + 1) for second in range(60)]

    def test_a_file_that_is_none_is_one_sentence(self, demo: RunningService) -> None:
        (demo.directory / "noise.csv").write_bytes(bytes(range(256)))
        done = demo.run("import", "ticks", "noise.csv", "--symbol", "REAL")
        assert done.returncode in (1, 2)
        assert "noise.csv" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    def test_columns_that_are_missing_are_named(self, demo: RunningService, file: Path) -> None:
        done = demo.run("import", "ticks", str(file), "--symbol", "REAL")
        assert done.returncode == 2
        assert "--map ts_event=COLUMN" in done.stderr


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_stops_it_cleanly_in_time(
        self, number: signal.Signals, tmp_path: Path
    ) -> None:
        with RunningService(tmp_path, DEMO="1") as service:
            roles = service.roles()
            begun = time.monotonic()
            assert service.stop(number) == 0, service.log
            assert time.monotonic() - begun < PROMISED_STOP_SECONDS
        assert not any(map(is_alive, roles.values()))
        assert not (tmp_path / "data" / "demo" / "local.key").exists()

    def test_its_own_keys_die_with_it(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="1") as service:
            key = json.loads((tmp_path / "data/demo/local.key").read_text())["key"]
            demo_key = service.demo_key
        with RunningService(tmp_path, DEMO="1") as service:
            with tickflight.connect(service.uri, demo_key) as client:
                assert client.symbols("ticks"), "the demo's key outlives a restart"
            with (
                tickflight.connect(service.uri, key) as client,
                pytest.raises(tickflight.AuthenticationError),
            ):
                client.symbols()

    def test_a_hanging_role_does_not_hold_it_up(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="0") as service:
            os.kill(service.roles()["flight"], signal.SIGSTOP)
            begun = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - begun < PROMISED_STOP_SECONDS

    def test_a_second_interrupt_forces_it(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="0") as service:
            flight = service.roles()["flight"]
            os.kill(flight, signal.SIGSTOP)
            service.process.send_signal(signal.SIGINT)
            assert within(PATIENCE_SECONDS, lambda: "once more to force" in service.log)
            time.sleep(0.4)  # sooner would be the same key press
            assert service.stop(signal.SIGINT) == 1
        assert not is_alive(flight)

    def test_killed_it_takes_every_role_along(self, tmp_path: Path) -> None:
        service = RunningService(tmp_path, DEMO="1")
        roles = service.roles()
        assert sorted(roles) == ["flight", "ingest demo"]
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
        gone = within(PROMISED_DEATH_SECONDS, lambda: not any(map(is_alive, roles.values())))
        assert gone

    def test_killed_it_can_be_started_again_at_once(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            uri = f"grpc://127.0.0.1:{probe.getsockname()[1]}"
        first = RunningService(tmp_path, DEMO="1", FLIGHT_URI=uri)
        key = json.loads((tmp_path / "data/demo/local.key").read_text())["key"]
        first.stop(signal.SIGKILL)
        with RunningService(tmp_path, DEMO="1", FLIGHT_URI=uri) as second:
            assert second.uri == uri
            with (
                tickflight.connect(uri, key) as client,
                pytest.raises(tickflight.AuthenticationError),
            ):
                client.symbols()  # what the first one left is revoked


class TestCrash:
    def test_a_crashed_server_comes_back_where_it_was(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="1") as service:
            before = service.roles()
            with tickflight.connect(service.uri, service.demo_key) as client:
                held = {one.symbol: one.rows for one in client.symbols("ticks")}
                os.kill(before["flight"], signal.SIGKILL)

                def has_more() -> bool:
                    try:
                        now = {one.symbol: one.rows for one in client.symbols("ticks")}
                    except tickflight.UnavailableError:
                        return False
                    return all(now.get(symbol, 0) > rows for symbol, rows in held.items())

                assert within(PATIENCE_SECONDS, has_more), service.log
            after = service.roles()
            assert after["flight"] != before["flight"]
            assert after["ingest demo"] == before["ingest demo"]
            assert service.output.count("ready flight=") == 1
            assert service.stop() == 0

    def test_a_crashed_source_comes_back(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="1") as service:
            before = service.roles()
            os.kill(before["ingest demo"], signal.SIGKILL)
            came_back = within(
                PATIENCE_SECONDS,
                lambda: (
                    service.roles().get("ingest demo", before["ingest demo"])
                    != before["ingest demo"]
                ),
            )
            assert came_back, service.log
            assert service.roles()["flight"] == before["flight"]


class TestWithoutASource:
    def test_it_becomes_ready_and_shows_no_key(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, DEMO="0") as service:
            assert service.output == f"ready flight={service.uri}\n"
            assert list(service.roles()) == ["flight"]
            made = json.loads(service.run("keys", "create", "me", "--json").stdout)
            with tickflight.connect(service.uri, made["key"]) as client:
                assert client.symbols() == ()

    def test_a_source_this_version_lacks_is_told(self, tmp_path: Path) -> None:
        with RunningService(tmp_path, GEXBOT_API_KEY="hunter2hunter2") as service:
            assert list(service.roles()) == ["flight"]
            assert "gexbot" in service.log
            assert "hunter2" not in service.log


class TestRefusal:
    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"DATA_DIR": "/proc/self/data"}, "can't be written"),
            ({"FLIGHT_URI": "grpc://0.0.0.0:0"}, "SSH tunnel"),
            ({"HOT_WINDOW": "soon"}, "TICKFLIGHT_HOT_WINDOW"),
        ],
    )
    def test_what_can_not_work_is_one_sentence_and_exit_code_two(
        self, settings: dict[str, str], reason: str, tmp_path: Path
    ) -> None:
        environment = own_environment(**{"FLIGHT_URI": "grpc://127.0.0.1:0", **settings})
        done = tickflightd("up", environment=environment, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == [], "nothing was created"

    def test_a_role_whose_supervisor_is_gone_ends_at_once(self, tmp_path: Path) -> None:
        done = tickflightd(
            "flight", "--supervisor", "1", environment=own_environment(), cwd=tmp_path
        )
        assert done.returncode == os.EX_UNAVAILABLE
        assert list(tmp_path.iterdir()) == []

    def test_another_distribution_s_storage_is_refused(self, tmp_path: Path) -> None:
        impostor = tmp_path / "storage"
        impostor.mkdir()
        (impostor / "__init__.py").touch()
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
            "from tickflightd.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, "keys", "list"],
            env=own_environment(DATA_DIR=str(tmp_path / "data")),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "the package storage was found in" in done.stderr
