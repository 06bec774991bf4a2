"""No bit of the control files can change and with it an answer: it is the same, or an error.

The error names the file. The fast tests flip some bits of every kind of byte, the hard one one bit
of each byte that is used.
"""

import datetime as dt
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import flight_server.control
from flight_server.errors import ControlStoreError, CredentialError, Refusal
from flight_server.files import FileRegistry, Registration
from flight_server.keys import KeyStore, Scope
from flight_server.usage import Usage, UsageTable
from storage.ports import SystemClock

CLOCK: Final = SystemClock()
SEED: Final = 3
DAY: Final = dt.date(2026, 11, 21)
FAR: Final = 4_000_000_000_000_000
MODELS: Final = 12
FILES: Final = 60
"""Enough for a tree with leaves below a root."""
NAMES: Final = ("control.db", "control.db-wal", "control.pepper")
SAMPLED_OF_A_KIND: Final = 6
HARD_FLIPS_MIN: Final = 2_000
_PAGE_BYTES: Final = 4_096
_NEAR: Final = 2
"""A byte this near to one that is not zero counts as used."""

Answers = tuple[object, ...]
Content = dict[str, bytes]


def digest_of(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}"


def fill(directory: Path) -> list[str]:
    """Make keys of all sorts, register files, write usage; return the keys."""
    made = []
    with KeyStore(directory, CLOCK) as keys:
        for number in range(MODELS):
            new = keys.create(
                f"model-{number}",
                scopes=[Scope.READ_HISTORY] if number % 2 else list(Scope),
                symbols=["SPY", "QQQ"] if number % 3 else None,
                expires_at=FAR if number % 4 else None,
                calls_per_second=9 if number % 5 else None,
            )
            made.append(new)
        keys.revoke(made[0].id)
        keys.extend(made[1].id, FAR + 1)
    with FileRegistry(directory, CLOCK) as files:
        for number in range(FILES):
            register(files, number)
            if number % 2:
                files.complete(digest_of(number), number)
    with UsageTable(directory) as usage:
        for new in made:
            usage.add(DAY, [Usage(new.id, "model", calls=1, rows=2, bytes=3)])
    return [new.key for new in made]


def register(files: FileRegistry, number: int) -> Registration:
    digest = digest_of(number)
    return files.register(digest, name="f", dataset="ticks", options={"a": 1}, producer=digest)


def answer(keys: KeyStore, key: str) -> object:
    """Return what a key may do, or why it is refused; a store that can't be read is an error."""
    try:
        return keys.verify(key)
    except CredentialError as error:
        if error.refusal is Refusal.UNCHECKED and error.__cause__ is not None:
            raise error.__cause__ from None
        return error.refusal


def answers(
    keys: KeyStore, files: FileRegistry, usage: UsageTable, made: list[str]
) -> Iterator[Callable[[], object]]:
    """Yield all there is to ask."""
    for key in made:
        yield lambda key=key: answer(keys, key)  # type: ignore[misc]
    for number in range(FILES):
        yield lambda number=number: register(files, number)  # type: ignore[misc]
    yield keys.list
    yield lambda: usage.totals(DAY)
    yield usage.last_days


def ask(directory: Path, made: list[str]) -> Answers:
    """Open the stores and ask everything."""
    with (
        KeyStore(directory, CLOCK) as keys,
        FileRegistry(directory, CLOCK) as files,
        UsageTable(directory) as usage,
    ):
        return tuple(one() for one in answers(keys, files, usage, made))


def names_the_file(error: Exception, where: str) -> bool:
    """Check that an error is the one to tell the operator."""
    told = isinstance(error, ControlStoreError) and "control." in str(error)
    assert told, f"{where}: {error!r}"
    return told


def content_of(directory: Path) -> Content:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name in NAMES}


def lay_out(directory: Path, content: Content) -> None:
    for path in directory.iterdir():
        path.unlink()
    for name, data in content.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)


