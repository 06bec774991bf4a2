"""Repair: what was damaged has its rows again, out of what it was made of."""

from pathlib import Path

import pytest

from storage.lake.files import FileKind
from storage.rollover_parts import State
from storage.store import Store
from tests.storage.conftest import HOUR
from tests.upkeep.conftest import DAY, LakeLab, dated, files_on_disk, rolled, sequences


def damaged(store: Store, number: int = 0) -> Path:
    """Flip a bit of a file, and have it noticed."""
    path = store.lake_directory / "ticks" / store.tables["ticks"].index.files[number].path
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)
    found = store.upkeep.verify(dataset="ticks")
    assert [report.path for report in found.reports if report.damage] == [
        path.relative_to(store.lake_directory / "ticks").as_posix()
    ]
    return path


def test_a_part_is_written_again_out_of_the_journal(lab: LakeLab, store: Store) -> None:
    rolled(
        lab,
        store,
        dated(lab.midnight, 1, 2),
        dated(lab.midnight, 3, 4, symbol="SPY"),
        dated(lab.midnight, 5),
    )
    path = damaged(store, 1)
    before = files_on_disk(store)
    done = store.upkeep.repair()
    assert done.left == ()
    (repaired,) = done.repaired
    assert repaired.path.endswith(path.name)
    assert sequences(store) == [1, 2, 3, 4, 5]
    assert files_on_disk(store) == {*before, repaired.became}  # what is damaged stays for a while
    assert (store.upkeep.status.state, store.upkeep.status.damaged) == (State.RUNNING, ())
    assert [report for report in store.upkeep.verify().reports if report.damage] == []
    assert sequences(lab.reopen(store)) == [1, 2, 3, 4, 5]


def test_a_joined_file_is_joined_again(lab: LakeLab, store: Store) -> None:
    yesterday = lab.midnight - DAY
    rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
    store.upkeep.compact("ticks")
    damaged(store)
    (repaired,) = store.upkeep.repair("ticks").repaired
    (file,) = store.tables["ticks"].index
    assert (file.path, file.kind) == (repaired.became, FileKind.COMPACT)
    assert sequences(store) == [1, 2]


@pytest.mark.parametrize("joined", [False, True])
def test_what_it_was_made_of_may_be_gone(lab: LakeLab, store: Store, *, joined: bool) -> None:
    yesterday = lab.midnight - DAY
    rolled(lab, store, dated(yesterday, 1), dated(yesterday, 2))
    if joined:
        store.upkeep.compact("ticks")
    lab.clock.instant += 3 * DAY
    store.upkeep.vacuum("ticks")
    store._segments._segments.clear()
    path = damaged(store)
    before = files_on_disk(store)
    done = store.upkeep.repair()
    assert done.repaired == ()
    (left,) = done.left
    assert left.path.endswith(path.name)
    assert "backup" in left.advice
    assert store.upkeep.status.state is State.DEGRADED
    assert files_on_disk(store) == before


def test_other_rows_than_were_committed_are_not_taken(lab: LakeLab, store: Store) -> None:
    rolled(lab, store, dated(lab.midnight, 1, 2))
    damaged(store)
    ledger = store.tables["ticks"].ledger()
    ((path, facts),) = ledger.items()
    wrong = type(facts).from_json({**facts.to_json(), "row_hash": facts.row_hash ^ 1})
    store.tables["ticks"].ledger = lambda: {path: wrong}  # type: ignore[method-assign]
    before = files_on_disk(store)
    (left,) = store.upkeep.repair().left
    assert "has other rows than were committed" in left.advice
    assert files_on_disk(store) == before


def test_nothing_damaged_is_nothing_to_do(lab: LakeLab, store: Store) -> None:
    rolled(lab, store, dated(lab.midnight, 1))
    lab.clock.instant += HOUR
    done = store.upkeep.repair()
    assert (done.repaired, done.left) == ((), ())
