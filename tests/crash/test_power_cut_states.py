"""Whatever a power cut leaves of what was not synced, every promise is kept.

Lives of the real store are recorded call by call, and the power is cut at every moment of them, in
many ways; see ``disk`` for what may be lost and ``model`` for what must be true of the rest. A
failure names the life, the seed, the moment and the state.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.crash.disk import CrashDisk, Image
from tests.crash.exploring import (
    Found,
    Life,
    explore_all,
    recorded,
    recorded_after,
    recorded_control,
)
from tests.crash.recording import Recording

pytestmark = pytest.mark.usefixtures("tracer")

SEED: Final = 1
STATES_MIN: Final = 500
HARD_STATES_MIN: Final = 100_000
HARD_EACH: Final = 26
HARD_MOST: Final = 320
KILLS: Final = ("fdatasync 4", "fdatasync 9", "pwrite64 30")
"""Where a life ends that the next one builds on: before a sync, and between two writes."""


def explored(lives: Sequence[Life], each: int = 1, most: int = 1) -> Found:
    found = explore_all(lives, SEED, each, most)
    print(f"{found.states} states, {found.states / found.seconds:.0f}/s")  # noqa: T201 - the figure
    assert found.broken == ()
    return found


def test_no_state_of_a_life_with_a_little_of_everything_breaks_a_promise() -> None:
    found = explored([recorded("whole"), recorded_control()])
    assert found.states >= STATES_MIN


def test_what_a_killed_process_had_not_synced_is_safe_once_it_is_acknowledged_again() -> None:
    explored([recorded("straight", kill_at=KILLS[1])])


@pytest.mark.hard
def test_no_state_of_any_life_breaks_a_promise() -> None:
    plain = [recorded(name) for name in ("whole", "small", "hours", "lives", "folding")]
    special = [recorded("marks"), recorded("quarantine"), recorded_control()]
    killed = [recorded("straight", kill_at=when) for when in KILLS]
    after = [recorded_after(killed[0], "straight", seed) for seed in range(4)]
    twice = [recorded_after(after[0], "straight", seed) for seed in range(2)]
    found = explored([*plain, *special, *killed, *after, *twice], HARD_EACH, HARD_MOST)
    assert found.states >= HARD_STATES_MIN


OPEN: Final = "file = os.open(disk + '/a', os.O_WRONLY | os.O_CREAT)\n"


class TestTheModelOfTheDisk:
    """It must lose what is not synced, and nothing else, or it proves nothing."""

    @staticmethod
    def left(tmp_path: Path, program: str) -> list[Image]:
        """Return what may be left after a program has run in a directory."""
        (tmp_path / "disk").mkdir()
        recording = Recording(tmp_path)
        code = f"import os\ndisk = {str(tmp_path / 'disk')!r}\n{program}"
        done = recording.run(["timeit", "-n1", "-r1", "-s", code])
        assert done.returncode == 0, done.stderr
        disk = CrashDisk(tmp_path, {"disk": None})
        for moment in recording.moments:
            disk.follow(moment)
        chance = random.Random(SEED)
        return [disk.crash(chance) for _ in range(300)]

    def test_a_file_that_was_never_synced_may_be_missing_empty_zeroed_or_torn(
        self, tmp_path: Path
    ) -> None:
        states = self.left(tmp_path, OPEN + "os.pwrite(file, b'x' * 1024, 0)")
        found = {image.get("disk/a") for image in states}
        torn = b"x" * 512 + bytes(512), bytes(512) + b"x" * 512, b"x" * 512
        assert found >= {None, b"", b"x" * 1024, bytes(1024)}
        assert found & set(torn)

    def test_a_synced_file_in_a_directory_that_was_not_may_be_missing_but_not_torn(
        self, tmp_path: Path
    ) -> None:
        program = OPEN + "os.pwrite(file, b'x' * 1024, 0)\nos.fsync(file)"
        states = self.left(tmp_path, program)
        assert {image.get("disk/a") for image in states} == {None, b"x" * 1024}

    def test_what_was_synced_stays_whatever_comes_after(self, tmp_path: Path) -> None:
        program = OPEN + (
            "os.pwrite(file, b'x' * 512, 0)\nos.fsync(file)\nos.fsync(os.open(disk, os.O_RDONLY))\n"
            "os.pwrite(file, b'y' * 512, 512)\n"
            "os.unlink(disk + '/a')"
        )
        states = self.left(tmp_path, program)
        found = {image.get("disk/a") for image in states}
        assert found == {None, b"x" * 512, b"x" * 512 + b"y" * 512, b"x" * 512 + bytes(512)}
