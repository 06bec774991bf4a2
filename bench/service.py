"""The service under measurement: `tickflightd up` in a data directory of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 20.0
SCOPES = ("read:realtime", "read:history", "write", "admin")


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and a key with every scope."""

    uri: str
    key: str
    process: "subprocess.Popen[str]"


@contextmanager
def running(directory: Path) -> Iterator[Service]:
    """Start the service, without a feed, and stop it afterwards."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TICKFLIGHT_")},
        "TICKFLIGHT_DATA_DIR": str(directory),
        "TICKFLIGHT_FLIGHT_URI": f"grpc://127.0.0.1:{_free_port()}",
        "TICKFLIGHT_DEMO": "0",
    }
    command = [sys.executable, "-m", "tickflightd"]
    process = subprocess.Popen(
        [*command, "up"], env=environment, cwd=directory, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        uri = next(
            line.split("flight=")[1].split()[0]
            for line in process.stdout
            if line.startswith("ready ")
        )
        scopes = [f"--scope={scope}" for scope in SCOPES]
        made = subprocess.run(
            [*command, "keys", "create", "bench", "--json", *scopes],
            env=environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield Service(uri, json.loads(made.stdout.splitlines()[-1])["key"], process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
