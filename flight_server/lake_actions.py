"""The actions of the lake's upkeep: how it is, and what is otherwise done by itself, done now.

All need the scope ``admin``. What they do is durable and visible once they answer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from flight_server.errors import LakeFailedError
from flight_server.identity import Identity, Scope
from flight_server.tickets import Name
from storage.errors import LakeError
from storage.lake.scrub import FileReport
from storage.lake.table import LakeTable
from storage.snapshot import dataset_named
from storage.store import Store

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class UpkeepOrder(_Order):
    """Keep up one table, or all; ``dry_run`` only tells what would be done."""

    dataset: Name | None = None
    dry_run: Annotated[bool, Field(strict=True)] = False


class RepairOrder(_Order):
    """Repair one table, or all."""

    dataset: Name | None = None


class VerifyOrder(_Order):
    """Verify a slice of one table, or of all: files not verified since ``before``, µs."""

    dataset: Name | None = None
    before: Annotated[int, Field(strict=True, ge=0)] | None = None


class LakeActions:
    """Carries them out."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def status(self, caller: Identity) -> dict[str, Any]:
        """Return how the lake is doing, and how large it is."""
        caller.require(Scope.ADMIN)
        health = self._store.upkeep.status
        return {
            "state": health.state.value,
            "since": health.since,
            "detail": health.detail,
            "damaged": [{"since": one.since, **asdict(one.report)} for one in health.damaged],
            "verified_since": health.verified_since,
            "upkept": health.upkept,
            "tables": [_fields(table) for table in self._store.tables.values() if table.index],
        }

    def compact(self, order: UpkeepOrder, caller: Identity) -> dict[str, Any]:
        """Join the files of past dates."""
        upkeep, name = self._store.upkeep, _allowed(order, caller)
        with _told():
            done = upkeep.joinable(name) if order.dry_run else upkeep.compact(name)
        return {"dry_run": order.dry_run, "joined": _dicts(done)}

    def retain(self, order: UpkeepOrder, caller: Identity) -> dict[str, Any]:
        """Drop the dates whose time is over."""
        upkeep, name = self._store.upkeep, _allowed(order, caller)
        with _told():
            done = upkeep.expired(name) if order.dry_run else upkeep.retain(name)
        return {"dry_run": order.dry_run, "dropped": _dicts(done)}

    def vacuum(self, order: UpkeepOrder, caller: Identity) -> dict[str, Any]:
        """Remove files that nobody needs any more."""
        upkeep, name = self._store.upkeep, _allowed(order, caller)
        with _told():
            done = upkeep.left_over(name) if order.dry_run else upkeep.vacuum(name)
        return {"dry_run": order.dry_run, "removed": _dicts(done)}

    def repair(self, order: RepairOrder, caller: Identity) -> dict[str, Any]:
        """Make damaged files again."""
        name = _allowed(order, caller)
        with _told():
            done = self._store.upkeep.repair(name)
        return {"repaired": _dicts(done.repaired), "left": _dicts(done.left)}

    def verify(self, order: VerifyOrder, caller: Identity) -> dict[str, Any]:
        """Read a slice of the files whole; to be asked again until nothing is ``left``."""
        name = _allowed(order, caller)
        with _told():
            found = self._store.upkeep.verify(order.before, name)
        before = found.began if order.before is None else order.before
        damaged = [asdict(report) for report in found.reports if report.damage]
        return {"before": before, **_sums(found.reports), "left": found.left, "damaged": damaged}


def _allowed(order: UpkeepOrder | RepairOrder | VerifyOrder, caller: Identity) -> str | None:
    """Return the table asked for, None for all.

    Raises:
        ScopeError: The caller may not.
        InvalidDataError: There is no such table.
    """
    caller.require(Scope.ADMIN)
    return None if order.dataset is None else dataset_named(order.dataset).name


@contextmanager
def _told() -> Iterator[None]:
    """Tell administrators what is wrong with the lake; it is for them to mend."""
    try:
        yield
    except LakeError as error:
        raise LakeFailedError(str(error)) from error


def _dicts(done: "Iterable[DataclassInstance]") -> list[dict[str, Any]]:
    return [asdict(one) for one in done]


def _sums(reports: Iterable[FileReport]) -> dict[str, int]:
    files = [report for report in reports if report.bytes or report.damage]
    return {
        "files": len(files),
        "rows": sum(report.rows for report in files),
        "bytes": sum(report.bytes for report in files),
    }


def _fields(table: LakeTable) -> dict[str, Any]:
    index = table.index
    return {
        "dataset": table.dataset.name,
        "version": index.version,
        "part": table.part,
        "files": len(index),
        "rows": sum(file.rows for file in index),
        "bytes": sum(file.bytes for file in index),
        "first": min(file.first for file in index),
        "last": max(file.last for file in index),
        "retained_from": index.retained_from,
    }
