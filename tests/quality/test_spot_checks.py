"""Spot-checks find what is not as it was written, name it, and find nothing where all is well."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flight_server import spot_checks
from flight_server.spot_checks import MODEL, SpotChecker
from storage.columnar_state import ColumnarState
from storage.lake.files import LakeFile
from storage.lake.table import LakeTable
from storage.schemas import Flag
from storage.spot_checks import CheckKind, Finding, file_sample
from tests.flight_server.conftest import Caller, House, serving, ticks, until
from tests.rollover.test_rollover_over_flight import rolled
from tests.storage.conftest import gamma

EVER = {"start": 0, "end": 1 << 57}
LOOKS = 12
"""So many that each of the few files and records of a test is met."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with serving(tmp_path, hot_window_us=1) as house:
        yield house


@pytest.fixture
def caller(house: House) -> Caller:
    return house.caller()


@pytest.fixture
def lake(caller: Caller, tmp_path: Path) -> Path:
    """The one file of the lake's ticks, whose rows are in memory no more."""
    caller.put(ticks(500))
    leave(caller)
    (path,) = tmp_path.glob("lake/ticks/*/*/*.parquet")
    return path


def leave(caller: Caller) -> None:
    """Have all ticks leave memory for the lake."""
    rolled(caller)
    until(lambda: "ticks" not in caller.act("status")["datasets"])


def checker(house: House) -> SpotChecker:
    assert house.service._checker is not None
    return house.service._checker


def looked(house: House, times: int = LOOKS) -> list[Finding]:
    return [found for _ in range(times) for found in checker(house).look()]


def failed(house: House) -> list[Finding]:
    return [found for found in looked(house) if found.passed < found.checked]


def status(caller: Caller) -> dict[str, Any]:
    services = {one["name"]: one for one in caller.act("status")["services"]}
    found: dict[str, Any] = services["spot_checks"]
    return found


def stored(caller: Caller, dataset: str = "spot_checks") -> list[dict[str, Any]]:
    ticket = {"op": "range", "dataset": dataset, "symbols": [], **EVER}
    rows: list[dict[str, Any]] = caller.get(ticket).to_pylist()
    return rows


class TestHealthy:
    def test_all_rows_are_as_they_should_be(self, house: House, caller: Caller) -> None:
        caller.put(ticks(3_000, symbol=["MNQ", "SPY", "VIX"] * 1_000))
        caller.put(gamma(), dataset="gex")
        found = looked(house)
        leave(caller)
        caller.put(ticks(100, sequence=list(range(9_000, 9_100))))
        found += looked(house, 3 * LOOKS)
        assert [one for one in found if one.passed < one.checked] == []
        assert {one.kind for one in found} == {CheckKind.JOURNAL, CheckKind.REREAD}
        assert {"ticks", "gex", "spot_checks"} <= {one.dataset for one in found}
        assert status(caller)["state"] == "running"
        assert "100 % as they should be" in status(caller)["detail"]

    def test_nothing_there_is_nothing_found(self, house: House) -> None:
        assert all(one.passed == one.checked for one in looked(house, 2))

    def test_synthetic_rows_that_stay_behind_are_not_missed(
        self, house: House, caller: Caller
    ) -> None:
        caller.put(ticks(20, source="sierra"))
        leave(caller)
        synthetic = int(Flag.SYNTHETIC | Flag.VALID_TICK)
        caller.put(ticks(20, flags=synthetic, sequence=list(range(50, 70))))
        leave(caller)
        assert failed(house) == []

    def test_a_file_that_goes_while_it_is_looked_at_is_no_failure(
        self, house: House, lake: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = house.service._store
        assert store is not None

        def going(table: LakeTable, file: LakeFile, *rest: Any) -> object:
            sample = file_sample(table, file, *rest)
            if lake.match(f"*/{file.path}"):
                table.replace([file], [])
                store._publication.show({table.dataset.name: table.index})
            return sample

        monkeypatch.setattr(spot_checks, "file_sample", going)
        assert [one for one in failed(house) if one.kind is CheckKind.REREAD] == []
        assert len(store.tables["ticks"].index) == 0

    def test_a_file_of_the_journal_that_is_just_being_made_is_no_failure(
        self, house: House, caller: Caller, tmp_path: Path
    ) -> None:
        caller.put(ticks(50))
        being_made = tmp_path / "journal" / "99999999-20990101T00.journal"
        being_made.touch()
        assert failed(house) == []
        being_made.unlink()

    def test_what_was_found_is_told_and_counted(self, house: House, caller: Caller) -> None:
        caller.put(ticks(50))
        (found,) = looked(house, 1)
        until(lambda: len(stored(caller)) > 0)
        (row,) = stored(caller)
        assert (row["dataset"], row["kind"], row["symbol"]) == ("ticks", "journal", "MNQ")
        assert (row["checked"], row["passed"]) == (found.checked, found.passed) == (50, 50)
        assert row["detail"] == found.detail
        counted = caller.act("status")["spot_checks"]
        assert counted == {"checked": 50, "passed": 50, "failing": 0}

    def test_a_later_life_counts_what_an_earlier_one_has_found(self, tmp_path: Path) -> None:
        with serving(tmp_path) as house:
            house.caller().put(ticks(50))
            looked(house, 1)
        with serving(tmp_path) as house:
            caller = house.caller()
            until(lambda: caller.act("status")["spot_checks"]["checked"] == 50)

    def test_our_own_questions_are_nobodys_queries(self, house: House, caller: Caller) -> None:
        caller.put(ticks(50))
        looked(house)
        stored(caller)
        until(lambda: len(stored(caller, "queries")) > 0)
        assert {row["model_id"] for row in stored(caller, "queries")} == {"model"}
        assert MODEL not in {key.model_id for key in house.keys.list()}

    def test_rounds_go_on_by_themselves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spot_checks, "FIRST_ROUND_SECONDS", 0.0)
        monkeypatch.setattr(spot_checks, "FILES_SECONDS", 0.01)
        monkeypatch.setattr(spot_checks, "ROUND_SECONDS", 0.01)
        with serving(tmp_path) as house:
            caller = house.caller()
            caller.put(ticks(50))
            until(lambda: len(stored(caller)) >= 3)


