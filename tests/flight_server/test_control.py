import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flight_server.control import ControlDatabase
from flight_server.errors import ControlStoreError


def open_and_close(directory: Path) -> None:
    ControlDatabase(directory).close()


def test_the_database_survives_a_power_cut_by_its_settings(tmp_path: Path) -> None:
    database = ControlDatabase(tmp_path)
    with database.read() as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with database.write() as writer:
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    database.close()


def test_openers_of_a_new_directory_end_up_with_one_pair_of_files(tmp_path: Path) -> None:
    for attempt in range(10):
        directory = tmp_path / str(attempt)
        ready = threading.Barrier(6)

        def race(directory: Path = directory, ready: threading.Barrier = ready) -> bytes:
            ready.wait()
            database = ControlDatabase(directory)
            database.close()
            return database.pepper

        with ThreadPoolExecutor(6) as pool:
            peppers = {race.result() for race in [pool.submit(race) for _ in range(6)]}
        assert len(peppers) == 1
        assert {path.name for path in directory.iterdir()} == {"control.db", "control.pepper"}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    database = ControlDatabase(tmp_path)
    statements = ["INSERT INTO meta VALUES ('half', x'00')", "not SQL"]
    with pytest.raises(ControlStoreError), database.write() as writer:
        list(map(writer.execute, statements))
    with database.read() as reader:
        assert reader.execute("SELECT 1 FROM meta WHERE name = 'half'").fetchone() is None
    database.close()


def test_what_sqlite_raises_becomes_an_error_of_ours(tmp_path: Path) -> None:
    database = ControlDatabase(tmp_path)
    with pytest.raises(ControlStoreError, match=r"control\.db"), database.read() as reader:
        reader.execute("SELECT * FROM nowhere")
    database.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_pepper_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    open_and_close(tmp_path)
    (tmp_path / "control.pepper").chmod(mode)
    with pytest.raises(ControlStoreError, match="chmod 600"):
        open_and_close(tmp_path)


def test_a_lost_pepper_is_not_replaced_by_another(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    (tmp_path / "control.pepper").unlink()
    with pytest.raises(ControlStoreError, match="missing"):
        open_and_close(tmp_path)
    assert not (tmp_path / "control.pepper").exists()


def test_the_pepper_of_another_database_is_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path / "a")
    open_and_close(tmp_path / "b")
    (tmp_path / "b/control.pepper").rename(tmp_path / "a/control.pepper")
    with pytest.raises(ControlStoreError, match="belong together"):
        open_and_close(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_pepper_is_refused(tmp_path: Path, content: bytes) -> None:
    open_and_close(tmp_path)
    (tmp_path / "control.pepper").write_bytes(content)
    with pytest.raises(ControlStoreError, match="not a pepper"):
        open_and_close(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    (tmp_path / "control.db").write_bytes(b"not a database, but as long as one" * 200)
    with pytest.raises(ControlStoreError, match=r"control\.db"):
        open_and_close(tmp_path)


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    content = bytearray((tmp_path / "control.db").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # all pages but the first
    (tmp_path / "control.db").write_bytes(content)
    with pytest.raises(ControlStoreError, match=r"control\.db"):
        open_and_close(tmp_path)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    connection = sqlite3.connect(tmp_path / "control.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ControlStoreError, match="newer version"):
        open_and_close(tmp_path)


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ControlStoreError, match="data"):
        open_and_close(tmp_path / "data")
