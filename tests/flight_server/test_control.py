import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from flight_server import control_tables
from flight_server.control import ControlDatabase
from flight_server.errors import ControlStoreError
from flight_server.files import FileRegistry
from flight_server.keys import KeyStore, Scope
from storage.ports import SystemClock


def open_and_close(directory: Path) -> None:
    ControlDatabase(directory).close()


def test_the_database_survives_a_power_cut_by_its_settings(tmp_path: Path) -> None:
    database = ControlDatabase(tmp_path)
    with database.read() as reader:
        assert reader.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with database.write() as writer:
        assert writer.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
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
        list(map(writer.connection.execute, statements))
    with database.read() as reader:
        assert (
            reader.connection.execute("SELECT 1 FROM meta WHERE name = 'half'").fetchone() is None
        )
    database.close()


def test_what_sqlite_raises_becomes_an_error_of_ours(tmp_path: Path) -> None:
    database = ControlDatabase(tmp_path)
    with pytest.raises(ControlStoreError, match=r"control\.db"), database.read() as reader:
        reader.connection.execute("SELECT * FROM nowhere")
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


def of_version(version: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a database as an older version of the service did."""
    with monkeypatch.context() as patch:
        patch.setattr(control_tables, "_MIGRATIONS", control_tables._MIGRATIONS[:version])
        patch.setattr("flight_server.control.TABLES", ())
        open_and_close(directory)


class TestUpgrades:
    KEY = "INSERT INTO keys (id, digest, model_id, scopes, symbols, created_at) VALUES"
    FILE = (
        "INSERT INTO files (digest, name, dataset, options, producer, registered_at, number, rows)"
        " VALUES"
    )

    @pytest.fixture(params=[1, 2])
    def old(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        of_version(request.param, tmp_path, monkeypatch)
        with closing(sqlite3.connect(tmp_path / "control.db")) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (request.param,)
            database.execute(self.KEY + """ ('abc', x'00', 'bot', '["sql"]', '["SPY"]', 5)""")
            for digest, number, rows in (("a", 1, 9), ("b", 7, None)):
                values = (digest * 32, "f", "ticks", "{}", "p", 5, number, rows)
                database.execute(self.FILE + " (?, ?, ?, ?, ?, ?, ?, ?)", values)
            if request.param == 2:
                database.execute("INSERT INTO usage VALUES ('2026-11-21', 'abc', 'bot', 1, 2, 3)")
            database.commit()
        return tmp_path

    def test_an_older_database_keeps_its_rows(self, old: Path) -> None:
        clock = SystemClock()
        with KeyStore(old, clock) as keys:
            (record,) = keys.list()
        assert (record.id, record.scopes, record.symbols) == (
            "abc",
            frozenset({Scope.SQL}),
            frozenset({"SPY"}),
        )
        with FileRegistry(old, clock) as files:
            known = [
                files.register(d * 32, name="f", dataset="ticks", options={}, producer="p")
                for d in "abc"
            ]
        assert [one.number for one in known] == [1, 7, 8]
        assert [one.rows for one in known] == [9, None, None]

    def test_what_is_damaged_after_an_upgrade_is_noticed(self, old: Path) -> None:
        open_and_close(old)
        with closing(sqlite3.connect(old / "control.db")) as database:
            database.execute("UPDATE keys SET symbols = NULL")
            database.commit()
        with pytest.raises(ControlStoreError, match="table keys"):
            open_and_close(old)

    def test_an_interrupted_upgrade_leaves_the_older_database(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(control_tables.USAGE, "fill", Mock(side_effect=OSError("power")))
            with pytest.raises(ControlStoreError, match="power"):
                open_and_close(old)
        with KeyStore(old, SystemClock()) as keys:
            assert [record.id for record in keys.list()] == ["abc"]


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ControlStoreError, match="data"):
        open_and_close(tmp_path / "data")
