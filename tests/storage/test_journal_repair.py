"""A damaged journal is put in order: what is intact stays, what is lost is told."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from storage.errors import JournalError
from storage.journal_repair import Repaired, repair
from storage.journal_verify import FileReport, verify
from storage.ports import SystemDisk
from storage.recovery import Recovered, recover
from tests.storage.conftest import HOUR, NOON, Lab, TurnedClock, gamma, send, ticks, until

FILES: Final = 3
COMMITS: Final = 4
ROWS: Final = 5
EXPECTED: Final = [
    file * 100 + part * 10 + row
    for file in range(FILES)
    for part in range(COMMITS)
    for row in range(ROWS)
]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: two sealed, one whose commits are all in its log; a symbol more each commit."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    store = lab.open()
    for file in range(FILES):
        lab.clock.instant = NOON + file * HOUR
        for part in range(COMMITS):
            sequence = [file * 100 + part * 10 + row for row in range(ROWS)]
            instants = [NOON + one for one in sequence]
            batch = ticks(
                ROWS, sequence=sequence, ts_event=instants, ts_recv=instants, symbol=f"S{part}"
            )
            send(store, batch, producer="p", first=file * COMMITS + part + 1)
            send(store, gamma(ts_event=NOON + file * 100 + part), dataset="gex")
    directory = lab.directory / "journal"
    until(lambda: len(list(directory.glob("*-wal"))) == 1)
    copied = lab.directory / "copied"
    shutil.copytree(directory, copied)
    lab.close_all()
    return copied


@pytest.fixture
def journal(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "journal"))


def damages(journal: Path) -> list[FileReport]:
    return [report for report in verify(journal) if report.damage is not None]


def repaired(journal: Path, **rolled: int) -> Repaired:
    clock = TurnedClock(NOON + 10 * HOUR)
    return repair(journal, rolled, clock=clock, disk=SystemDisk())


def recovered(journal: Path) -> Recovered:
    return recover(journal, SystemDisk())


def sequences(found: Recovered) -> list[int]:
    store = found.stores["ticks"]
    batches = store.journal_batches(store.base, store.end)
    return [row for batch in batches for row in batch["sequence"].to_pylist()]


def gaps(found: Recovered) -> list[dict[str, object]]:
    store = found.stores["gaps"]
    return [row for b in store.journal_batches(store.base, store.end) for row in b.to_pylist()]


def changed(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql, values)


def file_of(journal: Path, number: int) -> Path:
    (path,) = journal.glob(f"{number:08d}-*.journal")
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.endswith("-shm")}


def test_an_intact_journal_is_left_alone(journal: Path) -> None:
    before = content(journal)
    assert [(one.records, one.rows, one.damage) for one in verify(journal)] == [(8, 24, None)] * 3
    assert repaired(journal) == Repaired()
    assert content(journal) == before
    assert [path.name for path in journal.parent.iterdir()] == ["journal"]


def test_lost_rows_are_counted_and_told_and_all_others_stay(journal: Path) -> None:
    changed(file_of(journal, 2), "UPDATE records SET body = zeroblob(length(body)) WHERE id = 3")
    (damage,) = damages(journal)
    assert damage.damage is not None
    assert (damage.path.name[:8], damage.damage.record) == ("00000002", 3)
    before = content(journal)
    done = repaired(journal)
    assert [(one.dataset, one.rows) for one in done.lost] == [("ticks", ROWS)]
    found = recovered(journal)
    assert sequences(found) == EXPECTED[:25] + EXPECTED[30:]
    assert found.stores["gex"].end == FILES * COMMITS
    assert found.marks == {"p": FILES * COMMITS}
    (gap,) = gaps(found)
    assert (gap["dataset"], gap["reason"], gap["state"]) == ("ticks", "downtime", "open")
    assert done.evidence is not None
    assert content(done.evidence) == before
    assert damages(journal) == []
    assert repaired(journal).evidence is None


def test_the_server_goes_on_where_the_repaired_journal_ends(journal: Path) -> None:
    changed(file_of(journal, 2), "DELETE FROM records WHERE id = 1")
    repaired(journal)
    lab = Lab(journal.parent, TurnedClock(NOON + 11 * HOUR))
    store = lab.open()
    assert store.producers.durable("p") == FILES * COMMITS
    send(store, ticks(1, sequence=[999]), producer="p", first=FILES * COMMITS + 1)
    lab.close(lab.reopen(store))
    assert damages(journal) == []
    assert sequences(recovered(journal))[-1] == 999


@pytest.mark.parametrize(
    ("number", "sql", "lost"),
    [
        (1, "UPDATE header SET content = 'nothing'", {}),
        (2, "DELETE FROM header", {}),
        (3, "UPDATE header SET checksum = x'00'", {}),
        (2, "DELETE FROM seal", {}),
        (2, "UPDATE seal SET records = 1", {}),
        (1, "UPDATE records SET rows = 9 WHERE id = 1", {"ticks": ROWS}),
        (1, "UPDATE records SET strings = '{}' WHERE id = 1", {"ticks": ROWS}),
        (1, "DELETE FROM records WHERE id = 8", {"gex": 1}),
        (2, "DELETE FROM records WHERE id = 7", {"ticks": ROWS}),
        (2, "DELETE FROM records", {"ticks": 20, "gex": 4}),
        (2, "DROP TABLE records", {}),
    ],
)
def test_nothing_is_lost_but_what_was_damaged(
    journal: Path, number: int, sql: str, lost: dict[str, int]
) -> None:
    changed(file_of(journal, number), sql)
    done = repaired(journal)
    told = {one.dataset: one.rows for one in done.lost}
    found = recovered(journal)
    if "DROP" in sql:  # pages of a dropped table may be found yet
        lost = {name: rows for name, rows in told.items() if rows is not None}
    assert told == lost
    assert len(sequences(found)) == len(EXPECTED) - lost.get("ticks", 0)
    assert found.stores["gex"].end == 12 - lost.get("gex", 0)
    assert len(gaps(found)) == len(lost)
    assert damages(journal) == []


def test_rows_whose_strings_only_a_lost_record_knew_are_lost_with_it(journal: Path) -> None:
    for number in (2, 3):
        file_of(journal, number).unlink()
    (journal / f"{max(journal.glob('*-wal')).name}").unlink()
    changed(file_of(journal, 1), "DELETE FROM records WHERE id = 5")  # with the third symbol
    done = repaired(journal)
    assert [(one.dataset, one.rows) for one in done.lost] == [("ticks", 2 * ROWS)]
    assert sequences(recovered(journal)) == EXPECTED[:10]


def test_a_missing_file_leaves_a_gap(journal: Path) -> None:
    file_of(journal, 2).unlink()
    done = repaired(journal)
    assert {one.dataset: one.rows for one in done.lost} == {"ticks": 20, "gex": 4}
    found = recovered(journal)
    assert sequences(found) == EXPECTED[:20] + EXPECTED[40:]
    assert found.marks == {"p": 12}


def test_a_file_that_is_none_is_left_out_and_kept_as_evidence(journal: Path) -> None:
    file_of(journal, 2).rename(journal / "broken.journal")
    shutil.copy(journal / "broken.journal", file_of(journal, 1).with_name("kept"))
    done = repaired(journal)
    assert "broken.journal" in done.left_out
    assert done.evidence is not None
    assert (done.evidence / "broken.journal").exists()


class TestRolledFiles:
    def test_a_damaged_file_that_is_in_the_lake_is_left_out_and_nothing_lost(
        self, journal: Path
    ) -> None:
        changed(file_of(journal, 2), "DELETE FROM records WHERE id > 2")
        done = repaired(journal, ticks=40, gex=8)
        assert done.lost == []
        assert [name[:8] for name in done.left_out] == ["00000001", "00000002"]
        assert sequences(recovered(journal)) == EXPECTED[40:]

    def test_positions_that_the_lake_counts_on_are_never_moved(self, journal: Path) -> None:
        changed(file_of(journal, 2), "DELETE FROM records WHERE id = 1")
        before = content(journal)
        with pytest.raises(JournalError, match="the lake holds some of this file"):
            repaired(journal, ticks=40, gex=4)
        assert content(journal) == before


class TestInterruption:
    """Cut short anywhere, it can be run again, and until then no server starts."""

    @pytest.mark.parametrize("calls", range(1, 12))
    def test_it_is_safe_to_run_it_again(self, journal: Path, calls: int) -> None:
        changed(file_of(journal, 2), "DELETE FROM records WHERE id = 1")
        disk = FailingDisk(calls)
        try:
            repair(journal, {}, clock=TurnedClock(), disk=disk)
        except JournalError:
            try:
                SystemDisk().make_directory(journal)  # as a server does that starts
                started = recovered(journal)
            except JournalError:
                pass
            else:
                assert len(sequences(started)) == 55
        repaired(journal)
        assert len(sequences(recovered(journal))) == 55
        kept = [path for path in journal.parent.glob("journal.damaged-*") if any(path.iterdir())]
        assert len(kept) == 1


class FailingDisk(SystemDisk):
    """Refuses everything after some calls."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError("no more")

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)


