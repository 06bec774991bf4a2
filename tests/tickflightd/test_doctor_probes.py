"""What `doctor` measures, on this machine."""

import os
import socket
import sys
from pathlib import Path

import pytest

from storage.errors import JournalError
from storage.journal_chain import journal_files
from storage.journal_file import Header, JournalWriter, file_name
from storage.ports import MICROSECONDS, SystemClock
from tickflightd.doctor import probes

HEADER = Header(1, 1, 0, {"ticks": 7}, {}, 0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_disk_test_leaves_nothing_behind(tmp_path: Path) -> None:
    times = probes.disk_times(tmp_path)
    assert 2 <= len(times.sync_seconds) <= probes.SYNCS
    assert times.write_rate > 0
    assert list(tmp_path.iterdir()) == []


def test_the_disk_test_ends_in_time_on_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SECONDS_MAX", 0.0)
    assert len(probes.disk_times(tmp_path).sync_seconds) == 2


def test_a_clock_that_is_set_while_it_is_watched_is_noticed() -> None:
    class Set(SystemClock):
        ahead = 0

        def now(self) -> int:
            return super().now() + self.ahead

    clock = Set()
    watch = probes.ClockWatch.begin(clock)
    assert abs(watch.step_seconds()) < 1
    clock.ahead = 60 * MICROSECONDS
    assert 59 < watch.step_seconds() < 61


def test_the_kernel_says_whether_the_clock_is_synchronised_or_nothing() -> None:
    assert probes.is_synchronised() in {True, False, None}


@linux
def test_who_listens_on_a_port_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert f"(process {os.getpid()})" in str(probes.listener(port))
    assert probes.listener(port) is None


def test_available_memory_is_read_or_unknown(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 9 kB\nMemAvailable:      5 kB\n")
    assert probes.available_memory(told) == 5 * 1024
    assert probes.available_memory(tmp_path / "absent") is None


def test_the_nearest_directory_that_is_there_is_found(tmp_path: Path) -> None:
    assert probes.existing_parent(tmp_path / "a" / "b") == tmp_path


def test_spools_and_scratch_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "spool" / "ticks").mkdir(parents=True)
    (tmp_path / "spool" / "ticks" / "0000000001.spool").touch()
    (tmp_path / ".control.db.abcd").touch()
    (tmp_path / "control.db").touch()
    assert [path.name for path in probes.spool_files(tmp_path)] == ["0000000001.spool"]
    assert probes.scratch_files(tmp_path) == [".control.db.abcd"]


class TestJournal:
    def test_headers_are_read_beside_the_writer_and_change_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / file_name(1, 0)
        writer = JournalWriter(path, HEADER)
        before = {one.name: one.read_bytes() for one in tmp_path.glob("*.journal*")}
        (found,) = journal_files(tmp_path)
        assert found.header == HEADER
        assert found.size > 0
        after = {one.name: one.read_bytes() for one in tmp_path.glob("*.journal*")}
        for name in (path.name, f"{path.name}-wal"):
            assert after[name] == before[name]
        writer.seal()  # held until here: whoever closes the file last folds its log away

    def test_a_log_that_a_killed_server_left_is_not_folded(self, tmp_path: Path) -> None:
        killed = (
            "import os, sys; from pathlib import Path\n"
            "from storage.journal_file import Header, JournalWriter\n"
            "JournalWriter(Path(sys.argv[1]), Header(1, 1, 0, {'ticks': 7}, {}, 0))\n"
            "os._exit(0)"
        )
        path = tmp_path / file_name(1, 0)
        os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", killed, str(path)])
        log = path.with_name(f"{path.name}-wal")
        before = log.read_bytes()
        (found,) = journal_files(tmp_path)
        assert found.header == HEADER
        assert log.read_bytes() == before

    def test_a_file_cut_off_while_it_was_made_has_no_header(self, tmp_path: Path) -> None:
        (tmp_path / file_name(1, 0)).touch()
        assert [one.header for one in journal_files(tmp_path)] == [None]

    def test_what_is_no_journal_is_an_error_with_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / file_name(1, 0)
        path.write_bytes(b"x" * 10_000)
        with pytest.raises(JournalError, match=path.name):
            journal_files(tmp_path)

    def test_without_a_directory_there_are_no_files(self, tmp_path: Path) -> None:
        assert journal_files(tmp_path / "absent") == []
