"""What a newcomer's first ``make`` says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing has been made yet."""
    for name in ("Makefile", "pyproject.toml", "uv.lock", "client/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    return tmp_path


def make(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=checkout,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_is_the_default_and_names_every_target(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    phony = re.findall(r"^\.PHONY: ([a-z-]+)$", (checkout / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in done.stdout.splitlines()] == phony


@pytest.mark.parametrize("target", ["run", "setup", "test", "check"])
def test_a_python_that_is_too_old_is_one_sentence(target: str, checkout: Path) -> None:
    old = checkout / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = -V ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, target, f"PYTHON={old}")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed, found: Python 3.9.2" in done.stderr.splitlines()[0]
    assert not (checkout / ".tools").exists()
    assert not (checkout / ".venv").exists()


def test_nothing_is_made_twice(checkout: Path) -> None:
    version = re.search(r"^UV_VERSION := (.+)$", (checkout / "Makefile").read_text(), re.MULTILINE)
    assert version is not None
    for made in (f".tools/uv-{version[1]}.stamp", ".venv/run.stamp", ".venv/dev.stamp"):
        (checkout / made).parent.mkdir(parents=True, exist_ok=True)
        (checkout / made).touch()
    done = make(checkout, "setup")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout


def test_a_tool_that_tests_need_and_nobody_may_install_is_one_sentence(tmp_path: Path) -> None:
    for tool in ("sh", "id", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        [REPOSITORY / "scripts" / "test-tools"],
        env={"PATH": str(tmp_path)},  # neither redis-server nor apt-get
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tickflight: tests need redis-server. Install it")
    assert len(done.stderr.splitlines()) == 1


def test_tools_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "")
    done = subprocess.run(
        [REPOSITORY / "scripts" / "test-tools"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
