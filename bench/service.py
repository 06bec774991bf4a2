"""The service under measurement: `tickflightd up` in a data directory of its own."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tickflightd.testing import RunningService

SCOPES = ("read:realtime", "read:history", "write", "admin")


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and a key with every scope."""

    uri: str
    key: str
    process: RunningService


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Service]:
    """Start the service, without a feed unless told otherwise, and stop it afterwards.

    Args:
        directory: Its own; the data goes below.
        settings: By name without the prefix, such as ``DEMO="1"``.
    """
    with RunningService(directory, **{"DEMO": "0", **settings}) as process:
        yield Service(process.uri, new_key(process), process)


def new_key(process: RunningService) -> str:
    """Make a key with every scope; it outlives restarts."""
    scopes = [f"--scope={scope}" for scope in SCOPES]
    made = process.run("keys", "create", "bench", "--json", *scopes)
    made.check_returncode()
    return str(json.loads(made.stdout.splitlines()[-1])["key"])


def seconds_to_start(directory: Path) -> float:
    """Start the service with whatever data is there, stop it, and return what the start took."""
    directory.mkdir(exist_ok=True)
    began = time.perf_counter()
    with RunningService(directory, DEMO="0"):
        return time.perf_counter() - began