class TestFlips:
    """One byte of a file or of its log is another: no more is lost than what it belonged to."""

    @pytest.mark.parametrize("suffix", [".journal", "-wal"])
    def test_a_repair_brings_back_a_journal_that_starts(
        self, intact: Path, tmp_path: Path, suffix: str
    ) -> None:
        chance = random.Random(7)
        wrong = []
        for trial in range(40):
            journal = Path(shutil.copytree(intact, tmp_path / f"{trial}" / "journal"))
            path = max(journal.glob(f"*{suffix}")) if suffix == "-wal" else file_of(journal, 2)
            at = chance.choice([n for n, byte in enumerate(path.read_bytes()) if byte])
            data = bytearray(path.read_bytes())
            data[at] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            done = repaired(journal)
            told = {one.dataset: one.rows or 0 for one in done.lost}
            rows = len(sequences(recovered(journal)))
            # The last commit of a log can't be told from one that was torn.
            torn = 5 if suffix == "-wal" and not done.damaged else 0
            if not len(EXPECTED) - torn <= rows + told.get("ticks", 0) <= len(EXPECTED):
                wrong.append((at, rows, told))
        assert wrong == []


def test_a_journal_is_verified_while_a_server_writes_it(lab: Lab) -> None:
    store = lab.open()
    send(store, ticks(3))
    directory = lab.directory / "journal"
    before = sorted(path.name for path in directory.iterdir())
    (report,) = verify(directory)
    assert (report.records, report.rows, report.damage) == (1, 3, None)
    assert sorted(path.name for path in directory.iterdir()) == before
    send(store, ticks(1, sequence=[9]))
    (report,) = verify(directory)
    assert report.rows == 4
