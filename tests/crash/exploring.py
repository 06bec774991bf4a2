"""Exploring the states that a power cut can leave of a recorded life."""

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol

from flight_server.errors import CredentialError, Refusal
from flight_server.files import FileRegistry, ImportState
from flight_server.keys import KeyStore, Scope
from storage.ports import SystemClock, SystemDisk
from storage.recovery import recover
from tests.crash import model
from tests.crash.control_workload import ROWS
from tests.crash.disk import CrashDisk, Image, materialise
from tests.crash.model import Model, Promise
from tests.crash.recording import Moment, Recording
from tests.crash.workload import SCENARIOS

MEMORY: Final = Path("/dev/shm")
RESUMED_EVERY: Final = 50
"""Every how manieth state a server is started on, to send what is missing: it costs ten times."""
WORKERS: Final = 2
PROMISE: Final = b"ack "


class Checker(Protocol):
    """Says whether what a crash has left is right."""

    def check(self, directory: Path, promised: Sequence[str], *, resume: bool) -> None:
        """Raise when it is not."""


@dataclass
class JournalChecker:
    """Of a life of the store."""

    model: Model

    def check(self, directory: Path, promised: Sequence[str], *, resume: bool) -> None:
        """See ``Checker.check``."""
        SystemDisk().make_directory(directory / "journal")
        self.model.check(recover(directory / "journal", SystemDisk()), promises_of(promised))
        if resume:
            model.resume(self.model.scenario, directory)


@dataclass
class LooseChecker:
    """Of a life of the store that did not come to its end, so that its order is not known."""

    scenario: str

    def check(self, directory: Path, promised: Sequence[str], *, resume: bool) -> None:
        """See ``Checker.check``."""
        scenario = SCENARIOS[self.scenario]
        SystemDisk().make_directory(directory / "journal")
        recovered = recover(directory / "journal", SystemDisk())
        model.check_promises(recovered, promises_of(promised))
        model.check_prefixes(scenario, recovered)
        if resume:
            model.resume(scenario, directory)


def promises_of(lines: Sequence[str]) -> list[Promise]:
    """Read promises as the workload writes them."""
    words = [line.split() for line in lines]
    return [Promise(name, int(seq)) for name, seq in words]


@dataclass
class ControlChecker:
    """Of a life of the control database."""

    def check(self, directory: Path, promised: Sequence[str], *, resume: bool) -> None:
        """See ``Checker.check``."""
        told: dict[str, set[str]] = {"key": set(), "file": set(), "revoked": set()}
        for line in promised:
            what, value = line.split()
            told[what].add(value)
        clock = SystemClock()
        with KeyStore(directory, clock) as keys, FileRegistry(directory, clock) as files:
            for token in told["key"]:
                _check_key(keys, token, revoked=token in told["revoked"])
            for digest in told["file"]:
                found = files.register(
                    digest, name="f", dataset="ticks", options={}, producer=digest
                )
                assert (found.state, found.rows) == (ImportState.COMPLETE, ROWS), found
            if resume:
                keys.verify(keys.create("another", scopes=[Scope.SQL]).key)


def _check_key(keys: KeyStore, token: str, *, revoked: bool) -> None:
    try:
        keys.verify(token)
    except CredentialError as error:
        refusal = error.refusal
        # A revocation that was under way may have come through.
        assert refusal is Refusal.REVOKED, f"a promised key is {refusal}"
    else:
        assert not revoked, "a revoked key is accepted"


