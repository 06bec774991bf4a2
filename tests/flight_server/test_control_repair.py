"""What is intact in a damaged ``control.db`` is kept, and nothing else comes of it."""

import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from flight_server.control_repair import NUMBERS_SKIPPED, repair
from flight_server.errors import ControlStoreError, CredentialError, Refusal
from flight_server.files import FileRegistry, ImportState
from flight_server.keys import KeyRecord, KeyStore, NewKey, Scope
from flight_server.usage import Usage, UsageTable
from storage.ports import SystemClock
from tests.flight_server.test_control_damage import DAY, register

CLOCK: Final = SystemClock()
KEYS: Final = 4
FILES: Final = 8
FLIPS: Final = 60


@pytest.fixture
def made(tmp_path: Path) -> list[NewKey]:
    """Keys of a directory that has files and usage, too."""
    directory = tmp_path / "data"
    with KeyStore(directory, CLOCK) as keys:
        made = [keys.create(f"model-{n}", scopes=[Scope.SQL]) for n in range(KEYS)]
        keys.revoke(made[0].id)
    with FileRegistry(directory, CLOCK) as files:
        for number in range(FILES):
            register(files, number)
    with UsageTable(directory) as usage:
        usage.add(DAY, [Usage(made[1].id, "model-1", calls=7)])
    return made


def damage(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "control.db")) as database:
        database.execute(statement)
        database.commit()


def refusal_of(keys: KeyStore, new: NewKey) -> Refusal | None:
    try:
        keys.verify(new.key)
    except CredentialError as error:
        return error.refusal
    return None


def test_what_is_intact_is_left_alone(tmp_path: Path, made: list[NewKey]) -> None:
    assert repair(tmp_path / "data", CLOCK) is None
    with KeyStore(tmp_path / "data", CLOCK) as keys:
        assert len(keys.list()) == len(made)
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_a_damaged_key_is_refused_and_all_others_are_kept(
    tmp_path: Path, made: list[NewKey]
) -> None:
    directory = tmp_path / "data"
    damage(directory, "UPDATE keys SET scopes = '[\"admin\"]' WHERE model_id = 'model-2'")
    done = repair(directory, CLOCK)
    assert done is not None
    assert (done.kept["keys"], done.lost["keys"]) == (KEYS - 1, 1)
    assert (done.kept["files"], done.lost["files"]) == (FILES, 0)
    assert done.evidence.read_bytes()
    with KeyStore(directory, CLOCK) as keys:
        found = [refusal_of(keys, new) for new in made]
    assert found == [Refusal.REVOKED, None, Refusal.UNKNOWN, None]
    with FileRegistry(directory, CLOCK) as files:
        known = [register(files, number) for number in range(FILES)]
        assert [one.number for one in known] == list(range(1, FILES + 1))
        assert register(files, FILES).number == FILES + 1
    with UsageTable(directory) as usage:
        assert [one.calls for one in usage.totals(DAY)] == [7]
    assert repair(directory, CLOCK) is None


def test_the_number_of_a_lost_file_is_not_given_out_again(
    tmp_path: Path, made: list[NewKey]
) -> None:
    assert made
    directory = tmp_path / "data"
    damage(directory, f"UPDATE files SET dataset = 'quotes' WHERE number = {FILES}")
    done = repair(directory, CLOCK)
    assert done is not None
    assert done.lost == {"keys": 0, "files": 1, "usage": 0}
    with FileRegistry(directory, CLOCK) as files:
        again = register(files, FILES - 1)
        assert files.imported() == []
    assert again.state is ImportState.NEW
    assert again.number > NUMBERS_SKIPPED


def test_a_seal_that_is_lost_too_leaves_open_how_many_rows_are(
    tmp_path: Path, made: list[NewKey]
) -> None:
    assert made
    damage(tmp_path / "data", "DELETE FROM seals")
    done = repair(tmp_path / "data", CLOCK)
    assert done is not None
    assert set(done.lost.values()) == {None}
    assert done.kept == {"keys": KEYS, "files": FILES, "usage": 1}


def test_a_database_without_any_intact_row_is_left_as_it_was(
    tmp_path: Path, made: list[NewKey]
) -> None:
    assert made
    path = tmp_path / "data/control.db"
    path.write_bytes(b"nothing of ours " * 4096)
    with pytest.raises(ControlStoreError, match=r"control\.db"):
        repair(path.parent, CLOCK)
    assert path.read_bytes() == b"nothing of ours " * 4096


def test_whatever_bit_was_flipped_only_what_was_there_comes_back(
    tmp_path: Path, made: list[NewKey]
) -> None:
    directory, trial = tmp_path / "data", tmp_path / "trial"
    before = records(directory)
    data = (directory / "control.db").read_bytes()
    chance, seen = random.Random(4), Counter[str]()
    for at in chance.sample([at for at, byte in enumerate(data) if byte], FLIPS):
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(directory, trial)
        flipped = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        (trial / "control.db").write_bytes(flipped)
        try:
            repair(trial, CLOCK)
        except ControlStoreError:
            seen["refused"] += 1
            continue
        assert records(trial) <= before, at
        seen["repaired"] += 1
    assert seen["repaired"] > len(made)


def records(directory: Path) -> frozenset[KeyRecord]:
    with KeyStore(directory, CLOCK) as keys:
        return frozenset(keys.list())
