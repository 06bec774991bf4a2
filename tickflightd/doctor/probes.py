"""Measuring and reading what the checks judge; everything here leaves the machine as it was."""

import ctypes
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flight_server.control import DATABASE_NAME, PEPPER_NAME
from storage.ports import MICROSECONDS, Clock
from tickflightd.directory import LOCAL_KEY
from tickflightd.doctor.host import DiskTimes

SYNCS: Final = 100
SYNC_BYTES: Final = 8_192
"""A page of the journal."""
WRITE_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 4 << 20
SECONDS_MAX: Final = 2.0
"""How long either half of the disk test may take: a slow disk is known to be slow by then."""
_TIMEX_BYTES: Final = 512
"""More than any ``struct timex``; its ``status`` is an int behind five longs on 64-bit Linux."""
_TIMEX_STATUS: Final = 40
_STA_UNSYNC: Final = 0x40
_LISTEN: Final = "0A"
_SPOOL_SUFFIX: Final = ".spool"


def disk_times(directory: Path) -> DiskTimes:
    """Write, sync and delete a few files below ``directory``.

    Raises:
        OSError: Nothing can be written there.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as place:
        return DiskTimes(_syncs(Path(place) / "syncs"), _write_rate(Path(place) / "writes"))


def _syncs(path: Path) -> list[float]:
    page = os.urandom(SYNC_BYTES)
    taken: list[float] = []
    deadline = time.monotonic() + SECONDS_MAX
    with path.open("wb", buffering=0) as file:
        while len(taken) < SYNCS and (len(taken) < 2 or time.monotonic() < deadline):
            began = time.perf_counter()
            file.write(page)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return taken


def _write_rate(path: Path) -> float:
    chunk, written = os.urandom(CHUNK_BYTES), 0
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while written < WRITE_BYTES and time.perf_counter() - began < SECONDS_MAX:
            written += file.write(chunk)
            os.fdatasync(file.fileno())
    return written / (time.perf_counter() - began)


def existing_parent(directory: Path) -> Path:
    """Return ``directory``, or the nearest directory above it that is there."""
    return next(path for path in (directory, *directory.parents) if path.is_dir())


@dataclass(slots=True)
class ClockWatch:
    """Notices a wall clock that goes apart from the monotonic one."""

    clock: Clock
    wall: int
    steady: float

    @classmethod
    def begin(cls, clock: Clock) -> "ClockWatch":
        """Begin to watch."""
        return cls(clock, clock.now(), clock.monotonic())

    def step_seconds(self) -> float:
        """Return how far the wall clock went ahead since the beginning."""
        wall = (self.clock.now() - self.wall) / MICROSECONDS
        return wall - (self.clock.monotonic() - self.steady)


def is_synchronised() -> bool | None:
    """Return whether the kernel's clock is disciplined; None where that can't be asked."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except AttributeError:
        return None
    status = int.from_bytes(timex.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], sys.byteorder)
    return None if state < 0 else not status & _STA_UNSYNC


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes new programs may take; None where that can't be known."""
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def listener(port: int, proc: Path = Path("/proc")) -> str | None:
    """Return the program that listens on a TCP port; None when it is not ours to see."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    for entry in proc.iterdir() if sockets else ():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if any(str(one.readlink()) in sockets for one in (entry / "fd").iterdir()):
                return f"{(entry / 'comm').read_text().strip()} (process {entry.name})"
    return None


def _listening(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def secret_modes(directory: Path, env_file: Path) -> dict[str, int]:
    """Return the mode bits of the files that hold secrets and are there."""
    paths = [directory / name for name in (DATABASE_NAME, PEPPER_NAME, LOCAL_KEY)]
    return {
        str(path): stat.S_IMODE(path.stat().st_mode) for path in (*paths, env_file) if path.exists()
    }


def spool_files(directory: Path) -> list[Path]:
    """Return spool files below a directory."""
    return sorted(directory.rglob(f"*{_SPOOL_SUFFIX}"))


def scratch_files(directory: Path) -> list[str]:
    """Return the names of files that were not given their final name."""
    begun = (f".{DATABASE_NAME}.", f".{PEPPER_NAME}.", f".{LOCAL_KEY}.", ".doctor-")
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(begun))


def daily_bytes(sizes: Sequence[int]) -> int:
    """Return what a day of journal takes, by the largest hour so far."""
    return max(sizes, default=0) * 24
