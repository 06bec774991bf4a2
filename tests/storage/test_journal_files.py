"""What a journal file has lost or had changed is noticed: named, or harmless, never served."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import JournalCorruptError, JournalError
from storage.journal import HOUR
from storage.journal_file import Header, JournalReader, JournalWriter, Record, connect, file_name
from storage.journal_pages import place_of
from storage.ports import SystemDisk
from storage.recovery import recover
from tests.storage.conftest import NOON, Lab, send, stored, ticks, until

HEADER = Header(1, 1, NOON, {"ticks": 0}, {"p": 3}, 0)
RECORD = Record("ticks", 0, 2, NOON, {"p": 4}, {"symbol": ["MNQ"]}, b"body")
FLIPS = 300
"""Of some 40,000 bits: another sample every day, and enough to meet every kind of byte."""


def write(path: Path, *records: Record, header: Header = HEADER) -> JournalWriter:
    writer = JournalWriter(path, header)
    writer.commit(list(records))
    return writer


class TestOneFile:
    def test_what_was_committed_reads_back(self, tmp_path: Path) -> None:
        path = tmp_path / "a.journal"
        long = replace(RECORD, position=2, body=b"x" * 10_000)
        write(path, RECORD, long).seal()
        reader = JournalReader(path)
        assert reader.header == HEADER
        assert list(reader.records()) == [RECORD, long]

    def test_a_file_that_was_never_sealed_reads_back_too(self, tmp_path: Path) -> None:
        writer = write(tmp_path / "a.journal", RECORD)
        assert list(JournalReader(writer.path).records()) == [RECORD]

    def test_a_file_is_never_continued(self, tmp_path: Path) -> None:
        write(tmp_path / "a.journal", RECORD).seal()
        with pytest.raises(JournalError, match="never continued"):
            JournalWriter(tmp_path / "a.journal", HEADER)

    def test_every_connection_makes_its_commits_survive_a_power_cut(self, tmp_path: Path) -> None:
        with closing(connect(tmp_path / "a.journal")) as connection:
            pragmas = ("journal_mode", "synchronous", "page_size", "wal_autocheckpoint")
            values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
        assert values == ["wal", 2, 8192, 0]

    def test_names_sort_as_files_follow_each_other(self) -> None:
        names = [file_name(number, NOON + number * HOUR) for number in (1, 2, 10, 99_999)]
        assert names == sorted(names)
        assert names[0].endswith("T13.journal"), names

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE records SET rows = 3",
            "UPDATE records SET arrival = arrival + 1",
            "UPDATE records SET dataset = 'quotes'",
            "UPDATE records SET dataset = CAST(dataset AS BLOB)",
            "UPDATE records SET marks = '{}'",
            "UPDATE records SET position = 1.5",
            "UPDATE records SET strings = CAST(x'7bff7d' AS TEXT)",
            "UPDATE records SET body = x'00'",
            "UPDATE records SET checksum = x'00'",
            "UPDATE records SET id = 7 WHERE id = 1",
            "DELETE FROM records WHERE id = 1",
            "DELETE FROM records WHERE id = 2",
            "UPDATE header SET content = '{}'",
            "UPDATE header SET content = replace(content, '\"epoch\": 1', '\"epoch\": 2')",
            "UPDATE header SET content = CAST(x'7bff7d' AS TEXT)",
            "DELETE FROM header",
            "INSERT INTO header SELECT * FROM header",
            "UPDATE seal SET records = 1",
            "UPDATE seal SET records = 'two'",
            "DROP TABLE records",
            "DROP TABLE seal",
            "ALTER TABLE records DROP COLUMN strings",
            "PRAGMA user_version=3",
            "PRAGMA application_id=7",
        ],
    )
    def test_any_change_is_found(self, tmp_path: Path, change: str) -> None:
        path = tmp_path / "a.journal"
        write(path, RECORD, replace(RECORD, position=2)).seal()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(change)
        with pytest.raises(JournalCorruptError) as caught:
            list(JournalReader(path).records())
        assert caught.value.path == path

    def test_a_record_of_another_file_is_found(self, tmp_path: Path) -> None:
        for number in (1, 2):
            header = replace(HEADER, number=number)
            write(tmp_path / f"{number}.journal", RECORD, header=header).seal()
        with closing(sqlite3.connect(tmp_path / "1.journal", isolation_level=None)) as connection:
            connection.execute("ATTACH ? AS other", (str(tmp_path / "2.journal"),))
            connection.execute("DELETE FROM records")
            connection.execute("INSERT INTO records SELECT * FROM other.records")
        with pytest.raises(JournalCorruptError, match=r"record 1, byte \d+: the checksum"):
            list(JournalReader(tmp_path / "1.journal").records())

    @pytest.mark.parametrize("sealed", [True, False])
    @pytest.mark.parametrize("length", [100, 20_000])
    def test_damage_is_named_with_the_record_and_the_byte_it_begins_at(
        self, tmp_path: Path, length: int, *, sealed: bool
    ) -> None:
        path = tmp_path / "a.journal"
        body = random.Random(7).randbytes(length)
        writer = write(path, RECORD, replace(RECORD, position=2, body=body))
        if sealed:
            writer.seal()
        damaged = path if sealed else path.with_name(f"{path.name}-wal")
        place = place_of(path, 2)
        assert place is not None
        assert place.path == damaged
        assert body[:50] in damaged.read_bytes()[place.offset :]
        if sealed:
            flipped(path, (path.read_bytes().index(body[50:90])) * 8)
            with pytest.raises(
                JournalCorruptError, match=f"record 2, byte {place.offset}: its rows'"
            ):
                list(JournalReader(path).records())


@pytest.fixture
def journal(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal of three hours: two sealed files, and one whose commits are all in its log."""
    monkeypatch.setattr("storage.journal.HOUSEKEEPING_SECONDS", 0.01)
    store = lab.open()
    for hour in range(3):
        lab.clock.instant = NOON + hour * HOUR
        for part in range(4):
            at = hour * 100 + part * 10
            send(store, numbered(at, 5), producer="p", first=hour * 4 + part + 1)
    directory = lab.directory / "journal"
    wait_for_seals(lab, directory)
    copied = lab.directory / "copied" / "journal"
    shutil.copytree(directory, copied)
    return copied


