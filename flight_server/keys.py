"""API keys: who may do what, kept in ``control.db``, checked on every call.

The store keeps a keyed BLAKE2b digest of each key, never the key: a secret of 256 random bits needs
no slow derivation, which would only let strangers burn our CPU. The command line writes keys while
the server reads them; each process caches the keys it has accepted and looks at SQLite's change
counter every second.
"""

import hashlib
import hmac
import json
import sqlite3
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeAlias, final

from flight_server import tokens
from flight_server.control import ControlDatabase
from flight_server.errors import (
    ControlStoreError,
    CredentialError,
    InvalidArgumentError,
    NotFoundError,
    Refusal,
)
from flight_server.identity import (
    Identity,
    Scope,
    checked_model_id,
    checked_rate,
    checked_scopes,
    checked_symbols,
)
from storage.ports import Clock

__all__ = ["RECHECK_SECONDS", "Identity", "KeyRecord", "KeyStore", "NewKey", "Scope"]

RECHECK_SECONDS: Final = 1.0
"""How long another process's revocation can go unnoticed; five seconds are promised.

SQLite's change counter costs 3 µs to read, but reading it gives up the GIL, and getting that back
from a busy thread costs up to a millisecond: too much for every call, nothing once a second.
"""
_CACHED_KEYS: Final = 4_096
"""Far more than the models of one desk; a bound so that minting keys in a loop costs no memory."""
_DIGEST_BYTES: Final = 32
_LAST_INSTANT: Final = 2**63 - 1
_NO_DIGEST: Final = bytes(_DIGEST_BYTES)
_COLUMNS: Final = (
    "id, model_id, scopes, symbols, created_at, expires_at, revoked_at, calls_per_second"
)


@final
@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What the store knows of a key; instants in microseconds since 1970, UTC."""

    id: str
    model_id: str
    scopes: frozenset[Scope]
    symbols: frozenset[str] | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    calls_per_second: int | None = None


@final
@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only time its text is known."""

    id: str
    key: str = field(repr=False)


