"""What the machine must be able to do for these tests.

Without it they are skipped by name, and fail where everything was asked for (``make test-hard``).
"""

import os
import subprocess

import pytest

from tests.crash.recording import missing_tool


def require(request: pytest.FixtureRequest, missing: str | None) -> None:
    """Skip the test for what is missing, or fail it where it is to be run whatever it takes."""
    if missing is None:
        return
    if request.node.get_closest_marker("hard") is not None:
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def missing_tracer() -> str | None:
    return missing_tool()


@pytest.fixture
def tracer(request: pytest.FixtureRequest, missing_tracer: str | None) -> None:
    """System calls can be watched and tampered with."""
    require(request, missing_tracer)


@pytest.fixture(scope="session")
def missing_right(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    directory = str(tmp_path_factory.mktemp("mounted"))
    if os.geteuid() != 0:
        return "needs root, to mount a file system"
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        return f"file systems can't be mounted here: {tried.stderr.strip()}"
    subprocess.run(["umount", directory], check=True)
    return None


@pytest.fixture
def mounts(request: pytest.FixtureRequest, missing_right: str | None) -> None:
    """File systems can be mounted."""
    require(request, missing_right)
