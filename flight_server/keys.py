"""API keys: who may do what, kept in ``control.db``, checked on every call.

The store keeps a keyed BLAKE2b digest of each key, never the key: a secret of 256 random bits needs
no slow derivation, which would only let strangers burn our CPU. The command line writes keys while
the server reads them; each process caches the keys it has accepted and looks at SQLite's change
counter every second.
"""

import hashlib
import hmac
import json
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, final

from flight_server import tokens
from flight_server.control import ControlDatabase
from flight_server.control_tables import KEYS, KeyRow
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
from flight_server.sealing import Session
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
        with self._database.write() as session:
            return self._insert(session, record)

    def own(self, model_id: str, *, scopes: Collection[Scope]) -> str:
        """Make a key that is known to this object alone, ends with it and is written nowhere."""
        key_id, token = tokens.mint()
        identity = Identity(key_id, model_id, frozenset(scopes), None, None, is_server=True)
        self._own[self._digest(token)] = identity
        return token

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked and expired ones too, oldest first."""
        with self._database.read() as session:
            records = [_record(row) for row in KEYS.all(session)]
        return tuple(sorted(records, key=lambda record: (record.created_at, record.id)))

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on; a second time is fine.

        Raises:
            NotFoundError: There is no such key.
        """
        with self._database.write() as session:
            self._mark_revoked(session, _fetch(session, key_id))
        self._drop_cache()

    def rotate(self, key_id: str) -> NewKey:
        """Make a new key with the rights and expiry of another and revoke that one at once.

        To change keys without a gap, create the second one first and revoke the first later.

        Raises:
            NotFoundError: There is no such key.
            InvalidArgumentError: The key is revoked or expired already.
        """
        with self._database.write() as session:
            old = self._fetch_live(session, key_id)
            self._mark_revoked(session, old)
            new = self._insert(session, _record(old))
        self._drop_cache()
        return new

    def extend(self, key_id: str, expires_at: int | None) -> None:
        """Move the expiry of a key that is neither revoked nor expired.

        Raises:
            NotFoundError: There is no such key.
            InvalidArgumentError: The key is dead already, or the instant is in the past.
        """
        instant = self._checked_expiry(expires_at)
        with self._database.write() as session:
            row = self._fetch_live(session, key_id)
            KEYS.replace(session, row, row._replace(expires_at=instant))
        self._drop_cache()

    def purge_expired(self, older_than: int) -> int:
        """Forget keys that were revoked or expired before an instant; returns how many."""
        with self._database.write() as session:
            dead = [row for row in KEYS.all(session) if _died_before(row, older_than)]
            KEYS.remove(session, dead)
            return len(dead)

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
            version = self._database.changes()
            if version != self._seen_version:
                self._cache.clear()
                self._seen_version = version
            self._recheck_at = checked_at + RECHECK_SECONDS

    def _look_up(self, token: str, digest: bytes) -> Identity:
        key_id = tokens.id_of(token)
        if key_id is None:
            raise CredentialError(Refusal.MALFORMED)
        with self._cache_lock:
            with self._database.read() as session:
                row = KEYS.find(session, key_id)
            # An unknown id costs the same comparison as a known one with a wrong secret.
            stored = _NO_DIGEST if row is None else row.digest
            if not hmac.compare_digest(stored, digest) or row is None:
                raise CredentialError(Refusal.UNKNOWN)
            record = _record(row)
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

    def _insert(self, session: Session, rights: KeyRecord) -> NewKey:
        key_id, token = tokens.mint()
        row = KeyRow(
            id=key_id,
            digest=self._digest(token),
            model_id=rights.model_id,
            scopes=json.dumps(sorted(rights.scopes)),
            symbols=None if rights.symbols is None else json.dumps(sorted(rights.symbols)),
            created_at=self._clock.now(),
            expires_at=rights.expires_at,
            revoked_at=None,
            calls_per_second=rights.calls_per_second,
        )
        KEYS.insert(session, row)
        return NewKey(key_id, token)

    def _mark_revoked(self, session: Session, row: KeyRow) -> None:
        if row.revoked_at is None:
            KEYS.replace(session, row, row._replace(revoked_at=self._clock.now()))

    def _fetch_live(self, session: Session, key_id: str) -> KeyRow:
        row = _fetch(session, key_id)
        if row.revoked_at is not None or _has_expired(row.expires_at, self._clock):
            state = "expired" if row.revoked_at is None else "revoked"
            raise InvalidArgumentError(f"key {key_id} is {state}: create a new one", field="id")
        return row

    def _checked_expiry(self, expires_at: int | None) -> int | None:
        if expires_at is not None and not self._clock.now() < expires_at <= _LAST_INSTANT:
            raise InvalidArgumentError("the expiry must lie in the future", field="expires_at")
        return expires_at


def _has_expired(expires_at: int | None, clock: Clock) -> bool:
    return expires_at is not None and expires_at <= clock.now()


def _died_before(row: KeyRow, instant: int) -> bool:
    return any(end is not None and end < instant for end in (row.revoked_at, row.expires_at))


def _fetch(session: Session, key_id: str) -> KeyRow:
    # SQLite can't be asked for text that is not Unicode, which a terminal may well send.
    row = KEYS.find(session, key_id) if key_id.isascii() else None
    if row is None:
        raise NotFoundError("there is no key with this id: see `tickflightd keys list`")
    return row


def _record(row: KeyRow) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        model_id=row.model_id,
        scopes=frozenset(map(Scope, json.loads(row.scopes))),
        symbols=None if row.symbols is None else frozenset(json.loads(row.symbols)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        calls_per_second=row.calls_per_second,
    )
