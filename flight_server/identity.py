"""Who a caller is and what that allows: the part of a key that handlers see."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from flight_server.errors import InvalidArgumentError, ScopeError
from storage.schemas import SYMBOL_PATTERN

MODEL_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")
CALLS_PER_SECOND_MAX: Final = 1_000_000
"""More than a machine can serve: whoever means "no limit" gives none."""


class Scope(StrEnum):
    """What a key may be used for; none implies another."""

    READ_REALTIME = "read:realtime"
    READ_HISTORY = "read:history"
    SQL = "sql"
    WRITE = "write"
    ADMIN = "admin"


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as the key says.

    Attributes:
        key_id: Public id of the key.
        model_id: The model or person the key was made for.
        scopes: What it may do.
        symbols: What it may read; ``None`` is everything.
        expires_at: Instant from which it is refused; ``None`` is never.
        calls_per_second: How often it may call; ``None`` is as often as it likes.
        is_server: Whether it is the server itself, whose calls are no queries of anybody.
    """

    key_id: str
    model_id: str
    scopes: frozenset[Scope]
    symbols: frozenset[str] | None
    expires_at: int | None
    calls_per_second: int | None = None
    is_server: bool = False

    def require(self, scope: Scope) -> None:
        """Raise ``ScopeError`` unless the key has ``scope``."""
        if scope not in self.scopes:
            raise ScopeError(f"this needs a key with the scope {scope}", scope=scope)

    def may_read(self, symbol: str) -> None:
        """Raise ``ScopeError`` unless the key may read ``symbol``."""
        if self.symbols is not None and symbol not in self.symbols:
            raise ScopeError(f"this key may not read {symbol}", symbol=symbol)


def checked_model_id(model_id: str) -> str:
    """Return ``model_id``, or raise ``InvalidArgumentError``."""
    if MODEL_ID_PATTERN.fullmatch(model_id) is None:
        raise InvalidArgumentError(
            "a model id is 1 to 64 letters, digits and ._:@-, a letter or digit first",
            field="model_id",
        )
    return model_id


def checked_scopes(scopes: Collection[Scope]) -> frozenset[Scope]:
    """Return the scopes as a set, or raise ``InvalidArgumentError``."""
    try:
        checked = frozenset(Scope(scope) for scope in scopes)
    except ValueError as error:
        raise InvalidArgumentError(f"the scopes are {', '.join(Scope)}", field="scopes") from error
    if not checked:
        raise InvalidArgumentError("a key needs at least one scope", field="scopes")
    return checked


def checked_symbols(symbols: Collection[str] | None) -> frozenset[str] | None:
    """Return the symbols as a set, or raise ``InvalidArgumentError``; ``None`` stays."""
    if symbols is None:
        return None
    bad = sorted(symbol for symbol in symbols if SYMBOL_PATTERN.fullmatch(symbol) is None)
    if bad:
        raise InvalidArgumentError(
            f"{bad[0]!r} is not a symbol: letters in capitals, digits and ._-", field="symbols"
        )
    return frozenset(symbols)


def checked_rate(calls_per_second: int | None) -> int | None:
    """Return the rate, or raise ``InvalidArgumentError``; ``None`` stays."""
    if calls_per_second is not None and not 1 <= calls_per_second <= CALLS_PER_SECOND_MAX:
        raise InvalidArgumentError(
            f"a rate is 1 to {CALLS_PER_SECOND_MAX} calls a second", field="calls_per_second"
        )
    return calls_per_second