@final
class KeyStore:
    """The keys of ``directory/control.db``; safe to share between threads.

    Every method but ``verify`` raises ``ControlStoreError`` when the store can't be used.
    """

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._database = ControlDatabase(directory)
        self._clock = clock
        # Accepted keys by the digest of their text. Entries are added, and all dropped, only under
        # the lock and after a look at the store, so none can outlive a change unnoticed.
        self._cache: dict[bytes, Identity] = {}
        self._cache_lock = threading.Lock()
        self._own: dict[bytes, Identity] = {}
        self._seen_version: int | None = None
        self._recheck_at = clock.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; every credential is refused from now on."""
        self._database.close()
        self._drop_cache()

    def create(
        self,
        model_id: str,
        *,
        scopes: Collection[Scope],
        symbols: Collection[str] | None = None,
        expires_at: int | None = None,
        calls_per_second: int | None = None,
    ) -> NewKey:
        """Make a key.

        Args:
            model_id: Whom it is for: letters, digits and ``._:@-``, up to 64 characters.
            scopes: What it may do; at least one.
            symbols: What it may read; ``None`` is everything.
            expires_at: Instant from which it is refused, in the future; ``None`` is never.
            calls_per_second: How often it may call; ``None`` is as often as it likes.

        Raises:
            InvalidArgumentError: An argument is not as described; ``field`` names it.
        """
        record = KeyRecord(
            id="",
            model_id=checked_model_id(model_id),
            scopes=checked_scopes(scopes),
            symbols=checked_symbols(symbols),
            created_at=self._clock.now(),
            expires_at=self._checked_expiry(expires_at),
            revoked_at=None,
            calls_per_second=checked_rate(calls_per_second),
        )
        with self._database.write() as connection:
            return self._insert(connection, record)

    def own(self, model_id: str, *, scopes: Collection[Scope]) -> str:
        """Make a key that is known to this object alone, ends with it and is written nowhere."""
        key_id, token = tokens.mint()
        identity = Identity(key_id, model_id, frozenset(scopes), None, None, is_server=True)
        self._own[self._digest(token)] = identity
        return token

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked and expired ones too, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id")  # noqa: S608
            return tuple(_record(row) for row in rows)

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on; a second time is fine.

        Raises:
            NotFoundError: There is no such key.
        """
        with self._database.write() as connection:
            _fetch(connection, key_id)
            self._mark_revoked(connection, key_id)
        self._drop_cache()

    def rotate(self, key_id: str) -> NewKey:
        """Make a new key with the rights and expiry of another and revoke that one at once.

        To change keys without a gap, create the second one first and revoke the first later.

        Raises:
            NotFoundError: There is no such key.
            InvalidArgumentError: The key is revoked or expired already.
        """
        with self._database.write() as connection:
            old = self._fetch_live(connection, key_id)
            self._mark_revoked(connection, key_id)
            new = self._insert(connection, old)
        self._drop_cache()
        return new

    def extend(self, key_id: str, expires_at: int | None) -> None:
        """Move the expiry of a key that is neither revoked nor expired.

        Raises:
            NotFoundError: There is no such key.
            InvalidArgumentError: The key is dead already, or the instant is in the past.
        """
        instant = self._checked_expiry(expires_at)
        with self._database.write() as connection:
            self._fetch_live(connection, key_id)
            connection.execute("UPDATE keys SET expires_at = ? WHERE id = ?", (instant, key_id))
        self._drop_cache()

    def purge_expired(self, older_than: int) -> int:
        """Forget keys that were revoked or expired before an instant; returns how many."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM keys WHERE revoked_at < ?1 OR expires_at < ?1", (older_than,)
            ).rowcount

    def recognise(self, token: str) -> Identity | None:
        """Tell whose key this is if it was accepted before; ``None`` means: ask ``verify``."""
        if len(token) != tokens.KEY_CHARS or not token.isascii():
            return None
        try:
            if self._clock.monotonic() >= self._recheck_at:
                self._drop_cache_if_changed()
        except ControlStoreError:
            return None
        digest = self._digest(token)
        identity = self._cache.get(digest) or self._own.get(digest)
        if identity is None or _has_expired(identity.expires_at, self._clock):
            return None
        return identity

    def verify(self, token: str) -> Identity:
        """Tell whose key this is.

        A new key is known at the next call. One revoked or changed through another store or
        process counts as it was for at most ``RECHECK_SECONDS``; expiry is exact.

        Raises:
            CredentialError: The key is not accepted, or the store can't be read.
        """
        if len(token) != tokens.KEY_CHARS or not token.isascii():
            raise CredentialError(Refusal.MALFORMED)
        digest = self._digest(token)
        try:
            if self._clock.monotonic() >= self._recheck_at:
                self._drop_cache_if_changed()
            known = self._cache.get(digest) or self._own.get(digest)
            identity = known or self._look_up(token, digest)
        except ControlStoreError as error:
            raise CredentialError(Refusal.UNCHECKED) from error
        if _has_expired(identity.expires_at, self._clock):
            raise CredentialError(Refusal.EXPIRED)
        return identity

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(
            token.encode("ascii"), key=self._database.pepper, digest_size=_DIGEST_BYTES
        ).digest()

    def _drop_cache(self) -> None:
        with self._cache_lock:
            self._cache.clear()

    def _drop_cache_if_changed(self) -> None:
        with self._cache_lock:
            checked_at = self._clock.monotonic()
            if checked_at < self._recheck_at:
                return  # another thread was faster
            self._database.require_same_file()
            with self._database.read() as connection:
                (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != self._seen_version:
                self._cache.clear()
                self._seen_version = version
            self._recheck_at = checked_at + RECHECK_SECONDS

    def _look_up(self, token: str, digest: bytes) -> Identity:
        key_id = tokens.id_of(token)
        if key_id is None:
            raise CredentialError(Refusal.MALFORMED)
        with self._cache_lock:
            with self._database.read() as connection:
                row = connection.execute(
                    f"SELECT {_COLUMNS}, digest FROM keys WHERE id = ?",  # noqa: S608
                    (key_id,),
                ).fetchone()
            # An unknown id costs the same comparison as a known one with a wrong secret.
            stored = _NO_DIGEST if row is None else row[-1]
            if not hmac.compare_digest(stored, digest):
                raise CredentialError(Refusal.UNKNOWN)
            record = _record(row[:-1])
            if record.revoked_at is not None:
                raise CredentialError(Refusal.REVOKED)
            return self._remember(digest, record)

    def _remember(self, digest: bytes, record: KeyRecord) -> Identity:
        identity = Identity(
            record.id,
            record.model_id,
            record.scopes,
            record.symbols,
            record.expires_at,
            record.calls_per_second,
        )
        if len(self._cache) >= _CACHED_KEYS:
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = identity
        return identity

    def _insert(self, connection: sqlite3.Connection, rights: KeyRecord) -> NewKey:
        key_id, token = tokens.mint()
        connection.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?)",
            (
                key_id,
                self._digest(token),
                rights.model_id,
                json.dumps(sorted(rights.scopes)),
                None if rights.symbols is None else json.dumps(sorted(rights.symbols)),
                self._clock.now(),
                rights.expires_at,
                rights.calls_per_second,
            ),
        )
        return NewKey(key_id, token)

    def _mark_revoked(self, connection: sqlite3.Connection, key_id: str) -> None:
        connection.execute(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
            (self._clock.now(), key_id),
        )

    def _fetch_live(self, connection: sqlite3.Connection, key_id: str) -> KeyRecord:
        record = _fetch(connection, key_id)
        expired = _has_expired(record.expires_at, self._clock)
        if expired or record.revoked_at is not None:
            state = "expired" if record.revoked_at is None else "revoked"
            raise InvalidArgumentError(f"key {key_id} is {state}: create a new one", field="id")
        return record

    def _checked_expiry(self, expires_at: int | None) -> int | None:
        if expires_at is not None and not self._clock.now() < expires_at <= _LAST_INSTANT:
            raise InvalidArgumentError("the expiry must lie in the future", field="expires_at")
        return expires_at


def _has_expired(expires_at: int | None, clock: Clock) -> bool:
    return expires_at is not None and expires_at <= clock.now()


def _fetch(connection: sqlite3.Connection, key_id: str) -> KeyRecord:
    query = f"SELECT {_COLUMNS} FROM keys WHERE id = ?"  # noqa: S608
    # SQLite can't be asked for text that is not Unicode, which a terminal may well send.
    row = connection.execute(query, (key_id,)).fetchone() if key_id.isascii() else None
    if row is None:
        raise NotFoundError("there is no key with this id: see `tickflightd keys list`")
    return _record(row)


_Row: TypeAlias = tuple[str, str, str, str | None, int, int | None, int | None, int | None]


def _record(row: _Row) -> KeyRecord:
    key_id, model_id, scopes, symbols, created_at, expires_at, revoked_at, rate = row
    try:
        return KeyRecord(
            key_id,
            model_id,
            frozenset(Scope(scope) for scope in json.loads(scopes)),
            None if symbols is None else frozenset(json.loads(symbols)),
            created_at,
            expires_at,
            revoked_at,
            rate,
        )
    except (ValueError, TypeError) as error:
        raise ControlStoreError(
            f"the rights of key {key_id} can't be read: revoke it and create a new one"
        ) from error
