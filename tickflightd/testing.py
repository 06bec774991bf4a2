"""A whole service of a test's own: real processes, a free port, a directory nobody else uses."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tickflightd.settings import PREFIX

START_SECONDS: Final = 60.0
"""A loaded machine imports slowly; a service that needs longer is broken."""
STOP_SECONDS: Final = 30.0
"""Far beyond the five seconds that are promised, so that a late stop is seen and not cut off."""
_POLL_SECONDS: Final = 0.02
_READY: Final = re.compile(r"^ready flight=(\S+)$", re.MULTILINE)
_KEY: Final = re.compile(r"\btf_\w+")


def own_environment(**settings: str) -> dict[str, str]:
    """Return an environment with these settings and none of the machine's.

    Args:
        settings: Values by name without the prefix, such as ``DEMO="0"``.
    """
    rest = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**rest, **{f"{PREFIX}{name}": value for name, value in settings.items()}}


def tickflightd(
    *words: str, environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(  # noqa: S603 - our own command
        _command(*words),
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def _command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tickflightd", *words]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class RunningService:
    """A service started with ``tickflightd up``; as a context, it is stopped on the way out.

    Args:
        directory: Becomes its working directory; its data goes below.
        settings: Values by name without the prefix, besides the address and the data directory.

    Raises:
        AssertionError: It ended instead of becoming ready; the text holds its log.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        defaults = {"FLIGHT_URI": "grpc://127.0.0.1:0", "DATA_DIR": str(directory / "data")}
        self.environment = own_environment(**{**defaults, **settings})
        self.directory = directory
        self._log = directory / "log"
        self._lines: list[str] = []
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                _command("up"),
                env=self.environment,
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.uri = self._wait_until_ready()
        self.environment[f"{PREFIX}FLIGHT_URI"] = self.uri

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def output(self) -> str:
        """What it has printed on stdout so far."""
        return "".join(self._lines)

    @property
    def log(self) -> str:
        """What it has logged so far, all roles together."""
        return self._log.read_text()

    @property
    def demo_key(self) -> str:
        """The reading key it printed; only the demo has one."""
        found = _KEY.search(self.output)
        assert found is not None, self.output  # noqa: S101 - for tests
        return found[0]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``tickflightd`` with the same settings."""
        return tickflightd(*words, environment=self.environment, cwd=self.directory)

    def roles(self) -> dict[str, int]:
        """Return the process of each role that runs at the moment."""
        found = {}
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "--supervisor" in words:  # else it is only just being started
                role = words[words.index("tickflightd") + 1 : words.index("--supervisor")]
                found[" ".join(role)] = int(pid)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code, negative for a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit code, negative for a signal."""
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it did not stop:\n{self.log}") from None
        self._reader.join(STOP_SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None, "started with a pipe"  # noqa: S101 - tells mypy
        with self.process.stdout as stdout:
            for line in stdout:
                self._lines.append(line)
                if _READY.match(line):
                    self._ready.set()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.wait(_POLL_SECONDS):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"it did not become ready:\n{self.log}")
        found = _READY.search(self.output)
        assert found is not None, self.output  # noqa: S101 - tells mypy
        return found[1]
