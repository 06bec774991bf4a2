"""What the feed calls the symbols people ask for: futures by their front month, the rest as it is.

A future rolls when tastytrade's active month changes. The contract left behind is followed for a
while longer under a symbol of its own (``MNQZ26``): both prices of the same moment are what a
continuous series is adjusted by, and one symbol with two contracts would mix them in its bars.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tastytrade import Session
from tastytrade.instruments import Equity, Future

from ingest.errors import ConfigurationError

OVERLAP_US: Final = 2 * 24 * 3_600 * 1_000_000
"""How long the contract left behind is followed: one whole session, whenever the roll was seen."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One thing to follow.

    Attributes:
        symbol: What people ask for.
        contract: What trades, as the feed calls it.
        is_index: Nobody trades it: it has values, and no trades.
        until: When to stop following it, µs since 1970; None to go on.
    """

    symbol: str
    contract: str
    is_index: bool = False
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Roll:
    """A symbol that means another contract from now on."""

    symbol: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Instruments:
    """What is followed.

    Attributes:
        followed: Each contract once.
        unknown: Symbols that tastytrade does not know.
    """

    followed: tuple[Instrument, ...] = ()
    unknown: tuple[str, ...] = ()

    def contracts(self, *, is_index: bool | None = None) -> list[str]:
        """Return the feed's names; of indices or of all others alone, if asked."""
        wanted = (True, False) if is_index is None else (is_index,)
        return [one.contract for one in self.followed if one.is_index in wanted]


async def look_up(session: Session, symbols: Sequence[str]) -> Instruments:
    """Ask tastytrade what ``symbols`` are.

    Raises:
        ConfigurationError: It knows none of them.
    """
    futures = await Future.get(session, product_codes=list(symbols))
    found = {
        one.product_code: Instrument(one.product_code, one.streamer_symbol)
        for one in futures
        if one.active_month and one.streamer_symbol
    }
    others = [symbol for symbol in symbols if symbol not in found]
    if others:
        for one in await Equity.get(session, others):
            found[one.symbol] = Instrument(one.symbol, one.streamer_symbol, one.is_index)
    known = tuple(found[symbol] for symbol in symbols if symbol in found)
    unknown = tuple(symbol for symbol in symbols if symbol not in found)
    if not known:
        raise ConfigurationError(
            f"tastytrade knows none of {', '.join(unknown)}: mend TICKFLIGHT_SYMBOLS"
        )
    return Instruments(known, unknown)


def rolled(old: Instruments, new: Instruments, now: int) -> tuple[Instruments, list[Roll]]:
    """Return ``new`` with what ``old`` has left behind and is not over yet, and what has rolled."""
    fronts = {one.symbol: one for one in new.followed}
    left: list[Instrument] = []
    rolls = []
    for one in old.followed:
        front = fronts.get(one.symbol)
        if one.until is not None:
            left += [one] if one.until > now else []
        elif front is not None and front.contract != one.contract:
            rolls.append(Roll(one.symbol, one.contract, front.contract))
            own_name = _symbol_of(one.contract)
            left.append(replace(one, symbol=own_name, until=now + OVERLAP_US))
    return replace(new, followed=(*new.followed, *_without(left, new.followed))), rolls


def _without(left: Iterable[Instrument], followed: Iterable[Instrument]) -> list[Instrument]:
    taken = {one.contract for one in followed}
    return [one for one in left if one.contract not in taken]


def _symbol_of(contract: str) -> str:
    """Return ``MNQZ26`` for ``/MNQZ26:XCME``."""
    return contract.lstrip("/").partition(":")[0]
