"""The keys of a running service, and the file by which commands find one of them."""

import stat
from pathlib import Path

import pytest

from flight_server.errors import CredentialError
from flight_server.keys import KeyStore, Scope
from tickflightd import access, directory
from tickflightd.access import DEAD_KEYS_KEPT_US, OWN_LIFETIME_US, OwnKeys
from tickflightd.directory import LocalAccess
from tickflightd.errors import AlreadyRunningError, ConfigurationError


class FrozenClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.microseconds = 1_800_000_000_000_000

    def now(self) -> int:
        return self.microseconds

    def monotonic(self) -> float:
        return self.microseconds / 1_000_000

    def sleep(self, seconds: float) -> None:
        self.microseconds += int(seconds * 1_000_000)


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


def accepted(store: KeyStore, token: str) -> bool:
    try:
        store.verify(token)
    except CredentialError:
        return False
    return True


class TestOwnKeys:
    def test_they_end_with_the_service(self, tmp_path: Path, clock: FrozenClock) -> None:
        with access.key_store(tmp_path, clock) as store:
            with OwnKeys(store, clock) as keys:
                new = keys.mint("ingest", (Scope.WRITE,))
                assert store.verify(new.key).scopes == {Scope.WRITE}
            assert not accepted(store, new.key)

    def test_they_end_even_if_the_service_was_killed(
        self, tmp_path: Path, clock: FrozenClock
    ) -> None:
        with access.key_store(tmp_path, clock) as store:
            left = OwnKeys(store, clock).__enter__().mint("ingest", (Scope.WRITE,))
            with OwnKeys(store, clock):
                assert not accepted(store, left.key)

    def test_extended_they_outlive_their_first_lifetime(
        self, tmp_path: Path, clock: FrozenClock
    ) -> None:
        with access.key_store(tmp_path, clock) as store, OwnKeys(store, clock) as keys:
            new = keys.mint("ingest", (Scope.WRITE,))
            clock.microseconds += OWN_LIFETIME_US - 1
            keys.extend()
            clock.microseconds += OWN_LIFETIME_US - 1
            assert accepted(store, new.key)
            clock.microseconds += 1
            assert not accepted(store, new.key)

    def test_keys_of_others_are_left_alone(self, tmp_path: Path, clock: FrozenClock) -> None:
        with access.key_store(tmp_path, clock) as store:
            theirs = store.create("model", scopes=(Scope.SQL,))
            with OwnKeys(store, clock) as keys:
                demo = keys.mint_demo()
            assert accepted(store, theirs.key)
            assert accepted(store, demo.key)

    def test_dead_keys_are_forgotten_after_a_while(
        self, tmp_path: Path, clock: FrozenClock
    ) -> None:
        with access.key_store(tmp_path, clock) as store:
            with OwnKeys(store, clock) as keys:
                keys.mint("ingest", (Scope.WRITE,))
            assert len(store.list()) == 1
            clock.microseconds += DEAD_KEYS_KEPT_US + 1
            with OwnKeys(store, clock):
                assert store.list() == ()


class TestLocalAccess:
    def test_what_was_left_is_found_and_taken_back(self, tmp_path: Path) -> None:
        left = LocalAccess("grpc://127.0.0.1:1", "tf_id_secret")
        assert directory.read_local_access(tmp_path) is None
        directory.write_local_access(tmp_path, left)
        assert directory.read_local_access(tmp_path) == left
        assert [path.name for path in tmp_path.iterdir()] == ["local.key"]
        directory.remove_local_access(tmp_path)
        directory.remove_local_access(tmp_path)
        assert directory.read_local_access(tmp_path) is None

    def test_nobody_else_may_read_it(self, tmp_path: Path) -> None:
        directory.write_local_access(tmp_path, LocalAccess("grpc://127.0.0.1:1", "tf_id_secret"))
        assert stat.S_IMODE((tmp_path / "local.key").stat().st_mode) == 0o600

    def test_its_repr_hides_the_key(self) -> None:
        assert "secret" not in repr(LocalAccess("grpc://127.0.0.1:1", "tf_id_secret"))

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"uri": "x"}', b"\xff"])
    def test_a_damaged_one_is_one_sentence(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "local.key").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"local\.key"):
            directory.read_local_access(tmp_path)


class TestOwnership:
    def test_a_directory_has_one_owner_at_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(directory, "HANDOVER_SECONDS", 0.0)
        with directory.owned(tmp_path, directory.UP_LOCK):
            with pytest.raises(AlreadyRunningError, match="TICKFLIGHT_DATA_DIR"):
                directory.owned(tmp_path, directory.UP_LOCK).__enter__()
            with directory.owned(tmp_path, directory.FLIGHT_LOCK):
                pass
        with directory.owned(tmp_path, directory.UP_LOCK):
            pass
