"""What a server says of itself, typed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Self

from tickflight.coverage import as_datetime
from tickflight.errors import ServerError


@dataclass(frozen=True, slots=True)
class SymbolInfo:
    """What is held of one symbol in one dataset; instants in µs since 1970, UTC."""

    dataset: str
    symbol: str
    rows: int
    first_us: int | None
    last_us: int | None

    @property
    def first(self) -> datetime | None:
        """The oldest row's time."""
        return None if self.first_us is None else as_datetime(self.first_us)

    @property
    def last(self) -> datetime | None:
        """The newest row's time."""
        return None if self.last_us is None else as_datetime(self.last_us)

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> tuple[Self, ...]:
        """Read the answer of the action ``symbols``."""
        try:
            return tuple(
                cls(dataset, symbol, int(one["rows"]), one.get("first"), one.get("last"))
                for dataset, symbols in answer["datasets"].items()
                for symbol, one in symbols.items()
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ServerError("the server's symbols can't be read: update tickflight") from None


HEALTHY: Final = frozenset({"running", "stopped"})
"""States that need nobody's attention; what newer servers add does, until it is known here."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One part of the service: its state and since when (µs) it is in it."""

    name: str
    state: str
    since_us: int | None
    detail: str

    @property
    def since(self) -> datetime | None:
        """Since when the state holds."""
        return None if self.since_us is None else as_datetime(self.since_us)

    @property
    def healthy(self) -> bool:
        """Whether this part is as it should be."""
        return self.state in HEALTHY


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """Size of one dataset."""

    name: str
    rows: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """How a server is; ``raw`` holds the answer with all that newer servers add."""

    services: tuple[ServiceStatus, ...]
    datasets: tuple[DatasetStatus, ...]
    version: str
    epoch: int | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def troubled(self) -> tuple[ServiceStatus, ...]:
        """The parts that are not as they should be."""
        return tuple(one for one in self.services if not one.healthy)

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer of the action ``status``."""
        try:
            return cls(
                services=tuple(_service(one) for one in answer["services"]),
                datasets=tuple(
                    DatasetStatus(name, int(one["rows"]), one.get("bytes"))
                    for name, one in answer.get("datasets", {}).items()
                ),
                version=str(answer.get("version", "")),
                epoch=answer.get("epoch"),
                raw=MappingProxyType(dict(answer)),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ServerError("the server's status can't be read: update tickflight") from None


def _service(content: Mapping[str, Any]) -> ServiceStatus:
    return ServiceStatus(
        name=str(content["name"]),
        state=str(content["state"]),
        since_us=content.get("since"),
        detail=str(content.get("detail") or ""),
    )