@dataclass(frozen=True)
class Life:
    """A recorded life, ready to be cut short anywhere.

    Attributes:
        name: For messages.
        root: Where it was lived.
        moments: Its system calls.
        checker: What must be true of whatever is left of it.
        before: What was there already when it began.
        promised: What had been promised by then.
    """

    name: str
    root: Path
    moments: tuple[Moment, ...]
    checker: Checker
    before: Image | None = None
    promised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What an exploration met: ``states`` it looked at, all different, and what was wrong."""

    states: int
    seconds: float
    broken: tuple[str, ...] = ()


def scratch() -> Path:
    """Return a new directory, in memory where there is room for one."""
    return Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))


def recorded(scenario: str, *, kill_at: str = "", bug: str = "") -> Life:
    """Record a scenario; with ``kill_at``, such as ``fdatasync 9``, after a life that was killed.

    The killed life leaves what it had written but not yet synced, as ``kill -9`` does; the next one
    builds on it. With ``bug``, all of them have it.
    """
    root = scratch()
    try:
        recording = Recording(root)
        words = ["tests.crash.workload", scenario, str(root), *(["--bug", bug] if bug else [])]
        if kill_at:
            call, number = kill_at.split()
            killed = recording.run(words, f"-einject={call}:signal=KILL:when={number}")
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = recording.run(words)
        assert done.returncode == 0, done.stderr
        checker = JournalChecker(Model.of(root / "data", SCENARIOS[scenario]))
        return Life(f"{scenario} {kill_at}".strip(), root, concerning(recording), checker)
    finally:
        shutil.rmtree(root)


def recorded_failing(scenario: str, fault: str, *, kill_at: str = "") -> Life:
    """Record a life in which a call fails, as strace is told by ``fault``, to whatever end.

    With ``kill_at``, a life that was killed goes before it. The recording ends where the sync of a
    directory fails: SQLite takes no notice of that, and a power cut would be a second fault.
    """
    root = scratch()
    try:
        recording = Recording(root)
        words = ["tests.crash.workload", scenario, str(root)]
        if kill_at:
            call, number = kill_at.split()
            recording.run(words, f"-einject={call}:signal=KILL:when={number}")
        recording.run(words, f"-einject={fault}")
        moments = concerning(recording)
        disk = CrashDisk(root)
        for at, moment in enumerate(moments):
            if disk.fails_to_sync_a_directory(moment):
                moments = moments[:at]
                break
            disk.follow(moment)
        return Life(f"{scenario} {fault}", root, moments, LooseChecker(scenario))
    finally:
        shutil.rmtree(root)


def recorded_control() -> Life:
    """Record a life of the control database."""
    root = scratch()
    try:
        recording = Recording(root)
        done = recording.run(["tests.crash.control_workload", str(root)])
        assert done.returncode == 0, done.stderr
        return Life("control", root, concerning(recording), ControlChecker())
    finally:
        shutil.rmtree(root)


def recorded_after(life: Life, scenario: str, seed: int) -> Life:
    """Cut a life short somewhere, and record the next one, from what is left to the end."""
    chance = random.Random(f"after {seed}")
    at = chance.randrange(len(life.moments))
    disk = CrashDisk(life.root, life.before)
    for moment in life.moments[: at + 1]:
        disk.follow(moment)
    image = below(disk.crash(chance), "data")
    told = (*life.promised, *(text for when, text in promised(life.moments) if when <= at))
    root = scratch()
    try:
        (root / "data").mkdir()
        materialise(image, root / "data")
        recording = Recording(root)
        done = recording.run(["tests.crash.workload", scenario, str(root)])
        assert done.returncode == 0, done.stderr
        checker = JournalChecker(Model.of(root / "data", SCENARIOS[scenario]))
        before = {"data": None, **{f"data/{path}": content for path, content in image.items()}}
        name = f"{scenario} after {life.name} (seed {seed})"
        return Life(name, root, concerning(recording, before), checker, before, told)
    finally:
        shutil.rmtree(root)


def concerning(recording: Recording, before: Image | None = None) -> tuple[Moment, ...]:
    """Leave out the moments that have nothing to do with the data or the promises."""
    kept, disk = [], CrashDisk(recording.root, before)
    for moment in recording.moments:
        if disk.concerns(moment.call):
            kept.append(moment)
        disk.follow(moment)
    return tuple(kept)


def promised(moments: Sequence[Moment]) -> Iterator[tuple[int, str]]:
    """Yield every promise with the number of the moment it was made at."""
    for at, moment in enumerate(moments):
        call = moment.call
        if moment.begins and call.name == "write" and isinstance(call.arguments[1], bytes):
            text = call.arguments[1]
            if text.startswith(PROMISE):
                yield at, text.removeprefix(PROMISE).decode().strip()


def explore(
    life: Life, seed: int, each: int, most: int, part: int = 0, parts: int = 1, enough: int = 1000
) -> Found:
    """Cut the power again and again at every moment of a life, and look at what is left.

    Args:
        life: What was recorded.
        seed: Another one, other states.
        each: States to try at a moment, for every change that may be lost then.
        most: States to try at a moment at most.
        part: Which of ``parts`` equal shares of the moments to take.
        parts: Into how many shares they fall.
        enough: How many broken states to stop at.
    """
    began = time.monotonic()
    disk = CrashDisk(life.root, life.before)
    promises = list(promised(life.moments))
    seen: set[int] = set()
    broken: list[str] = []
    for at, moment in enumerate(life.moments):
        disk.follow(moment)
        if at % parts != part:
            continue
        if len(broken) >= enough:
            break
        told = [*life.promised, *(text for when, text in promises if when <= at)]
        for number in range(min(each * (1 + disk.pending()), most)):
            chance = random.Random(f"{life.name} {seed} {at} {number}")
            image = below(disk.crash(chance), "data")
            key = hash((*image.items(), *told[-4:]))  # bytes remember their hash
            if key in seen:
                continue
            seen.add(key)
            if wrong := cut(life, image, told, resume=len(seen) % RESUMED_EVERY == 0):
                broken.append(f"{life.name}, seed {seed}, moment {at}, state {number}: {wrong}")
    return Found(len(seen), time.monotonic() - began, tuple(broken))


def explore_all(lives: Sequence[Life], seed: int, each: int, most: int) -> Found:
    """Explore several lives on all cores."""
    began = time.monotonic()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(explore, life, seed, each, most, part, WORKERS)
            for life in lives
            for part in range(WORKERS)
        ]
        found = [job.result() for job in jobs]
    broken = tuple(text for one in found for text in one.broken)
    return Found(sum(one.states for one in found), time.monotonic() - began, broken)


def cut(life: Life, image: Image, told: Sequence[str], *, resume: bool) -> str | None:
    """Say what is wrong with a state, if anything."""
    directory = scratch()
    try:
        materialise(image, directory)
        life.checker.check(directory, told, resume=resume)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong here
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(directory)
    return None


def below(image: Image, name: str) -> Image:
    """Return the part of an image below a directory."""
    prefix = name + "/"
    return {
        path.removeprefix(prefix): content
        for path, content in image.items()
        if path.startswith(prefix)
    }
