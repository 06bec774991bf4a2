"""A long run with the demo at full rate: what grows that should not?

Every few minutes what has come in is rolled over, and leaves memory as long after: a day's work in
half an hour. What counts is how much the flight process grows, and how much of that is beyond what
the store says its rows and indexes take.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.caller import Caller
from bench.load import LATEST_ROWS, Load
from bench.service import Service, running

RATE: Final = 10_000
SAMPLE_SECONDS: Final = 30.0
ROLLOVER_MINUTES: Final = 5
"""From one rollover to the next, and how long rows stay in memory after theirs."""
WARM_UP_SECONDS: Final = 120.0
"""Left out of slopes: caches and thread pools still fill."""
MIB: Final = 1 << 20

Sample = dict[str, Any]


def soak(minutes: float, directory: Path | None) -> dict[str, Any]:
    """Run the soak; prints a JSON line a sample, returns the summary."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        home = Path(place)
        with (
            running(
                home, DEMO="1", DEMO_RATE=str(RATE), HOT_WINDOW=f"{ROLLOVER_MINUTES}m"
            ) as service,
            Load(service.uri, service.key) as load,
        ):
            samples = _sample_until(minutes * 60, service, load, home / "data")
    return summary(samples)


def _sample_until(seconds: float, service: Service, load: Load, data: Path) -> list[Sample]:
    asking = Caller(service.uri, service.key, b"")
    began = time.monotonic()
    samples: list[Sample] = []
    rolled = 0
    while (elapsed := time.monotonic() - began) < seconds:
        time.sleep(min(SAMPLE_SECONDS, seconds - elapsed))
        if elapsed >= (rolled + 1) * ROLLOVER_MINUTES * 60:
            asking.act("rollover", b'{"all": true}')
            rolled += 1
        status = asking.status()
        samples.append(
            {
                "seconds": round(time.monotonic() - began, 1),
                "rows": sum(one["rows"] for one in status["datasets"].values()),
                "row_bytes": status["memory"]["used"],
                "rows_rolled_over": status["rollover"]["rows"],
                "waiting_rows": status["journal"]["waiting_rows"],
                "commit_ms": status["journal"]["commit_ms"],
                "journal_bytes": _size(data),
                "states": {one["name"]: one["state"] for one in status["services"]},
                "processes": _processes(service),
                **load.take().summary(),
            }
        )
        print(json.dumps(samples[-1]), flush=True)
    return samples


def _processes(service: Service) -> dict[str, dict[str, int]]:
    """Return what each process of the service takes, and this one, which is its clients."""
    found = {"up": service.process.process.pid, **service.process.roles(), "load": os.getpid()}
    return {name: _usage(Path(f"/proc/{pid}")) for name, pid in found.items()}


def _usage(process: Path) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "rss": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "fds": len(list((process / "fd").iterdir())),
    }


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return start, middle and end of a run, and what grew without rows to show for it."""
    warm = [one for one in samples if one["seconds"] >= WARM_UP_SECONDS] or list(samples)
    marks = {"start": warm[0], "middle": warm[len(warm) // 2], "end": warm[-1]}
    rss = _slope(warm, lambda one: one["processes"]["flight"]["rss"])
    explained = _slope(warm, lambda one: one["row_bytes"])
    rows = _slope(warm, lambda one: one["rows"])
    return {
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        **{name: _brief(one) for name, one in marks.items()},
        "flight_rss_mib_per_hour": round(rss / MIB, 1),
        "rows_mib_per_hour": round(explained / MIB, 1),
        "unexplained_mib_per_hour": round((rss - explained) / MIB, 1),
        "bytes_per_row": round(explained / rows, 1) if rows else None,
        "latest_rows": LATEST_ROWS,
        "latest_ms_p50_worst": max(one["latest_ms_p50"] for one in warm),
        "latest_ms_p99_worst": max(one["latest_ms_p99"] for one in warm),
        "writers": sum(one["writers"] for one in samples),
        "failures": sorted({text for one in samples for text in one["failures"]}),
    }


def _slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the growth an hour of what is measured, by least squares."""
    if len(samples) < 2:
        return 0.0
    hours = [one["seconds"] / 3600 for one in samples]
    return float(np.polyfit(hours, [value(one) for one in samples], 1)[0])


def _brief(sample: Sample) -> dict[str, Any]:
    return {
        "minute": round(sample["seconds"] / 60, 1),
        "rows": sample["rows"],
        "row_mib": round(sample["row_bytes"] / MIB),
        "journal_mib": round(sample["journal_bytes"] / MIB),
        "rss_mib": {name: round(one["rss"] / MIB) for name, one in sample["processes"].items()},
        "threads": {name: one["threads"] for name, one in sample["processes"].items()},
        "fds": {name: one["fds"] for name, one in sample["processes"].items()},
        "latest_ms": [sample["latest_ms_p50"], sample["latest_ms_p99"]],
    }


def run(minutes: float, directory: Path | None) -> None:
    """Run the soak and print its summary, last line of stdout."""
    result = soak(minutes, directory)
    print(json.dumps(result), flush=True)
    print(json.dumps(result, indent=2), file=sys.stderr)