def kind_of(content: Content, name: str, at: int) -> str:
    """Say what a byte of a control file is for."""
    if name != "control.db":
        return name
    page, offset = divmod(at, _PAGE_BYTES)
    if page == 0 and offset < 100:
        return "header of the file"
    start = 100 if page == 0 else 0
    data = content[name][page * _PAGE_BYTES :]
    kind = f"page of kind {data[start]}"
    header = 12 if data[start] in (2, 5) else 8
    cells = int.from_bytes(data[start + 3 : start + 5])
    if offset < start + header:
        return f"header of a {kind}"
    return f"{'pointer' if offset < start + header + 2 * cells else 'content'} of a {kind}"


def used(data: bytes) -> Iterable[int]:
    return [at for at in range(len(data)) if any(data[max(0, at - _NEAR) : at + _NEAR + 1])]


@dataclass
class Trial:
    """Flips bits of what was laid out, and counts what comes of it."""

    directory: Path
    content: Content
    made: list[str]
    allowed: tuple[Answers, ...]

    def __post_init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def flip(self, name: str, at: int, bit: int) -> None:
        where = f"{name}, byte {at}, bit {bit}: {kind_of(self.content, name, at)}"
        data = bytearray(self.content[name])
        data[at] ^= 1 << bit
        lay_out(self.directory, self.content | {name: bytes(data)})
        try:
            found = ask(self.directory, self.made)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
            self.seen["refused"] += names_the_file(error, where)
        else:
            assert found in self.allowed, where
            self.seen["same"] += 1


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, list[str], Answers]:
    directory = tmp_path_factory.mktemp("control")
    made = fill(directory)
    return content_of(directory), made, ask(directory, made)


def sampled(content: Content) -> list[tuple[str, int]]:
    """Return some bytes of every kind."""
    kinds = defaultdict(list)
    for name, data in content.items():
        for at in used(data):
            kinds[kind_of(content, name, at)].append((name, at))
    chance = random.Random(SEED)
    return [
        place
        for places in kinds.values()
        for place in chance.sample(places, min(SAMPLED_OF_A_KIND, len(places)))
    ]


def test_a_flipped_bit_changes_no_answer(
    filled: tuple[Content, list[str], Answers], tmp_path: Path
) -> None:
    content, made, good = filled
    trial, chance = Trial(tmp_path, content, made, (good,)), random.Random(SEED)
    for name, at in sampled(content):
        trial.flip(name, at, chance.randrange(8))
    assert trial.seen["refused"] > trial.seen["same"]


@pytest.mark.hard
def test_no_bit_of_any_used_byte_changes_an_answer(
    filled: tuple[Content, list[str], Answers], tmp_path: Path
) -> None:
    content, made, good = filled
    trial, chance = Trial(tmp_path, content, made, (good,)), random.Random(SEED)
    for name, data in content.items():
        for at in used(data):
            trial.flip(name, at, chance.randrange(8))
    print(f"{trial.seen.total()} flips: {dict(trial.seen)}")  # noqa: T201 - the figure
    assert trial.seen.total() >= HARD_FLIPS_MIN