def numbered(start: int, count: int) -> pa.RecordBatch:
    instants = [NOON + start + i for i in range(count)]
    sequences = list(range(start, start + count))
    return ticks(count, ts_event=instants, ts_recv=instants, sequence=sequences)


def wait_for_seals(lab: Lab, directory: Path) -> None:
    """Wait for the housekeeper, who seals a file when its hour is over."""
    until(lambda: len(list(directory.glob("*-wal"))) == 1)
    assert lab.failures == []


def sequences(directory: Path) -> list[int]:
    """What a server would serve after starting on a copy of this journal."""
    store = recover(directory, SystemDisk()).stores["ticks"]
    batches = store.journal_batches(store.base, store.end)
    return [row for batch in batches for row in batch["sequence"].to_pylist()]


EXPECTED = [hour * 100 + part * 10 + i for hour in range(3) for part in range(4) for i in range(5)]


class TestChain:
    def test_an_intact_journal_gives_every_row(self, journal: Path) -> None:
        assert [path.name[:8] for path in sorted(journal.glob("*.journal"))] == [
            "00000001",
            "00000002",
            "00000003",
        ]
        assert sequences(journal) == EXPECTED

    def test_a_missing_file_is_named_by_the_one_after_it(self, journal: Path) -> None:
        sorted(journal.glob("*.journal"))[1].unlink()
        with pytest.raises(JournalCorruptError, match="a file between them is missing") as caught:
            sequences(journal)
        assert caught.value.path.name.startswith("00000003")

    def test_the_first_files_may_be_gone(self, journal: Path) -> None:
        min(journal.glob("*.journal")).unlink()
        assert sequences(journal) == EXPECTED[20:]

    def test_a_file_that_lost_its_log_is_found_by_the_one_after_it(self, journal: Path) -> None:
        last = max(journal.glob("*.journal"))
        following = replace(
            HEADER,
            number=4,
            hour=NOON + 3 * HOUR,
            previous_records=JournalReader(last).header.previous_records,
        )
        write(journal / file_name(4, following.hour), header=following).seal()
        with closing(connect(last)) as connection:
            connection.execute("DELETE FROM records WHERE id > 1")
        with pytest.raises(JournalCorruptError, match="ended with record"):
            sequences(journal)

    def test_a_file_that_begins_where_the_one_before_it_does_not_end_is_named(
        self, journal: Path
    ) -> None:
        last = max(journal.glob("*.journal"))
        records = sum(1 for _ in JournalReader(last).records())
        header = replace(HEADER, number=4, positions={"ticks": 59}, previous_records=records)
        write(journal / file_name(4, NOON + 3 * HOUR), header=header).seal()
        with pytest.raises(JournalCorruptError, match="ticks goes on at position 59, not at 60"):
            sequences(journal)

    @pytest.mark.parametrize("keep", [1, 100, 8192, 16384, 20_000])
    def test_a_sealed_file_cut_short_is_named(self, journal: Path, keep: int) -> None:
        path = min(journal.glob("*.journal"))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(JournalError, match=path.name):
            sequences(journal)

    def test_a_log_cut_short_loses_whole_commits_from_its_end_only(self, journal: Path) -> None:
        (log,) = journal.glob("*-wal")
        whole = log.read_bytes()
        for keep in range(0, len(whole), 6_000):
            trial = journal.parent / f"cut {keep}" / "journal"
            shutil.copytree(journal, trial)
            (trial / log.name).write_bytes(whole[:keep])
            found = sequences(trial)
            assert found == EXPECTED[: len(found)]
            assert len(found) >= 40
            assert len(found) % 5 == 0

    @pytest.mark.parametrize("made", ["nothing", "settings", "empty"])
    def test_a_file_cut_while_it_was_made_is_removed(self, journal: Path, made: str) -> None:
        path = journal / file_name(4, NOON + 3 * HOUR)
        if made == "nothing":
            path.touch()
        elif made == "settings":
            connect(path).close()
        else:
            writer = JournalWriter(path, replace(HEADER, number=4))
            shutil.copy(path, path.with_suffix(".kept"))
            writer.seal()
            path.with_suffix(".kept").replace(path)
        assert sequences(journal) == EXPECTED
        assert not path.exists()

    @pytest.mark.parametrize(
        "content",
        [b"not a database, but long enough to be looked at as if it were one" * 20, "sqlite"],
    )
    def test_a_foreign_file_is_named_and_left_alone(
        self, journal: Path, content: bytes | str
    ) -> None:
        path = journal / file_name(4, NOON + 3 * HOUR)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE recipes (name TEXT)")
        with pytest.raises(JournalCorruptError, match=path.name):
            sequences(journal)
        assert path.exists()

    def test_nothing_is_read_while_a_repair_is_half_done(self, journal: Path) -> None:
        journal.with_name("journal.repair").write_text("half done")
        with pytest.raises(JournalError, match="has to be run again"):
            sequences(journal)

    def test_other_files_are_none_of_its_business(self, journal: Path) -> None:
        (journal / "notes.txt").write_text("hello")
        assert sequences(journal) == EXPECTED


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


