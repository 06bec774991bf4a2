"""`tickflightd doctor` as it is typed: without a service, beside one, and where all is wrong."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tickflightd.testing import RunningService, own_environment, tickflightd

pytestmark = pytest.mark.slow  # each test starts a whole service


def examined(directory: Path, **settings: str) -> tuple[int, dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {"FLIGHT_URI": f"grpc://127.0.0.1:{port}", "DATA_DIR": str(directory / "data")}
    environment = own_environment(**{**defaults, **settings})
    done = tickflightd("doctor", "--json", environment=environment, cwd=directory)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def texts(report: dict[str, Any], check: str) -> str:
    return "\n".join(one["text"] for one in report["findings"] if one["check"] == check)


def test_a_machine_without_a_service_is_examined_and_left_as_it_was(tmp_path: Path) -> None:
    code, report = examined(tmp_path)
    assert code == 0, report
    checks = {one["check"] for one in report["findings"]}
    assert {"versions", "settings", "directory", "disk", "space", "clock", "port"} <= checks
    assert {"service", "keys", "journal", "memory", "permissions"} <= checks
    assert "no service runs here" in texts(report, "service")
    assert list(tmp_path.iterdir()) == []


def test_a_running_service_is_examined_too(tmp_path: Path) -> None:
    with RunningService(tmp_path, DEMO="1") as running:
        done = running.run("doctor")
        assert done.returncode == 0, done.stdout
        assert "is the service's" in done.stdout
        assert "answers, epoch 1" in done.stdout
        assert "1 files" in done.stdout
        assert "1 valid" in done.stdout
        assert "fail" not in done.stdout
    leftover = list((tmp_path / "data" / "demo").glob(".doctor-*"))
    assert leftover == []


def test_every_failure_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TICKFLIGHT_TT_SECRET=x\n")
    (tmp_path / ".env").chmod(0o644)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        uri = f"grpc://127.0.0.1:{stranger.getsockname()[1]}"
        code, report = examined(tmp_path, FLIGHT_URI=uri)
    assert code == 1
    failed = {one["check"]: one for one in report["findings"] if one["level"] == "fail"}
    assert set(failed) == {"permissions", "port"}
    assert all(one["advice"] for one in failed.values())


def test_a_certificate_that_can_not_be_used_fails(tmp_path: Path) -> None:
    files = {"TLS_CERT": str(tmp_path / "no.crt"), "TLS_KEY": str(tmp_path / "no.key")}
    code, report = examined(tmp_path, FLIGHT_URI="grpc+tls://127.0.0.1:1", **files)
    assert code == 1
    assert "no.crt can't be read" in texts(report, "certificate")


def test_settings_that_can_not_be_used_end_the_examination(tmp_path: Path) -> None:
    code, report = examined(tmp_path, DEMO_RATE="many")
    assert code == 1
    last = report["findings"][-1]
    assert (last["check"], last["level"]) == ("settings", "fail")
    assert "TICKFLIGHT_DEMO_RATE" in last["text"]


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    environment = own_environment()
    assert (
        tickflightd("doctor", "--nonsense", environment=environment, cwd=tmp_path).returncode == 2
    )
