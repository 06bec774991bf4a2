"""A flight service in a process of its own, to be killed.

``flight_process.py DIRECTORY LOCATION [HOT_WINDOW_US [COMMIT_SECONDS]]``. It says ``ready`` and its
address once it answers. At the end of its input it stops cleanly and says how long that took.
``COMMIT_SECONDS`` is how far the journal's commits are apart, as on a slow disk.
"""

import os
import sys
import time
from pathlib import Path

from flight_server.service import FlightConfig, FlightService
from storage import journal
from storage.ports import SystemClock, SystemDisk


def main(
    directory: str, location: str, hot_window_us: str = "3600000000", commit_seconds: str = ""
) -> None:
    if commit_seconds:
        vars(journal)["COMMIT_INTERVAL_SECONDS"] = float(commit_seconds)
    config = FlightConfig(
        location=location,
        data_directory=Path(directory),
        hot_window_us=int(hot_window_us),
        hot_memory_limit_bytes=1 << 34,
        source_priority=("demo",),
        version="test",
    )
    service = FlightService(
        config, clock=SystemClock(), disk=SystemDisk(), on_failure=lambda _: os._exit(3)
    )
    service.start()
    say(f"ready {service.uri}")
    sys.stdin.read()
    began = time.monotonic()
    service.stop(1.0)
    say(f"stopped {time.monotonic() - began}")
    os._exit(0)  # threads of gRPC wait for clients without end


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