class TestTheLog:
    """A change that was not reported yet may be in a log when the power goes, and be damaged."""

    @pytest.fixture
    def logged(
        self,
        filled: tuple[Content, list[str], Answers],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> tuple[Content, tuple[Answers, ...]]:
        """Return what a revocation leaves that ends before it is reported, and allowed answers."""
        before, made, good = filled
        lay_out(tmp_path, before)
        with KeyStore(tmp_path, CLOCK) as keys:
            with monkeypatch.context() as patch:
                patch.setattr(flight_server.control, "_fold", lambda _: None)
                keys.revoke(made[1].split("_")[1])
            content = content_of(tmp_path)
        assert len(content["control.db-wal"]) > _PAGE_BYTES
        return content, (good, ask(tmp_path, made))

    def flip_all(
        self,
        logged: tuple[Content, tuple[Answers, ...]],
        made: list[str],
        directory: Path,
        every: int,
    ) -> Trial:
        content, allowed = logged
        trial, chance = Trial(directory, content, made, allowed), random.Random(SEED)
        for at in list(used(content["control.db-wal"]))[::every]:
            trial.flip("control.db-wal", at, chance.randrange(8))
        return trial

    def test_a_flipped_bit_of_it_leaves_the_answers_of_before_or_after(
        self,
        logged: tuple[Content, tuple[Answers, ...]],
        filled: tuple[Content, list[str], Answers],
        tmp_path: Path,
    ) -> None:
        assert self.flip_all(logged, filled[1], tmp_path, 150).seen["same"] > 0

    @pytest.mark.hard
    def test_no_used_byte_of_it_leaves_other_answers(
        self,
        logged: tuple[Content, tuple[Answers, ...]],
        filled: tuple[Content, list[str], Answers],
        tmp_path: Path,
    ) -> None:
        trial = self.flip_all(logged, filled[1], tmp_path, 3)
        print(f"{trial.seen.total()} flips: {dict(trial.seen)}")  # noqa: T201 - the figure

    def test_nothing_that_was_reported_is_in_it_alone(self, tmp_path: Path) -> None:
        with KeyStore(tmp_path, CLOCK) as keys:
            new = keys.create("bot", scopes=[Scope.SQL])
            keys.revoke(new.id)
            assert (tmp_path / "control.db-wal").stat().st_size == 0


def test_a_bit_flipped_under_an_open_store_changes_no_answer(
    filled: tuple[Content, list[str], Answers], tmp_path: Path
) -> None:
    content, made, good = filled
    chance, seen = random.Random(SEED), Counter[str]()
    for name, at in sampled(content):
        if name != "control.db":
            continue
        lay_out(tmp_path, content)
        with (
            KeyStore(tmp_path, CLOCK) as keys,
            FileRegistry(tmp_path, CLOCK) as files,
            UsageTable(tmp_path) as usage,
        ):
            for store in (keys, files, usage):
                for connection in (store._database._reader, store._database._writer):
                    connection.execute("PRAGMA cache_size=1")
            with (tmp_path / name).open("r+b") as file:
                file.seek(at)
                file.write(bytes([content[name][at] ^ 1 << chance.randrange(8)]))
            for one, expected in zip(answers(keys, files, usage, made), good, strict=True):
                try:
                    found = one()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
                    seen["refused"] += names_the_file(error, kind_of(content, name, at))
                else:
                    assert found == expected, kind_of(content, name, at)
                    seen["same"] += 1
    assert seen["refused"] > 0
    assert seen["same"] > 0


def test_an_error_says_what_is_damaged_and_what_to_do(tmp_path: Path) -> None:
    key = fill(tmp_path)[2]
    with closing(sqlite3.connect(tmp_path / "control.db")) as database:
        database.execute("UPDATE keys SET revoked_at = NULL, model_id = 'boss'")
        database.commit()
    with pytest.raises(ControlStoreError) as caught:
        ask(tmp_path, [key])
    assert str(tmp_path / "control.db") in str(caught.value)
    assert "table keys: the checksum of row" in str(caught.value)
    assert "tickflightd keys repair" in str(caught.value)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM keys WHERE model_id = 'model-3'",
        "DELETE FROM files WHERE number = 7",
        "DELETE FROM usage",
        "DELETE FROM seals WHERE name = 'files'",
        "UPDATE seals SET rows = rows + 1 WHERE name = 'usage'",
        "DELETE FROM meta",
    ],
)
def test_what_vanished_is_missed(tmp_path: Path, statement: str) -> None:
    made = fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / "control.db")) as database:
        database.execute(statement)
        database.commit()
    with pytest.raises(ControlStoreError, match=r"control\.db"):
        ask(tmp_path, made)
