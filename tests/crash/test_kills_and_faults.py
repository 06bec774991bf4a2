"""A process that is killed at any of its system calls, or refused one by the disk, loses nothing.

Real processes, real calls: ``strace`` kills at the n-th call, or lets it fail, for every n until a
run comes to its end untouched.
"""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.crash.exploring import explore_all, recorded_failing, scratch
from tests.crash.tampering import (
    KILLED,
    TOGETHER,
    Fault,
    Outcome,
    ended_cleanly,
    every,
    killed_life,
    run,
)
from tests.crash.workload import FAILED

pytestmark = pytest.mark.usefixtures("tracer")

REPOSITORY: Final = Path(__file__).parents[2]

PHASES: Final = ("open", "opened", "later", "close")
KILL: Final = "signal=KILL"
CALLS: Final = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "openat", "mkdir")
EFFECTS: Final = (
    ("pwrite64", "error=EIO"),
    ("pwrite64", "error=ENOSPC"),
    ("pwrite64", "retval=0"),  # nothing written, and no word about it
    ("fdatasync", "error=EIO"),
    ("fdatasync", "error=ENOSPC"),
    ("fsync", "error=EIO"),
    ("fsync", "error=ENOSPC"),
    ("ftruncate", "error=EIO"),
    ("ftruncate", "error=ENOSPC"),
    ("openat", "error=EIO"),
    ("openat", "error=ENOSPC"),
    ("unlink", "error=EIO"),
    ("mkdir", "error=ENOSPC"),
    ("pread64", "error=EIO"),
    ("close", "error=EIO"),
)


@pytest.fixture(scope="module")
def left_by_a_kill() -> Iterator[Path]:
    """Data of a life that was killed between writing and syncing."""
    root = scratch()
    killed_life(root)
    yield root
    shutil.rmtree(root)


def several(*cases: tuple[Fault, int]) -> list[Outcome]:
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda case: run(*case), cases))


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "number"), [("open", 1), ("opened", 2)])
def test_a_call_of_any_kind_may_be_the_last_or_fail(phase: str, number: int) -> None:
    faults = [Fault(call, KILL, phase) for call in CALLS]
    faults += [Fault(call, effect, phase) for call, effect in EFFECTS]
    outcomes = several(*((fault, number) for fault in faults))
    for fault, outcome in zip(faults, outcomes, strict=True):
        judge(fault, outcome, f"{fault}, call {number}: {outcome}")
    assert sum(outcome.met for outcome in outcomes) > len(outcomes) // 2


def judge(fault: Fault, outcome: Outcome, where: str) -> None:
    """Check what a fault has led to."""
    assert outcome.wrong is None, where
    if fault.effect != KILL or not outcome.met:
        assert ended_cleanly(outcome), where
    else:
        assert outcome.code == KILLED, where


def test_a_process_killed_at_a_call_of_any_kind_has_lost_nothing() -> None:
    cases = [(Fault(call, KILL, "opened"), n) for call, n in (("pwrite64", 9), ("fdatasync", 4))]
    cases += [(Fault("pwrite64", KILL, "later"), 5), (Fault("unlink", KILL, "close"), 1)]
    for outcome in several(*cases):
        assert outcome.met
        assert (outcome.code, outcome.wrong) == (KILLED, None)


def test_a_failed_sync_ends_the_process_and_is_not_tried_again() -> None:
    for outcome in several(
        (Fault("fdatasync", "error=EIO", "opened"), 2),
        (Fault("fdatasync", "error=EIO", "close"), 1),
    ):
        assert outcome.code == FAILED
        assert "disk I/O error" in outcome.error
        assert outcome.wrong is None


def test_a_file_whose_first_sync_fails_is_not_begun_without_a_log(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from storage.errors import JournalError
        from storage.journal_file import Header, JournalWriter
        try:
            JournalWriter(Path(sys.argv[1]), Header(1, 1, 0, {}, {}, 0))
        except JournalError as error:
            print(error)
    """
    failing = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *failing, sys.executable, "-c"]
    said = subprocess.run(
        [*command, textwrap.dedent(script), str(tmp_path / "journal")],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert "disk I/O error" in said.stdout


def test_a_full_disk_is_waited_out() -> None:
    full = Fault("pwrite64", "error=ENOSPC", "opened")
    for outcome in several((full, 5), (full, 14)):  # in a commit, and where a file begins
        assert outcome.met
        assert (outcome.code, outcome.error, outcome.wrong) == (0, "", None)


def test_what_a_killed_life_had_not_synced_is_not_acknowledged_when_syncing_it_fails() -> None:
    found = explore_all(
        [recorded_failing("straight", "fdatasync:error=EIO:when=1", kill_at="fdatasync 9")], 1, 1, 1
    )
    assert found.broken == ()


@pytest.mark.hard
class TestEveryCall:
    """All calls of a brief life, from each phase of it on; the figures are printed."""

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("phase", PHASES)
    def test_killed_there_it_has_lost_nothing(self, phase: str, call: str) -> None:
        self.check(Fault(call, KILL, phase), None)

    @pytest.mark.parametrize(("call", "effect"), EFFECTS)
    @pytest.mark.parametrize("phase", PHASES)
    def test_refused_there_it_ends_cleanly_and_has_lost_nothing(
        self, phase: str, call: str, effect: str
    ) -> None:
        self.check(Fault(call, effect, phase), None)

    @pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
    @pytest.mark.parametrize("effect", [KILL, "error=EIO", "error=ENOSPC"])
    def test_so_while_recovering_from_a_kill(
        self, left_by_a_kill: Path, call: str, effect: str
    ) -> None:
        self.check(Fault(call, effect, "open"), left_by_a_kill)

    @staticmethod
    def check(fault: Fault, before: Path | None) -> None:
        met = 0
        for number, outcome in every(fault, before):
            met += 1
            where = f"{fault}, call {number}: {outcome}"
            judge(fault, outcome, where)
            if (
                fault.effect == "error=ENOSPC"
                and fault.call == "pwrite64"
                and fault.phase == "opened"
            ):
                assert outcome.code == 0, where
        print(f"{fault}: {met} calls")  # noqa: T201 - the figure

    @pytest.mark.parametrize("number", range(1, 13))
    def test_no_sync_that_failed_is_believed_later(self, number: int) -> None:
        fault = f"fdatasync:error=EIO:when={number}"
        lives = [recorded_failing("straight", fault, kill_at="fdatasync 9")]
        found = explore_all(lives, number, 3, 20)
        print(f"{found.states} states")  # noqa: T201 - the figure
        assert found.broken == ()
