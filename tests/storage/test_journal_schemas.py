"""Journals of earlier versions: the columns they lack are null, the formats they had are read."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from storage import journal_file, recovery, schemas, snapshot
from storage.errors import JournalCorruptError
from storage.journal_record import Header, Record, digest, row_of
from tests.storage.conftest import NOON, Lab, gamma, send, stored, ticks

ADDED = {"ticks": ("ask", "condition"), "gex": ("spot", "strikes")}


def without(dataset: schemas.Dataset, names: tuple[str, ...]) -> schemas.Dataset:
    kept = [field for field in dataset.schema if field.name not in names]
    dictionary = tuple(name for name in dataset.dictionary if name not in names)
    return replace(dataset, schema=pa.schema(kept), dictionary=dictionary)


@pytest.fixture
def earlier() -> Mapping[str, schemas.Dataset]:
    """The registry of a version that lacked some nullable columns."""
    return {n: without(one, ADDED.get(n, ())) for n, one in schemas.DATASETS.items()}


def written_by(registry: Mapping[str, schemas.Dataset], lab: Lab) -> None:
    """Let a life of an earlier version write ticks and gamma."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (recovery, snapshot):
            patch.setattr(module, "DATASETS", registry)
        life = lab.open()
        send(life, ticks(3, bid=[1.0, 2.0, 3.0]).drop_columns(list(ADDED["ticks"])))
        send(life, gamma().drop_columns(list(ADDED["gex"])), dataset="gex")
        lab.close(life)


def test_columns_that_an_earlier_version_lacked_are_null(
    lab: Lab, earlier: Mapping[str, schemas.Dataset]
) -> None:
    written_by(earlier, lab)
    life = lab.open()
    send(life, ticks(1, sequence=[9], ts_event=[NOON + 9], ask=[4.0], condition=["T"]))
    for _ in range(2):
        assert [row["ask"] for row in stored(life)] == [None, None, None, 4.0]
        assert [row["condition"] for row in stored(life)] == [None, None, None, "T"]
        assert [row["bid"] for row in stored(life)][:3] == [1.0, 2.0, 3.0]
        assert [(row["spot"], row["strikes"]) for row in stored(life, "gex")] == [(None, None)]
        life = lab.reopen(life)


def test_columns_of_a_later_version_are_refused_by_name(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, earlier: Mapping[str, schemas.Dataset]
) -> None:
    life = lab.open()
    send(life, ticks(1))
    lab.close(life)
    monkeypatch.setattr(recovery, "DATASETS", earlier)
    with pytest.raises(JournalCorruptError, match=r"'ask'.*a later one wrote it"):
        lab.open()


def test_a_journal_of_the_first_format_is_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "row_of", first_format)
    life = lab.open()
    send(life, ticks(3))
    before = stored(life)
    lab.close(life)
    monkeypatch.undo()
    (path,) = (lab.directory / "journal").glob("*.journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version=1")
        first = dict.fromkeys(schemas.DATASETS, 0)
        header = Header(1, 1, NOON, first, {}, 0)
        content = {name: value for name, value in asdict(header).items() if name != "schemas"}
        text = json.dumps(content)
        connection.execute("UPDATE header SET content = ?, checksum = ?", (text, digest(1, text)))
    assert stored(lab.open()) == before


def first_format(file_number: int, number: int, record: Record) -> tuple[object, ...]:
    *columns, _ = row_of(file_number, number, record)
    return (*columns, digest(file_number, *columns))
