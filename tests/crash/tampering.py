"""Lives that are cut short, or told that the disk has failed, at one system call of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partialmethod
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from storage.ports import SystemDisk
from storage.recovery import recover
from tests.crash import model, workload
from tests.crash.exploring import PROMISE, promises_of, scratch
from tests.crash.recording import RUN_SECONDS
from tests.crash.workload import FAILED, SCENARIOS, Life

SCENARIO: Final = "brief"
KILLED: Final = -signal.SIGKILL
TOGETHER: Final = 2
POLL_SECONDS: Final = 0.002
FORKS: Final = get_context("forkserver")
"""Importing what a life needs takes a second, a fork of a process that has it a hundredth."""
FORKS.set_forkserver_preload(["tests.crash.tampering", "pandas"])
CALLS_MAX: Final = 400
"""Far more than the scenario makes; a loop that gets here has gone wrong."""


@dataclass(frozen=True)
class Fault:
    """What happens to the n-th call of a kind in one thread.

    Attributes:
        call: The kind of call.
        effect: As strace wants it: a signal, an error, or a result in place of the work.
        phase: From which phase of the workload on calls count; strace counts a thread at a time,
            so what happens late in one thread is reached only if the others are not watched yet.
    """

    call: str
    effect: str
    phase: str

    def __str__(self) -> str:
        return f"{self.call} {self.effect} from {self.phase} on"


@dataclass(frozen=True)
class Outcome:
    """How a life ended.

    Attributes:
        code: Its exit code, negative for a signal.
        met: Whether the fault happened at all.
        error: What it said.
        wrong: What is wrong with what it has left, if anything.
    """

    code: int
    met: bool
    error: str
    wrong: str | None


def run(fault: Fault, number: int, before: Path | None = None, *, bug: str = "") -> Outcome:
    """Run the scenario with a fault at call ``number``, and check what is left.

    Args:
        fault: What to do.
        number: At which call, from 1.
        before: Data that another life has left; none if None.
        bug: One that the life has.
    """
    root = scratch()
    try:
        if before is not None:
            shutil.copytree(before, root, dirs_exist_ok=True)
        code, error = _live(fault, number, root, bug)
        trace = (root / "trace").read_text() if (root / "trace").exists() else ""
        met = "(INJECTED)" in trace or code == KILLED
        return Outcome(code, met, error, wrong_with(root))
    finally:
        shutil.rmtree(root)


def _live(fault: Fault, number: int, root: Path, bug: str = "") -> tuple[int, str]:
    injection = f"-einject={fault.call}:{fault.effect}:when={number}"
    tracer = ["strace", "-f", "-qq", f"-etrace={fault.call}", injection, "-o", str(root / "trace")]
    words = [SCENARIO, str(root), "--hold", fault.phase, *(["--bug", bug] if bug else [])]
    held, holding = Pipe()
    error = root / "error"
    life = FORKS.Process(target=_lived, args=(words, holding, error))
    life.start()
    holding.close()
    pid = held.recv()
    with subprocess.Popen([*tracer, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as strace:
        wait_until_traced(pid)
        held.send("go")
        life.join(RUN_SECONDS)
        strace.wait(RUN_SECONDS)
    held.close()
    assert life.exitcode is not None, "it does not end"
    return life.exitcode, error.read_text()


def live(scenario: str, root: Path, *, bug: str = "") -> tuple[int, str]:
    """Run a scenario to its end; return its exit code and what it said."""
    error = root / "error"
    words = [scenario, str(root), *(["--bug", bug] if bug else [])]
    life = FORKS.Process(target=_lived, args=(words, None, error))
    life.start()
    life.join(RUN_SECONDS)
    assert life.exitcode is not None, "it does not end"
    return life.exitcode, error.read_text()


def _lived(words: Sequence[str], holding: Connection | None, error: Path) -> None:
    """Run the workload in a fork of a process that has all modules."""
    descriptor = os.open(error, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(descriptor, sys.stderr.fileno())
    if holding is not None:
        Life.phase = partialmethod(_held, holding)  # type: ignore[method-assign, assignment]
    workload.main(words)


def _held(life: Life, holding: Connection, name: str) -> None:
    if name == life.hold:
        holding.send(os.getpid())
        holding.recv()


def wait_until_traced(pid: int) -> None:
    """Wait until every thread of a process is watched."""
    tasks = Path(f"/proc/{pid}/task")
    while any("TracerPid:\t0\n" in (task / "status").read_text() for task in tasks.iterdir()):
        time.sleep(POLL_SECONDS)


def wrong_with(root: Path) -> str | None:
    """Say what is wrong with what a life has left, if anything.

    On a disk that is well again, a life without news must change nothing, and one more complete it.
    """
    lines = (root / "acks").read_bytes().splitlines() if (root / "acks").exists() else []
    promised = [line.removeprefix(PROMISE).decode() for line in lines]
    scenario, directory = SCENARIOS[SCENARIO], root / "data"
    try:
        SystemDisk().make_directory(directory / "journal")
        recovered = recover(directory / "journal", SystemDisk())
        model.check_promises(recovered, promises_of(promised))
        model.check_prefixes(scenario, recovered)
        model.restart(scenario, directory)
        model.resume(scenario, directory)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong here
        return f"{type(error).__name__}: {error}"
    return None


def every(fault: Fault, before: Path | None = None) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcome of a fault at every call, until a run meets it no more."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(1, CALLS_MAX, TOGETHER):
            numbers = range(first, first + TOGETHER)
            outcomes = list(pool.map(lambda number: run(fault, number, before), numbers))
            yield from ((n, o) for n, o in zip(numbers, outcomes, strict=True) if o.met)
            if not all(outcome.met for outcome in outcomes):
                return
    raise AssertionError(f"{fault}: there is no end to it")


def killed_life(root: Path) -> None:
    """Leave what a life that was killed before a sync leaves."""
    fault = Fault("fdatasync", "signal=KILL", "opened")
    code, error = _live(fault, 3, root)
    assert code == KILLED, error


Judge = Callable[[Outcome], bool]


def ended_cleanly(outcome: Outcome) -> bool:
    """Whether a life ended by itself: it came to its end, or gave up with a sentence."""
    gave_up = outcome.code == FAILED and outcome.error.startswith("failed: ")
    return gave_up or outcome.code == 0
