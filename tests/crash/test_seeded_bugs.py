"""The checks are worth something: each of these bugs is caught by the check it is listed with.

A check says what is wrong with a life that has the bug, and nothing of one that has none.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest

from storage import store as store_module
from storage.errors import JournalError, LakeError
from storage.lake.table import LakeTable
from storage.ports import SystemDisk
from storage.recovery import recover
from storage.store import Store
from tests.crash import bugs, model
from tests.crash.exploring import Life as Recorded
from tests.crash.exploring import explore, promises_of, recorded, scratch
from tests.crash.model import Model
from tests.crash.tampering import Fault, ended_cleanly, live, run
from tests.crash.workload import FAILED, SCENARIOS, Life
from tests.rollover.conftest import visible, write_here
from tests.storage.conftest import HOUR, NOON, Lab, send, ticks, until

SEED: Final = 5
FLIPS: Final = 40
NONE: Final = ""

Check = Callable[[str], str | None]
"""Takes the name of a bug, or ``NONE``, and says what is wrong."""


# Checks that need nothing but a life


def a_life(bug: str) -> str | None:
    """A life with restarts and resends ends with what was sent, each row once."""
    root = scratch()
    try:
        code, error = live("whole", root, bug=bug)
        if code != 0:
            return error
        return complaint(lambda: Model.of(root / "data", SCENARIOS["whole"]))
    finally:
        shutil.rmtree(root)


def flipped_bits(bug: str) -> str | None:
    """A bit that is flipped in a journal is named, or changes nothing."""
    with finished_life() as (directory, rows), seeded(bug):
        path = min((directory / "journal").glob("*.journal"))
        data = path.read_bytes()
        chance = random.Random(SEED)
        for at in chance.sample([at for at, byte in enumerate(data) if byte], FLIPS):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            if wrong := complaint(lambda: expect_rows(directory, rows), JournalError):
                return f"byte {at}: {wrong}"
    return None


def changed_logs(bug: str) -> str | None:
    """A log that was changed before its last commit is refused: what it held was promised."""
    root = scratch()
    try:
        life = Life(root, SCENARIOS["brief"].senders)
        life.open()
        life.send(4, together=False)
        shutil.copytree(root / "data", root / "copy")
        told = (root / "acks").read_text().splitlines()
        life.close()
        with seeded(bug):
            return complaint(lambda: change_and_recover(root / "copy", told), JournalError)
    finally:
        shutil.rmtree(root)


def rollovers(bug: str) -> str | None:
    """Every row is visible once, whatever the rollover is at and whatever fails."""
    root = scratch()
    try:
        with seeded(bug) as patch:
            patch.setattr(store_module, "roll_over", write_here)
            return complaint(lambda: roll_over_and_restart(root, patch))
    finally:
        shutil.rmtree(root)


# Checks that watch system calls


def power_cuts(bug: str) -> str | None:
    """A power cut at any moment takes nothing that was promised."""
    return first_broken(recorded("brief", bug=bug))


def full_disks(bug: str) -> str | None:
    """A full disk is waited out."""
    outcome = run(Fault("pwrite64", "error=ENOSPC", "opened"), 5, bug=bug)
    return outcome.wrong or (outcome.error if outcome.code else None)


def failed_syncs(bug: str) -> str | None:
    """A failed sync ends the process, and nothing is lost."""
    outcome = run(Fault("fdatasync", "error=EIO", "opened"), 2, bug=bug)
    assert ended_cleanly(outcome)
    return outcome.wrong or (None if outcome.code == FAILED else "it went on")


QUICK: Final[dict[str, Check]] = {
    "drops_the_marks_of_a_batch": a_life,
    "marks_one_batch_too_many": a_life,
    "begins_the_next_file_a_position_late": a_life,
    "seals_a_record_that_is_not_there": a_life,
    "miscounts_the_file_before": a_life,
    "appends_what_is_sent_again": a_life,
    "loses_what_it_puts_aside": a_life,
    "introduces_no_string_twice": a_life,
    "forgets_marks_when_it_recovers": a_life,
    "trusts_every_record": flipped_bits,
    "trusts_every_log": changed_logs,
    "flips_before_the_lake_has_it": rollovers,
    "flips_a_position_short": rollovers,
    "rolls_again_what_is_rolled": rollovers,
    "shows_files_before_rows_leave": rollovers,
}
TRACED: Final[dict[str, Check]] = {
    "acks_before_the_commit": power_cuts,
    "commits_without_a_sync": power_cuts,
    "does_not_sync_directories": power_cuts,
    "takes_a_full_disk_for_done": full_disks,
    "goes_on_after_a_failed_sync": failed_syncs,
}


@pytest.mark.parametrize("bug", QUICK)
def test_each_seeded_bug_is_caught(bug: str) -> None:
    wrong = QUICK[bug](bug)
    print(wrong)  # noqa: T201 - by what it was caught
    assert wrong is not None


@pytest.mark.parametrize("check", dict.fromkeys(QUICK.values()))
def test_without_a_bug_there_is_nothing_to_catch(check: Check) -> None:
    assert check(NONE) is None


def test_every_bug_has_its_check() -> None:
    assert {*QUICK, *TRACED} == set(bugs.BUGS)


@pytest.mark.hard
@pytest.mark.usefixtures("tracer")
class TestTraced:
    @pytest.mark.parametrize("bug", TRACED)
    def test_each_seeded_bug_is_caught_by_watching_its_calls(self, bug: str) -> None:
        wrong = TRACED[bug](bug)
        print(wrong)  # noqa: T201 - by what it was caught
        assert wrong is not None

    @pytest.mark.parametrize("check", dict.fromkeys(TRACED.values()))
    def test_without_a_bug_there_is_nothing_to_catch_in_calls(self, check: Check) -> None:
        assert check(NONE) is None


# What the checks are made of


def complaint(action: Callable[[], object], *fine: type[Exception]) -> str | None:
    """Return what an action complains of; some complaints are as they should be."""
    try:
        action()
    except fine:
        return None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def seeded(bug: str) -> Iterator[pytest.MonkeyPatch]:
    """Give this process a bug."""
    with pytest.MonkeyPatch.context() as patch:
        if bug:
            bugs.BUGS[bug](patch.setattr)
        yield patch


@contextmanager
def finished_life() -> Iterator[tuple[Path, dict[str, pa.RecordBatch]]]:
    """Live in this process; yield the data and its rows."""
    root = scratch()
    try:
        scenario = SCENARIOS["brief"]
        scenario.steps(Life(root, scenario.senders))
        yield root / "data", Model.of(root / "data", scenario).rows
    finally:
        shutil.rmtree(root)


def expect_rows(directory: Path, rows: dict[str, pa.RecordBatch]) -> None:
    recovered = recover(directory / "journal", SystemDisk())
    for name, expected in rows.items():
        assert model.rows_of(recovered, name).equals(expected), name


def change_and_recover(directory: Path, told: list[str]) -> None:
    (log,) = (directory / "journal").glob("*-wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    recovered = recover(directory / "journal", SystemDisk())
    promises = promises_of([line.removeprefix("ack ") for line in told])
    model.check_promises(recovered, promises)


def first_broken(life: Recorded) -> str | None:
    return next(iter(explore(life, SEED, each=1, most=2, enough=1).broken), None)


def numbered(*sequences: int) -> pa.RecordBatch:
    instants = [NOON + sequence for sequence in sequences]
    return ticks(len(sequences), sequence=list(sequences), ts_event=instants)


def roll(store: Store) -> None:
    number = store._journal.roll()
    until(lambda: store._segments.newest >= number)
    store.rollover.step()


def roll_over_and_restart(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Look after each step; a commit fails on the way, and memory lets go of what it may."""
    lab = Lab(root)
    try:
        store = lab.open()
        send(store, numbered(1, 2, 3))
        with patch.context() as once:
            once.setattr(LakeTable, "commit_part", refuse)
            with pytest.raises(LakeError):
                roll(store)
            assert visible(store) == [1, 2, 3]
        for _ in range(2):
            store.rollover.step()
            assert visible(store) == [1, 2, 3]
            lab.clock.instant += HOUR
        send(store, numbered(4, 5))
        roll(store)
        store = lab.reopen(store)
        assert visible(store) == [1, 2, 3, 4, 5]
        lab.clock.instant += HOUR
        store.rollover.step()
        assert visible(store) == [1, 2, 3, 4, 5]
    finally:
        lab.close_all()


def refuse(*_: Any, **__: Any) -> None:
    raise LakeError("the disk went away")
