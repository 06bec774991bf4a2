"""Real file systems that lose power, or have no room left, under a process that writes to them."""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from storage.ports import SystemDisk
from storage.recovery import recover
from storage.store import Store, StoreConfig
from tests.crash import model
from tests.crash.exploring import PROMISE, promises_of
from tests.crash.recording import REPOSITORY, environment, python
from tests.crash.workload import FAILED, SCENARIOS, Sender, SetClock

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("mounts")]

SHUTDOWN: Final = 0x8004587D
"""FS_IOC_SHUTDOWN: the file system ends as if the power had failed."""
WITHOUT_FLUSHING: Final = (2).to_bytes(4, "little")
DISK_MEBIBYTES: Final = 96
CUTS: Final = 3
HARD_CUTS: Final = 100
CUTS_A_DISK: Final = 10
"""Lives that build on each other before a fresh disk: what they hold is checked whole each time."""
PROMISES_BEFORE_CUT: Final = 40
PATIENCE_SECONDS: Final = 60.0


def command(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def mounted(directory: Path, *options: str | Path) -> Iterator[Path]:
    """Mount a file system on a new directory."""
    directory.mkdir(exist_ok=True)
    command("mount", *options, directory)
    try:
        yield directory
    finally:
        command("umount", directory)


def fresh_disk(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(DISK_MEBIBYTES << 20)
    command("mkfs.ext4", "-q", "-F", path)


def cut_power(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, WITHOUT_FLUSHING)
    finally:
        os.close(descriptor)


def live_until_the_cut(disk: Path, acks: Path, promises: int) -> None:
    """Run a process that writes without end, and cut the power after some more promises."""
    words = python("tests.crash.workload", "endless", str(disk), "--acks", str(acks))
    before = lines(acks)
    with subprocess.Popen(
        words, env=environment(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(lines(acks)) < len(before) + promises:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        kept = lines(acks)
        cut_power(disk)
        assert process.wait(PATIENCE_SECONDS) == FAILED
        # Linux lets an fdatasync that is under way while the ioctl runs succeed and loses its data,
        # whoever calls it: of promises made meanwhile the cut proves nothing.
        acks.write_bytes(b"".join(line + b"\n" for line in kept))
        assert process.stderr is not None
        assert "disk I/O error" in process.stderr.read()


def lines(acks: Path) -> list[bytes]:
    whole, _, _ = acks.read_bytes().rpartition(b"\n") if acks.exists() else (b"", b"", b"")
    return whole.splitlines()


def check_promises_kept(disk: Path, acks: Path) -> None:
    recovered = recover(disk / "data" / "journal", SystemDisk())
    promised = [line.removeprefix(PROMISE).decode() for line in lines(acks)]
    model.check_promises(recovered, promises_of(promised))
    model.check_prefixes(SCENARIOS["endless"], recovered)


def cut_again_and_again(tmp_path: Path, cuts: int) -> None:
    image, acks = tmp_path / "disk.ext4", tmp_path / "acks"
    options = ("-o", "loop,commit=1000", image)  # nothing is written but what is synced
    for cut in range(cuts):
        if cut % CUTS_A_DISK == 0:
            acks.unlink(missing_ok=True)
            fresh_disk(image)
        with mounted(tmp_path / "disk", *options) as disk:
            if cut % CUTS_A_DISK:
                check_promises_kept(disk, acks)
            live_until_the_cut(disk, acks, PROMISES_BEFORE_CUT + cut % 7)
        with mounted(tmp_path / "disk", *options) as disk:
            check_promises_kept(disk, acks)


def test_no_promise_is_broken_when_the_power_fails(tmp_path: Path) -> None:
    cut_again_and_again(tmp_path, CUTS)


@pytest.mark.hard
def test_no_promise_is_broken_however_often_the_power_fails(tmp_path: Path) -> None:
    cut_again_and_again(tmp_path, HARD_CUTS)


@pytest.mark.parametrize("mebibytes", [1, 2, 4])
def test_a_full_disk_is_waited_out_and_nothing_acknowledged_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int
) -> None:
    fill_and_free(tmp_path, monkeypatch, mebibytes)


@pytest.mark.hard
@pytest.mark.parametrize("kibibytes", range(600, 4_100, 250))
def test_a_disk_of_any_size_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kibibytes: int
) -> None:
    fill_and_free(tmp_path, monkeypatch, kibibytes / 1024)


def fill_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: float) -> None:
    """Write until the disk is full, make room, and see everything arrive."""
    monkeypatch.setattr("storage.journal.RETRY_SECONDS", 0.02)
    sender = Sender("one", batches=120, rows=60)
    size = f"size={int(mebibytes * 1024)}k"
    failures: list[BaseException] = []
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", size, "tmpfs") as disk:
        ballast = disk / "ballast"
        config = StoreConfig(disk / "data", 1 << 40, model.POLICY)
        store = Store(config, clock=SetClock(), disk=SystemDisk(), on_failure=failures.append)
        stream = store.open_stream(sender.dataset.name, sender.batch(1).schema)
        fill(ballast)
        for seq in range(1, sender.batches + 1):
            stream.push(sender.batch(seq), sender.name, seq)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while store.journal_status.degraded is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.producers.durable(sender.name) < sender.batches
        ballast.unlink()
        stream.end()
        while stream.next_ack() is not None:
            pass
        assert store.journal_status.degraded is None
        store.close()
        assert failures == []
        recovered = recover(disk / "data" / "journal", SystemDisk())
        assert recovered.marks == {sender.name: sender.batches}
        assert model.rows_of(recovered, "ticks").equals(model.sent_rows(sender, sender.batches))


def fill(path: Path) -> None:
    """Write a file until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return