class TestFlippedBits:
    """One bit of a copy of the journal is another than it was."""

    @pytest.fixture
    def trials(self, journal: Path) -> Callable[[Path], Path]:
        """Copies of the journal, one at a time."""
        trial = journal.parent / "trial"

        def fresh(of: Path) -> Path:
            shutil.rmtree(trial, ignore_errors=True)
            shutil.copytree(journal, trial)
            return trial / of.name

        return fresh

    def test_in_a_sealed_file_it_is_named_or_harmless(
        self, journal: Path, trials: Callable[[Path], Path]
    ) -> None:
        for path in journal.glob("*-wal"):
            path.unlink()
        unsealed = max(journal.glob("*.journal"))
        unsealed.unlink()
        last = max(journal.glob("*.journal"))
        bits = random.Random(7).sample(interesting_bits(last), FLIPS)
        missed = []
        for bit in bits:
            path = trials(last)
            flipped(path, bit)
            try:
                found = sequences(path.parent)
            except JournalError as error:
                unexpected = path.name not in str(error)
            else:
                unexpected = found != EXPECTED[:40]
            if unexpected:
                missed.append((bit // 8, bit % 8))
        assert missed == []

    def test_in_a_log_it_costs_whole_commits_from_its_end_at_most(
        self, journal: Path, trials: Callable[[Path], Path]
    ) -> None:
        """SQLite can't tell a flipped frame from one that a power cut tore."""
        (log,) = journal.glob("*-wal")
        bits = random.Random(7).sample(range(log.stat().st_size * 8), FLIPS // 2)
        for bit in bits:
            path = trials(log)
            flipped(path, bit)
            try:
                found = sequences(path.parent)
            except JournalError:
                continue
            assert found == EXPECTED[: len(found)]
            assert len(found) >= 40
            assert len(found) % 5 == 0


def interesting_bits(path: Path) -> list[int]:
    """Bits of bytes that are not padding: those that hold something, and their neighbours."""
    data = path.read_bytes()
    return [
        byte * 8 + bit
        for byte in range(len(data))
        if any(data[max(0, byte - 2) : byte + 3])
        for bit in range(8)
    ]


def test_rows_come_back_after_a_restart_in_the_order_they_had(lab: Lab) -> None:
    store = lab.open()
    send(store, ticks(3, sequence=[3, 1, 2], ts_event=[NOON + 5, NOON, NOON]))
    before = stored(store)
    assert stored(lab.reopen(store)) == before
