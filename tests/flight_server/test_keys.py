import re
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from flight_server import tokens
from flight_server.errors import (
    ControlStoreError,
    CredentialError,
    InvalidArgumentError,
    NotFoundError,
    Refusal,
    ScopeError,
)
from flight_server.keys import RECHECK_SECONDS, Identity, KeyStore, NewKey, Scope
from storage.ports import MICROSECONDS, SystemClock

REPOSITORY = Path(__file__).parents[2]
START = 1_780_000_000 * MICROSECONDS
READ = (Scope.READ_REALTIME, Scope.READ_HISTORY)


class ManualClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> int:
        return START + round(self.seconds * MICROSECONDS)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(tmp_path: Path, clock: ManualClock) -> Iterator[KeyStore]:
    with KeyStore(tmp_path, clock) as store:
        yield store


def refusal_of(store: KeyStore, token: str) -> Refusal:
    with pytest.raises(CredentialError) as caught:
        store.verify(token)
    return caught.value.refusal


def mistyped(token: str, position: int) -> str:
    other = "A" if token[position] != "A" else "B"
    return token[:position] + other + token[position + 1 :]


class TestFormat:
    def test_a_key_is_a_prefix_an_id_and_a_secret_with_checksum(self, keys: KeyStore) -> None:
        new = keys.create("bot", scopes=READ)
        assert re.fullmatch(r"tf_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", new.key)
        assert new.key.split("_")[1] == new.id

    def test_no_two_keys_share_an_id_or_a_secret(self) -> None:
        minted = [tokens.mint() for _ in range(200)]
        assert len({key_id for key_id, _ in minted}) == 200
        assert len({token.split("_")[2] for _, token in minted}) == 200

    def test_any_single_wrong_character_is_noticed_without_the_store(self) -> None:
        key_id, token = tokens.mint()
        assert tokens.id_of(token) == key_id
        for position in range(len(token)):
            assert tokens.id_of(mistyped(token, position)) is None

    @given(st.text(max_size=100))
    def test_no_other_text_has_an_id(self, text: str) -> None:
        assert tokens.id_of(text) is None


