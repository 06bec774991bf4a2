"""What the machine must offer: versions, a disk that keeps its word, a clock, memory.

Every function judges plain values; ``probes`` measures them.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Final

from storage.ports import MICROSECONDS
from tickflightd.doctor.findings import Finding, fail, ok, warn

PYTHON_MIN: Final = (3, 11)
PYARROW_MIN: Final = (26, 0, 1)
PYARROW_BELOW: Final = (27,)
SQLITE_MIN: Final = (3, 37, 0)
"""The first with STRICT tables."""
FREE_BYTES_MIN: Final = 1 << 30
"""Below this the service may stop taking data within the hour."""
SYNC_SECONDS_SLOW: Final = 0.050
"""99th percentile of a sync from which acknowledgements come noticeably late."""
SYNC_SECONDS_IMPOSSIBLE: Final = 0.000_020
"""Median below which nothing can have reached a disk: even the fastest need more."""
WRITE_RATE_MIN: Final = 50 << 20
"""Bytes a second; the journal of a million ticks a second takes about as much."""
CLOCK_STEP_SECONDS: Final = 0.05
"""Difference of wall clock and monotonic clock over a moment that is a step, not a slew."""
FIRST_YEAR: Final = 2024
LAST_YEAR: Final = 2100
MEMORY_SHARE_MAX: Final = 0.7
"""Share of the machine's memory that rows may take: queries and the page cache need the rest."""
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_VOLATILE: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class DiskTimes:
    """What a disk did; seconds and bytes a second."""

    sync_seconds: Sequence[float]
    write_rate: float


def versions(
    python: tuple[int, ...], pyarrow: tuple[int, ...], sqlite: tuple[int, ...]
) -> list[Finding]:
    """Judge the interpreter and the libraries that data goes through."""
    check = "versions"
    findings = []
    if python < PYTHON_MIN:
        text = f"Python {_dotted(python)} is older than {_dotted(PYTHON_MIN)}"
        findings.append(fail(check, text, "install a newer Python, then `make setup`"))
    if not PYARROW_MIN <= pyarrow < PYARROW_BELOW:
        text = f"pyarrow {_dotted(pyarrow)} is not the version this service is tested with"
        findings.append(fail(check, text, "run `make setup`: it installs what the lock file says"))
    if sqlite < SQLITE_MIN:
        text = f"SQLite {_dotted(sqlite)} is older than {_dotted(SQLITE_MIN)}"
        findings.append(fail(check, text, "use a Python that is built with a newer SQLite"))
    told = f"Python {_dotted(python)}, pyarrow {_dotted(pyarrow)}, SQLite {_dotted(sqlite)}"
    return findings or [ok(check, told)]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def file_system(kind: str) -> Finding:
    """Judge the kind of file system the data lies on; remote ones are refused elsewhere."""
    if kind in _VOLATILE:
        text = f"the data directory is on {kind}: everything is gone after a restart"
        return warn("directory", text, "set TICKFLIGHT_DATA_DIR to a directory on a disk")
    return ok("directory", f"the data directory is on a local file system ({kind or 'unknown'})")


def free_space(free: int, need: int) -> Finding:
    """Judge free bytes by what a day is expected to need."""
    text = f"{free / _GIB:.1f} GiB free, a day needs about {need / _GIB:.1f} GiB"
    advice = "free some space, or move TICKFLIGHT_DATA_DIR to a larger disk"
    if free < FREE_BYTES_MIN:
        return fail("space", text, advice)
    return warn("space", text, advice) if free < need else ok("space", text)


def disk(times: DiskTimes) -> list[Finding]:
    """Judge syncs and sequential writes."""
    cuts = quantiles(times.sync_seconds, n=100, method="inclusive")
    p50, p99 = cuts[49], cuts[98]
    took = f"a sync of 8 KiB takes {p50 * 1000:.2f} ms (99th percentile {p99 * 1000:.2f} ms)"
    if p50 < SYNC_SECONDS_IMPOSSIBLE:
        sync = warn(
            "disk",
            f"{took}: too little for any disk, so a power cut may take what was acknowledged",
            "see whether the file system or a virtual machine's disk ignores syncs",
        )
    elif p99 > SYNC_SECONDS_SLOW:
        advice = "acknowledgements wait for it: see what else writes there, or use a faster disk"
        sync = warn("disk", took, advice)
    else:
        sync = ok("disk", took)
    rate = f"sequential writes reach {times.write_rate / _MIB:,.0f} MiB/s"
    if times.write_rate < WRITE_RATE_MIN:
        return [sync, warn("disk", rate, "bulk imports will be slow; use a faster disk")]
    return [sync, ok("disk", rate)]


def clock(now: int, *, step_seconds: float, synchronised: bool | None) -> list[Finding]:
    """Judge the wall clock.

    Args:
        now: What it says, µs since 1970.
        step_seconds: How far it and the monotonic clock went apart over a moment.
        synchronised: What the kernel knows; None when it does not tell.
    """
    year = dt.datetime.fromtimestamp(now / MICROSECONDS, dt.UTC).year
    if not FIRST_YEAR <= year <= LAST_YEAR:
        text = f"the clock says it is the year {year}"
        return [fail("clock", text, "set the clock: every row is stamped with it")]
    findings = []
    if abs(step_seconds) > CLOCK_STEP_SECONDS:
        text = f"the clock jumped by {step_seconds:+.3f} s while it was watched"
        findings.append(warn("clock", text, "see what sets it; run one time service only"))
    if synchronised is False:
        text = "the clock is not synchronised"
        advice = "run a time service, such as systemd-timesyncd or chrony"
        findings.append(warn("clock", text, advice))
    known = "is synchronised" if synchronised else "runs evenly; who sets it is not known here"
    return findings or [ok("clock", f"the clock {known}")]


def memory(limit: int, installed: int, available: int) -> Finding:
    """Judge the limit of rows in memory by what the machine has."""
    text = (
        f"rows may take {limit / _GIB:.1f} GiB; the machine has {installed / _GIB:.1f} GiB,"
        f" {available / _GIB:.1f} GiB of it available"
    )
    if limit > installed * MEMORY_SHARE_MAX:
        advice = "set TICKFLIGHT_HOT_MEMORY_LIMIT to 30% or so: queries need memory too"
        return warn("memory", text, advice)
    if limit > available:
        return warn("memory", text, "end other programs, or lower TICKFLIGHT_HOT_MEMORY_LIMIT")
    return ok("memory", text)
