"""The seams to the machine: a clock and a disk, small enough for a test to be both."""

import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO, Final, Protocol

MICROSECONDS: Final = 1_000_000
"""Microseconds in a second; all our instants are integers of this unit since 1970, UTC."""


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> int:
        """Microseconds since 1970, UTC; may jump, as wall clocks do."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""


class Disk(Protocol):
    """What storage asks of a file system besides SQLite's own files."""

    def make_directory(self, path: Path) -> None:
        """Create ``path`` and its parents, durable before it returns."""

    def list(self, path: Path) -> list[Path]:
        """Files right below ``path``, sorted by name."""

    def sync_directory(self, path: Path) -> None:
        """Make the names below ``path`` survive a power cut."""

    def create(self, path: Path) -> BinaryIO:
        """Return a new file to write to; it must not exist."""

    def sync(self, path: Path) -> None:
        """Make the content of a file survive a power cut."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of what has it; not durable by itself."""

    def remove(self, path: Path) -> None:
        """Delete a file; absent is fine."""

    def size(self, path: Path) -> int:
        """Bytes of a file, 0 when absent."""

    def free(self, path: Path) -> int:
        """Bytes that can still be written below ``path``."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """See ``Clock.now``."""
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        """See ``Clock.monotonic``."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See ``Clock.sleep``."""
        time.sleep(seconds)


class SystemDisk:
    """The machine's file system."""

    def make_directory(self, path: Path) -> None:
        """See ``Disk.make_directory``."""
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # Its own name in any case: whoever has made it may have left it at that.
        for parent in {path.parent, *(made.parent for made in missing)}:
            self.sync_directory(parent)

    def list(self, path: Path) -> list[Path]:
        """See ``Disk.list``."""
        return sorted(p for p in path.iterdir() if p.is_file())

    def sync_directory(self, path: Path) -> None:
        """See ``Disk.sync_directory``."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> BinaryIO:
        """See ``Disk.create``."""
        return path.open("xb")

    def sync(self, path: Path) -> None:
        """See ``Disk.sync``."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """See ``Disk.rename``."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """See ``Disk.remove``."""
        path.unlink(missing_ok=True)

    def size(self, path: Path) -> int:
        """See ``Disk.size``."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def free(self, path: Path) -> int:
        """See ``Disk.free``."""
        return shutil.disk_usage(path).free