class TestDamage:
    def test_a_flipped_byte_of_a_lake_file_is_found(
        self, house: House, caller: Caller, lake: Path
    ) -> None:
        content = bytearray(lake.read_bytes())
        content[len(content) // 4] ^= 1
        lake.write_bytes(content)
        found = failed(house)
        assert any(lake.name in one.detail for one in found)
        assert status(caller)["state"] == "degraded"
        assert "run `tickflightd lake verify`" in status(caller)["detail"]

    def test_a_changed_value_with_right_checksums_is_found(
        self, house: House, caller: Caller, lake: Path
    ) -> None:
        rewrite(lake)
        whole, *_ = (one for one in failed(house) if one.kind is CheckKind.REREAD)
        assert lake.name in whole.detail
        assert "rows hash to" in whole.detail
        assert (whole.checked, whole.passed, whole.symbol) == (500, 0, "MNQ")
        assert str(lake.parents[3]) not in status(caller)["detail"]

    def test_the_journal_finds_rows_that_the_lake_has_changed(
        self, house: House, caller: Caller, lake: Path
    ) -> None:
        for number in range(500, 1_000, 100):  # as many records to choose from
            caller.put(ticks(100, sequence=list(range(number, number + 100)), symbol="SPY"))
        rewrite(lake, every=True)
        assert house.service._store is not None
        house.service._store._lake._reader._footers.clear()  # it knows the file as it was
        found = [one for one in failed(house) if one.kind is CheckKind.JOURNAL]
        assert found
        assert "readers don't get" in found[0].detail
        assert found[0].passed < found[0].checked == 200

    def test_a_file_that_is_missing_is_found(self, house: House, lake: Path) -> None:
        lake.unlink()
        assert any(lake.name in one.detail for one in failed(house))

    def test_a_flipped_byte_of_the_journal_is_found(
        self, house: House, caller: Caller, tmp_path: Path
    ) -> None:
        caller.put(ticks(500))
        leave(caller)
        path = min(tmp_path.glob("journal/*.journal"))
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE records SET body = zeroblob(length(body))")
        found, *_ = failed(house)
        assert (found.dataset, found.kind, found.passed) == ("journal", CheckKind.JOURNAL, 0)
        assert path.name in found.detail
        assert str(tmp_path) not in found.detail
        assert path.name in status(caller)["detail"]

    def test_a_wrong_value_in_memory_is_found(self, house: House, caller: Caller) -> None:
        caller.put(ticks(100))
        assert house.service._store is not None
        state = house.service._store.published.hot["ticks"]
        assert isinstance(state, ColumnarState)
        state.chunks[0].columns[state.columns.at["price"]][42] += 0.25
        found, *_ = failed(house)
        assert (found.dataset, found.checked, found.passed) == ("ticks", 100, 99)
        assert "readers don't get 1 of them" in found.detail

    def test_what_is_wrong_is_told_once_and_no_trouble_any_more_once_mended(
        self,
        house: House,
        caller: Caller,
        lake: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        kept = shutil.copy(lake, tmp_path / "kept")
        rewrite(lake)
        failed(house)
        told = [row for row in stored(caller) if row["passed"] < row["checked"]]
        assert len({row["detail"] for row in told}) == len(told)
        assert status(caller)["state"] == "degraded"
        with monkeypatch.context() as patch:
            patch.setattr(spot_checks, "ASK_SECONDS", 1e-9)  # nobody is that quick
            shutil.copy(kept, lake)
            looked(house)
        assert status(caller)["state"] == "degraded"
        assert failed(house) == []
        assert status(caller)["state"] == "running"
        assert "% as they should be" in status(caller)["detail"]
        assert "100 %" not in status(caller)["detail"]


def rewrite(path: Path, *, every: bool = False) -> None:
    """Change a price, or every one, as somebody would who writes whole files."""
    table = pq.ParquetFile(path).read()
    prices = table["price"].to_numpy().copy()
    prices[slice(None) if every else 7] += 0.25
    table = table.set_column(table.schema.get_field_index("price"), "price", [prices])
    pq.write_table(table, path, write_page_checksum=True, store_schema=False)


class TestWitnesses:
    def imported(self, caller: Caller, rows: int, sent: int) -> None:
        """Import a file of so many rows; some of them get lost on the way."""
        digest = "ab" * 16
        options = {"symbol": "MNQ"}
        known = caller.act(
            "files.register",
            digest=digest,
            name="day.parquet",
            dataset="ticks",
            options=options,
            producer=digest,
        )
        sequences = (known["number"] << 32) + np.arange(rows)
        caller.put(ticks(sent, sequence=sequences[:sent].tolist(), source="import"))
        caller.act("files.complete", digest=digest, rows=rows)

    def test_a_file_that_came_in_whole_verifies_its_slice(
        self, house: House, caller: Caller
    ) -> None:
        caller.put(ticks(10, symbol="SPY"))
        self.imported(caller, rows=100, sent=100)
        (found,) = checker(house).count_files()
        assert (found.kind, found.checked, found.passed) == (CheckKind.CROSS_SOURCE, 100, 100)
        detail = json.loads(found.detail)
        span = {"start": detail["start"], "end": detail["end"]}
        ticket = {"op": "range", "dataset": "ticks", "symbols": ["MNQ"], **span}

        def is_verified() -> bool:
            coverage = json.loads(caller.get(ticket).schema.metadata[b"tickflight.coverage"])
            return bool(coverage["symbols"]["MNQ"]["state"] == "verified")

        until(is_verified)
        assert checker(house).count_files() == []

    def test_rows_that_got_lost_on_the_way_are_found(self, house: House, caller: Caller) -> None:
        self.imported(caller, rows=100, sent=98)
        (found,) = checker(house).count_files()
        assert (found.checked, found.passed) == (100, 98)
        assert "day.parquet" in status(caller)["detail"]
        assert status(caller)["state"] == "degraded"

    def test_a_file_is_counted_once_over_all_lives(self, tmp_path: Path) -> None:
        with serving(tmp_path) as house:
            self.imported(house.caller(), rows=10, sent=10)
            assert len(checker(house).count_files()) == 1
        with serving(tmp_path) as house:
            assert checker(house).count_files() == []

    def test_rows_put_aside_are_told_and_not_missed(self, house: House, caller: Caller) -> None:
        digest = "cd" * 16
        known = caller.act(
            "files.register",
            digest=digest,
            name="odd.csv",
            dataset="ticks",
            options={"symbol": "MNQ"},
            producer=digest,
        )
        sequences = [(known["number"] << 32) + row for row in range(10)]
        sizes = [1.0] * 9 + [-1.0]
        caller.put(ticks(10, sequence=sequences, size=sizes, source="import"))
        caller.act("files.complete", digest=digest, rows=10)
        (found,) = checker(house).count_files()
        assert (found.checked, found.passed) == (9, 9)
        assert json.loads(found.detail)["quarantined"] == 1
