"""How complete an answer is: the server's word on every symbol of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Self

from tickflight.errors import ServerError
from tickflight.tickets import EPOCH

METADATA_KEY: Final = b"tickflight.coverage"


class CoverageState(StrEnum):
    """What is known about a symbol's rows."""

    VERIFIED = "verified"
    """An independent witness counted the same rows."""
    UNVERIFIED = "unverified"
    """No gap is known, and nobody else has counted."""
    GAP = "gap"
    """Rows are known to be missing."""


@dataclass(frozen=True, slots=True)
class Span:
    """From ``start_us`` up to ``end_us``, microseconds since 1970, UTC."""

    start_us: int
    end_us: int

    @property
    def start(self) -> datetime:
        """The beginning as an aware datetime."""
        return as_datetime(self.start_us)

    @property
    def end(self) -> datetime:
        """The end as an aware datetime."""
        return as_datetime(self.end_us)


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole: rows between the two instants (µs) are missing; one that lasts has no end yet.

    Attributes:
        start_us: Since when.
        end_us: Until when.
        reason: ``disconnect``, ``sequence``, ``silence``, ``downtime`` or ``overflow``.
        state: ``open``, ``filled`` (its rows came after all) or ``unfillable``.
        source: Whose rows are missing.
        dataset: Of which dataset; told by ``Client.gaps`` alone, as what follows.
        symbol: Of which symbol; None is every symbol of the source.
        rows_recovered: Rows that came after all.
        detail: What happened, in words.
        gap_id: What the gap is known by.
    """

    start_us: int
    end_us: int | None
    reason: str | None = None
    state: str | None = None
    source: str | None = None
    dataset: str | None = None
    symbol: str | None = None
    rows_recovered: int = 0
    detail: str = ""
    gap_id: str | None = None

    @property
    def start(self) -> datetime:
        """The beginning as an aware datetime."""
        return as_datetime(self.start_us)

    @property
    def end(self) -> datetime | None:
        """The end as an aware datetime, None while the gap is open."""
        return None if self.end_us is None else as_datetime(self.end_us)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps by their beginning; of more than were asked for, the last ones.

    Attributes:
        gaps: Those that were told.
        count: How many there are.
    """

    gaps: tuple[Gap, ...]
    count: int

    def __iter__(self) -> Iterator[Gap]:
        return iter(self.gaps)

    def __len__(self) -> int:
        return len(self.gaps)

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer of the action ``gaps``.

        Raises:
            ServerError: it can't be understood.
        """
        try:
            return cls(tuple(gap_of(one) for one in answer["gaps"]), int(answer["count"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ServerError("the server's gaps can't be read: update tickflight") from None


@dataclass(frozen=True, slots=True)
class SymbolCoverage:
    """One symbol's part of a ``Coverage``; ``gaps`` holds the first of ``gap_count``."""

    state: CoverageState
    requested: Span | None
    available: Span | None
    gaps: tuple[Gap, ...]
    gap_count: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How complete an answer is, by symbol; ``snapshot`` names the state it was read from."""

    snapshot: str
    symbols: Mapping[str, SymbolCoverage] = field(default_factory=lambda: MappingProxyType({}))

    def __getitem__(self, symbol: str) -> SymbolCoverage:
        return self.symbols[symbol]

    @property
    def state(self) -> CoverageState:
        """The worst state of all symbols."""
        states = {one.state for one in self.symbols.values()}
        if CoverageState.GAP in states:
            return CoverageState.GAP
        if states == {CoverageState.VERIFIED}:
            return CoverageState.VERIFIED
        return CoverageState.UNVERIFIED

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Self:
        """Read it from a schema's metadata; an answer without any is unverified.

        Raises:
            ServerError: the metadata is there and can't be understood.
        """
        body = (metadata or {}).get(METADATA_KEY)
        if body is None:
            return cls(snapshot="")
        try:
            content = json.loads(body)
        except ValueError:
            raise ServerError("the server's coverage can't be read: update tickflight") from None
        return cls.from_answer(content)

    @classmethod
    def from_answer(cls, content: Mapping[str, Any]) -> Self:
        """Read the answer of the action ``coverage``.

        Raises:
            ServerError: it can't be understood.
        """
        try:
            symbols = {name: _symbol(one) for name, one in content["symbols"].items()}
            return cls(str(content["snapshot"]), MappingProxyType(symbols))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ServerError("the server's coverage can't be read: update tickflight") from None


def as_datetime(us: int) -> datetime:
    """An aware datetime of microseconds since 1970, clamped to the years datetime knows."""
    try:
        return EPOCH + timedelta(microseconds=us)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if us > 0 else datetime.min.replace(tzinfo=UTC)


def _symbol(content: Mapping[str, Any]) -> SymbolCoverage:
    return SymbolCoverage(
        state=CoverageState(content["state"]),
        requested=_span(content.get("requested")),
        available=_span(content.get("available")),
        gaps=tuple(gap_of(one) for one in content.get("gaps", ())),
        gap_count=int(content.get("gap_count", 0)),
        quarantined=int(content.get("quarantined", 0)),
    )


def _span(content: list[int] | None) -> Span | None:
    return None if content is None else Span(int(content[0]), int(content[1]))


def gap_of(content: Mapping[str, Any] | list[Any]) -> Gap:
    """Read a gap as the server tells of it: its fields by name, or its two instants."""
    if isinstance(content, Mapping):
        end = content.get("end")
        return Gap(
            int(content["start"]),
            None if end is None else int(end),
            content.get("reason"),
            content.get("state"),
            content.get("source"),
            content.get("dataset"),
            content.get("symbol"),
            int(content.get("rows_recovered", 0)),
            str(content.get("detail", "")),
            content.get("gap_id"),
        )
    return Gap(int(content[0]), None if content[1] is None else int(content[1]))