class TestRights:
    def test_a_key_is_accepted_with_the_rights_it_was_made_with(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        expiry = clock.now() + MICROSECONDS
        new = keys.create("desk:bot-1", scopes=READ, symbols={"MNQ", "SPY"}, expires_at=expiry)
        assert keys.verify(new.key) == Identity(
            new.id, "desk:bot-1", frozenset(READ), frozenset({"MNQ", "SPY"}), expiry
        )

    def test_a_scope_the_key_lacks_is_refused_by_name(self, keys: KeyStore) -> None:
        identity = keys.verify(keys.create("bot", scopes=[Scope.ADMIN]).key)
        identity.require(Scope.ADMIN)
        with pytest.raises(ScopeError, match="sql") as caught:
            identity.require(Scope.SQL)
        assert (caught.value.scope, caught.value.symbol) == ("sql", None)

    def test_a_symbol_off_the_list_is_refused_by_name(self, keys: KeyStore) -> None:
        identity = keys.verify(keys.create("bot", scopes=READ, symbols=["MNQ"]).key)
        identity.may_read("MNQ")
        with pytest.raises(ScopeError, match="SPY") as caught:
            identity.may_read("SPY")
        assert (caught.value.scope, caught.value.symbol) == (None, "SPY")

    def test_a_key_without_a_list_reads_every_symbol(self, keys: KeyStore) -> None:
        keys.verify(keys.create("bot", scopes=READ).key).may_read("ANY.THING")

    def test_a_key_with_an_empty_list_reads_none(self, keys: KeyStore) -> None:
        identity = keys.verify(keys.create("bot", scopes=READ, symbols=[]).key)
        with pytest.raises(ScopeError):
            identity.may_read("MNQ")


class TestArguments:
    @pytest.mark.parametrize("model_id", ["", "-x", "a b", "a\n", "é", "x" * 65, "a/b"])
    def test_a_bad_model_id_is_refused(self, keys: KeyStore, model_id: str) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            keys.create(model_id, scopes=READ)
        assert caught.value.field == "model_id"

    @pytest.mark.parametrize("symbol", ["mnq", "", "A B", "X" * 33, "MNQ\n"])
    def test_a_bad_symbol_is_refused(self, keys: KeyStore, symbol: str) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            keys.create("bot", scopes=READ, symbols=["SPY", symbol])
        assert caught.value.field == "symbols"

    @pytest.mark.parametrize("scopes", [[], ["root"]])
    def test_bad_scopes_are_refused(self, keys: KeyStore, scopes: list[Scope]) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            keys.create("bot", scopes=scopes)
        assert caught.value.field == "scopes"

    @pytest.mark.parametrize("offset", [0, -1, 2**63])
    def test_an_expiry_that_never_comes_or_has_passed_is_refused(
        self, keys: KeyStore, clock: ManualClock, offset: int
    ) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            keys.create("bot", scopes=READ, expires_at=clock.now() + offset)
        assert caught.value.field == "expires_at"

    @pytest.mark.parametrize("key_id", ["", "nosuchkey123", "\udcff", "é"])
    def test_an_unknown_id_is_not_found(self, keys: KeyStore, key_id: str) -> None:
        for change in (keys.revoke, keys.rotate, lambda it: keys.extend(it, None)):
            with pytest.raises(NotFoundError):
                change(key_id)


class TestLife:
    def test_a_revoked_key_is_refused_at_the_next_call(self, keys: KeyStore) -> None:
        new = keys.create("bot", scopes=READ)
        keys.verify(new.key)
        keys.revoke(new.id)
        assert refusal_of(keys, new.key) is Refusal.REVOKED

    def test_revoking_twice_keeps_the_first_instant(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        new = keys.create("bot", scopes=READ)
        keys.revoke(new.id)
        first = keys.list()[0].revoked_at
        clock.advance(1)
        keys.revoke(new.id)
        assert keys.list()[0].revoked_at == first is not None

    def test_a_key_expires_at_its_instant_even_when_cached(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        new = keys.create("bot", scopes=READ, expires_at=clock.now() + MICROSECONDS // 2)
        keys.verify(new.key)
        clock.advance(0.4)
        keys.verify(new.key)
        clock.advance(0.1)
        assert refusal_of(keys, new.key) is Refusal.EXPIRED

    def test_an_extended_key_lives_until_its_new_expiry(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        new = keys.create("bot", scopes=READ, expires_at=clock.now() + MICROSECONDS)
        keys.verify(new.key)
        keys.extend(new.id, clock.now() + 3 * MICROSECONDS)
        clock.advance(2)
        keys.verify(new.key)
        clock.advance(1)
        assert refusal_of(keys, new.key) is Refusal.EXPIRED

    def test_rotation_gives_a_new_key_the_same_rights_and_ends_the_old_one(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        expiry = clock.now() + MICROSECONDS
        old = keys.create("bot", scopes=READ, symbols=["MNQ"], expires_at=expiry)
        before = keys.verify(old.key)
        new = keys.rotate(old.id)
        after = keys.verify(new.key)
        assert (after.model_id, after.scopes, after.symbols, after.expires_at) == (
            before.model_id,
            before.scopes,
            before.symbols,
            before.expires_at,
        )
        assert new.id != old.id
        assert refusal_of(keys, old.key) is Refusal.REVOKED

    def test_a_dead_key_can_be_neither_rotated_nor_extended(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        revoked = keys.create("bot", scopes=READ)
        keys.revoke(revoked.id)
        expired = keys.create("bot", scopes=READ, expires_at=clock.now() + 1)
        clock.advance(1)
        for new, state in ((revoked, "revoked"), (expired, "expired")):
            with pytest.raises(InvalidArgumentError, match=state):
                keys.rotate(new.id)
            with pytest.raises(InvalidArgumentError, match=state):
                keys.extend(new.id, None)
        assert len(keys.list()) == 2

    def test_purging_forgets_only_what_died_before(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        alive = keys.create("alive", scopes=READ)
        keys.create("expired", scopes=READ, expires_at=clock.now() + 1)
        keys.revoke(keys.create("revoked", scopes=READ).id)
        clock.advance(10)
        late = keys.create("late", scopes=READ)
        keys.revoke(late.id)
        assert keys.purge_expired(clock.now()) == 2
        assert {record.id for record in keys.list()} == {alive.id, late.id}

    def test_the_list_shows_every_key_oldest_first(
        self, keys: KeyStore, clock: ManualClock
    ) -> None:
        made = []
        for model_id in ("c", "a", "b"):
            made.append(keys.create(model_id, scopes=READ).id)
            clock.advance(1)
        keys.revoke(made[1])
        assert [record.id for record in keys.list()] == made
        assert [record.revoked_at is None for record in keys.list()] == [True, False, True]


class TestRefusal:
    def test_every_cause_reads_the_same(self, keys: KeyStore, clock: ManualClock) -> None:
        revoked = keys.create("bot", scopes=READ)
        keys.revoke(revoked.id)
        expired = keys.create("bot", scopes=READ, expires_at=clock.now() + 1)
        clock.advance(1)
        texts = set()
        for token in ("", "nonsense", revoked.key, expired.key, tokens.mint()[1]):
            with pytest.raises(CredentialError) as caught:
                keys.verify(token)
            texts.add(str(caught.value))
        assert len(texts) == 1

    def test_a_wrong_secret_with_a_good_checksum_is_refused(
        self, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = keys.create("bot", scopes=READ)
        characters = iter(new.id)
        monkeypatch.setattr("flight_server.tokens.secrets.choice", lambda _: next(characters))
        key_id, forged = tokens.mint()
        assert key_id == new.id
        assert refusal_of(keys, forged) is Refusal.UNKNOWN

    def test_an_unknown_id_is_compared_like_a_known_one(
        self, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared: list[tuple[bytes, bytes]] = []

        def compare(a: bytes, b: bytes) -> bool:
            compared.append((a, b))
            return a == b

        monkeypatch.setattr("flight_server.keys.hmac.compare_digest", compare)
        assert refusal_of(keys, tokens.mint()[1]) is Refusal.UNKNOWN
        assert [len(digest) for digest in compared[0]] == [32, 32]

    def test_a_malformed_key_never_reaches_the_store(
        self, keys: KeyStore, tmp_path: Path, clock: ManualClock
    ) -> None:
        token = keys.create("bot", scopes=READ).key
        keys.verify(token)
        (tmp_path / "control.db").unlink()
        assert refusal_of(keys, mistyped(token, 40)) is Refusal.MALFORMED
        clock.advance(RECHECK_SECONDS)
        assert refusal_of(keys, token) is Refusal.UNCHECKED


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KeyStore, str]]:
    with KeyStore(tmp_path_factory.mktemp("fuzzed"), SystemClock()) as store:
        yield store, store.create("bot", scopes=READ).key


class TestAnyText:
    """Any text is an identity's key or a `CredentialError`, never another error."""

    @given(st.text(max_size=120))
    def test_text_at_random(self, fuzzed: tuple[KeyStore, str], text: str) -> None:
        refusal_of(fuzzed[0], text)

    @given(st.text(st.characters(), min_size=65, max_size=65))
    def test_text_of_the_right_length(self, fuzzed: tuple[KeyStore, str], text: str) -> None:
        refusal_of(fuzzed[0], text)

    @given(st.text(string.ascii_letters + string.digits, min_size=55, max_size=55), st.data())
    def test_text_of_the_right_shape(
        self, fuzzed: tuple[KeyStore, str], body: str, data: st.DataObject
    ) -> None:
        store, token = fuzzed
        head = data.draw(st.sampled_from([token[:15], f"tf_{body[:12]}"]))
        refusal_of(store, f"{head}_{body[6:]}")

    @given(st.integers(0, 64), st.characters())
    def test_a_key_with_one_character_replaced(
        self, fuzzed: tuple[KeyStore, str], position: int, character: str
    ) -> None:
        store, token = fuzzed
        text = token[:position] + character + token[position + 1 :]
        if text == token:
            assert store.verify(text).model_id == "bot"
        else:
            refusal_of(store, text)


class TestOtherProcesses:
    def test_a_key_made_elsewhere_is_accepted_at_once(
        self, keys: KeyStore, tmp_path: Path, clock: ManualClock
    ) -> None:
        keys.verify(keys.create("first", scopes=READ).key)
        with KeyStore(tmp_path, clock) as other:
            new = other.create("second", scopes=READ)
        assert keys.verify(new.key).model_id == "second"

    def test_a_change_made_elsewhere_counts_after_the_recheck(
        self, keys: KeyStore, tmp_path: Path, clock: ManualClock
    ) -> None:
        new = keys.create("bot", scopes=READ)
        keys.verify(new.key)
        with KeyStore(tmp_path, clock) as other:
            other.revoke(new.id)
        clock.advance(RECHECK_SECONDS)
        assert refusal_of(keys, new.key) is Refusal.REVOKED

    def test_the_recheck_comes_sooner_than_was_promised(self) -> None:
        assert RECHECK_SECONDS <= 5

    def test_many_processes_may_open_a_new_directory_at_once(self, tmp_path: Path) -> None:
        script = (
            "import pathlib, sys\n"
            "from flight_server.keys import KeyStore, Scope\n"
            "from storage.ports import SystemClock\n"
            "store = KeyStore(pathlib.Path(sys.argv[1]), SystemClock())\n"
            "sys.stdin.read()\n"
            "print(store.create('bot', scopes=[Scope.SQL]).key)\n"
        )
        children = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path / "new")],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        made = [child.communicate()[0].strip() for child in children]
        assert [child.returncode for child in children] == [0] * 4
        with KeyStore(tmp_path / "new", SystemClock()) as store:
            assert len({store.verify(token).key_id for token in made}) == 4
        assert {path.name for path in (tmp_path / "new").iterdir()} == {
            "control.db",
            "control.pepper",
        }


class TestThreads:
    def test_a_key_is_refused_in_every_thread_once_revoke_has_returned(
        self, keys: KeyStore
    ) -> None:
        new = keys.create("bot", scopes=READ)
        started, revoked, done = threading.Barrier(9), threading.Event(), threading.Event()

        def call_until_refused() -> bool:
            started.wait()
            while not done.is_set():
                called_after = revoked.is_set()
                try:
                    keys.verify(new.key)
                except CredentialError:
                    return True
                if called_after:
                    return False
            return False

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call_until_refused) for _ in range(8)]
            started.wait()
            keys.revoke(new.id)
            revoked.set()
            assert all(call.result(timeout=30) for call in calls)
            done.set()

    def test_readers_do_not_wait_for_a_writer(self, keys: KeyStore, tmp_path: Path) -> None:
        token = keys.create("bot", scopes=READ).key
        blocker = sqlite3.connect(tmp_path / "control.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(keys.create, "late", scopes=READ)
            assert keys.verify(token).model_id == "bot"
            assert len(keys.list()) == 1
            assert not writing.done()
            blocker.execute("ROLLBACK")
            writing.result(timeout=30)
        blocker.close()

    def test_the_cache_stays_within_its_bound(
        self, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flight_server.keys._CACHED_KEYS", 3)
        made = [keys.create("bot", scopes=READ) for _ in range(8)]
        for new in made + made:
            assert keys.verify(new.key).key_id == new.id
        assert len(keys._cache) == 3


class TestUnusableStore:
    def test_nobody_gets_in_once_the_store_is_closed(
        self, tmp_path: Path, clock: ManualClock
    ) -> None:
        store = KeyStore(tmp_path, clock)
        token = store.create("bot", scopes=READ).key
        store.verify(token)
        store.close()
        assert refusal_of(store, token) is Refusal.UNCHECKED

    def test_nobody_gets_in_once_the_file_was_replaced(
        self, keys: KeyStore, tmp_path: Path, clock: ManualClock
    ) -> None:
        token = keys.create("bot", scopes=READ).key
        keys.verify(token)
        (tmp_path / "control.db").rename(tmp_path / "old.db")
        (tmp_path / "control.db").write_bytes((tmp_path / "old.db").read_bytes())
        clock.advance(RECHECK_SECONDS)
        assert refusal_of(keys, token) is Refusal.UNCHECKED

    @pytest.mark.parametrize(
        "change",
        [
            "scopes = '[\"admin\"]'",
            "symbols = NULL",
            "expires_at = expires_at + 1",
            "revoked_at = NULL",
            "calls_per_second = 9",
            "model_id = 'boss'",
        ],
    )
    def test_rights_that_were_changed_behind_its_back_let_nobody_in(
        self, keys: KeyStore, tmp_path: Path, clock: ManualClock, change: str
    ) -> None:
        new = keys.create("bot", scopes=READ, symbols=["SPY"], expires_at=clock.now() + 10**9)
        keys.revoke(new.id)
        with sqlite3.connect(tmp_path / "control.db") as connection:
            connection.execute(f"UPDATE keys SET {change}")
        connection.close()
        assert refusal_of(keys, new.key) is Refusal.UNCHECKED
        with pytest.raises(ControlStoreError, match=new.id):
            keys.list()


class TestSecrecy:
    def test_no_file_holds_a_key(self, keys: KeyStore, tmp_path: Path) -> None:
        new = keys.create("bot", scopes=READ)
        keys.verify(new.key)
        secret = new.key.split("_")[2].encode()
        files = [path.read_bytes() for path in tmp_path.iterdir()]
        assert any(new.id.encode() in content for content in files)
        assert not any(secret in content or secret[:43] in content for content in files)

    def test_only_the_owner_can_read_the_files(self, keys: KeyStore, tmp_path: Path) -> None:
        keys.create("bot", scopes=READ)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert {"control.db", "control.db-wal", "control.pepper"} <= modes.keys()
        assert set(modes.values()) == {0o600}

    def test_a_new_key_does_not_show_in_its_repr(self) -> None:
        assert "SECRET" not in repr(NewKey("abc", "tf_abc_SECRET"))

    def test_an_error_does_not_show_the_key(self, keys: KeyStore) -> None:
        new = keys.create("bot", scopes=READ)
        keys.revoke(new.id)
        for token in (new.key, mistyped(new.key, 30)):
            with pytest.raises(CredentialError) as caught:
                keys.verify(token)
            assert token[16:40] not in f"{caught.value!r} {caught.value}"


class KeyLives(RuleBasedStateMachine):
    """A store that serves and one that administers, on one directory, against a plain model."""

    minted = Bundle("minted")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.server = KeyStore(Path(self.directory.name), self.clock)
        self.admin = KeyStore(Path(self.directory.name), self.clock)
        self.expiries: dict[str, int | None] = {}
        self.revoked: dict[str, int] = {}

    def teardown(self) -> None:
        self.server.close()
        self.admin.close()
        self.directory.cleanup()

    def alive(self, new: NewKey) -> bool:
        if new.id not in self.expiries or new.id in self.revoked:
            return False
        expiry = self.expiries[new.id]
        return expiry is None or self.clock.now() < expiry

    @rule(target=minted, seconds=st.none() | st.integers(1, 20))
    def create(self, seconds: int | None) -> NewKey:
        expiry = None if seconds is None else self.clock.now() + seconds * MICROSECONDS
        new = self.admin.create("bot", scopes=READ, expires_at=expiry)
        self.expiries[new.id] = expiry
        return new

    @rule(new=minted)
    def revoke(self, new: NewKey) -> None:
        if new.id in self.expiries:
            self.admin.revoke(new.id)
            self.revoked.setdefault(new.id, self.clock.now())

    @rule(target=minted, old=minted)
    def rotate(self, old: NewKey) -> NewKey:
        if not self.alive(old):
            return old
        new = self.admin.rotate(old.id)
        self.revoked[old.id] = self.clock.now()
        self.expiries[new.id] = self.expiries[old.id]
        return new

    @rule(new=minted, seconds=st.integers(1, 20))
    def extend(self, new: NewKey, seconds: int) -> None:
        if self.alive(new):
            self.expiries[new.id] = self.clock.now() + seconds * MICROSECONDS
            self.admin.extend(new.id, self.expiries[new.id])

    @rule()
    def purge(self) -> None:
        now = self.clock.now()
        gone = [
            key_id
            for key_id, expiry in self.expiries.items()
            if (expiry is not None and expiry < now) or self.revoked.get(key_id, now) < now
        ]
        assert self.admin.purge_expired(now) == len(gone)
        for key_id in gone:
            del self.expiries[key_id]

    @rule(seconds=st.integers(1, 15))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(new=minted)
    def call(self, new: NewKey) -> None:
        self.clock.advance(RECHECK_SECONDS)
        for store in (self.server, self.admin):
            try:
                accepted = store.verify(new.key).key_id == new.id
            except CredentialError:
                accepted = False
            assert accepted == self.alive(new)

    @rule(new=minted)
    def call_where_it_was_administered(self, new: NewKey) -> None:
        try:
            self.admin.verify(new.key)
            accepted = True
        except CredentialError:
            accepted = False
        assert accepted == self.alive(new)


TestKeyLives = KeyLives.TestCase
TestKeyLives.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
