"""DoAction: small questions and orders, JSON in and JSON out."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pyarrow import flight
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flight_server import completeness
from flight_server.calls import Call
from flight_server.completeness import CoverageQuestion, GapsQuestion
from flight_server.door import Door
from flight_server.errors import InvalidArgumentError, LimitError, NotFoundError
from flight_server.files import FileRegistry
from flight_server.identity import Identity, Scope
from flight_server.lake_actions import LakeActions, RepairOrder, UpkeepOrder, VerifyOrder
from flight_server.status import StatusBoard, rollover_fields
from storage.schemas import DATASETS
from storage.store import Store

BODY_BYTES_MAX: Final = 1 << 20
"""Longest body of an action; pyarrow itself would take any."""


Handler = Callable[[bytes, Identity], dict[str, Any]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


BodyT = TypeVar("BodyT", bound=BaseModel)


class Nothing(_Body):
    """An action without arguments."""


class RegisterFile(_Body):
    """A file about to be imported."""

    digest: str
    name: str
    dataset: str
    options: dict[str, Any] = Field(default_factory=dict)
    producer: str


class CompleteFile(_Body):
    """A file whose last row is durable."""

    digest: str
    rows: int = Field(strict=True)


class RollOver(_Body):
    """Closed segments are to be rolled over."""

    everything: bool = Field(default=False, strict=True, alias="all")


class Actions:
    """Carries out actions."""

    def __init__(self, store: Store, files: FileRegistry, board: StatusBoard, door: Door) -> None:
        self._store = store
        self._files = files
        self._board = board
        self._door = door
        self._lake = LakeActions(store)
        self._actions: Mapping[str, tuple[str, Handler]] = {
            "status": ("How the service is doing.", self._status),
            "symbols": ("Which symbols have rows, and how far they reach.", self._symbols),
            "coverage": ("How complete a slice is.", self._coverage),
            "gaps": ("Which rows are missing, and why.", self._gaps),
            "rollover": ("Bring finished journal files into the lake now.", self._roll_over),
            **self._of_lake(self._lake),
            "files.register": ("Give a file to be imported its number.", self._register_file),
            "files.complete": ("Record that a file is imported whole.", self._complete_file),
        }

    def _of_lake(self, lake: LakeActions) -> Mapping[str, tuple[str, Handler]]:
        return {
            "lake.status": (
                "How the lake is doing.",
                self._lake_status,
            ),
            "compact": (
                "Join the lake's files of past dates now.",
                lambda body, caller: lake.compact(_parse(UpkeepOrder, body), caller),
            ),
            "retain": (
                "Drop the lake's dates whose time is over now.",
                lambda body, caller: lake.retain(_parse(UpkeepOrder, body), caller),
            ),
            "vacuum": (
                "Remove files of the lake that nobody needs now.",
                lambda body, caller: lake.vacuum(_parse(UpkeepOrder, body), caller),
            ),
            "repair": (
                "Make damaged files of the lake again.",
                lambda body, caller: lake.repair(_parse(RepairOrder, body), caller),
            ),
            "verify": (
                "Compare a slice of the lake with what was committed.",
                lambda body, caller: lake.verify(_parse(VerifyOrder, body), caller),
            ),
        }

    def types(self) -> list[flight.ActionType]:
        """Return every action with a sentence about it."""
        return [flight.ActionType(name, text) for name, (text, _) in self._actions.items()]

    def run(self, action: flight.Action, call: Call) -> bytes:
        """Carry out an action; return its JSON.

        Raises:
            RequestError: The caller may not, or the action can't be carried out.
            StorageError: Likewise.
        """
        known = self._actions.get(action.type)
        if known is None:
            names = ", ".join(self._actions)
            raise NotFoundError(f"there is no action {action.type[:40]!r}; there are {names}")
        call.operation = action.type
        if action.body.size > BODY_BYTES_MAX:
            raise LimitError(f"the body is longer than {BODY_BYTES_MAX} bytes")
        return json.dumps(known[1](action.body.to_pybytes(), call.caller)).encode()

    def _status(self, body: bytes, caller: Identity) -> dict[str, Any]:
        _parse(Nothing, body)
        return self._board.report() | self._door.report(caller)

    def _symbols(self, body: bytes, caller: Identity) -> dict[str, Any]:
        _parse(Nothing, body)
        snapshot = self._store.snapshot()
        found: dict[str, dict[str, Any]] = {}
        for name, dataset in DATASETS.items():
            if dataset.admin_only and Scope.ADMIN not in caller.scopes:
                continue
            extents = {
                symbol: extent.fields()
                for symbol, extent in snapshot.symbols(name).items()
                if caller.symbols is None or symbol in caller.symbols
            }
            if extents:
                found[name] = extents
        return {"datasets": found}

    def _coverage(self, body: bytes, caller: Identity) -> dict[str, Any]:
        return completeness.coverage(_parse(CoverageQuestion, body), self._store.snapshot(), caller)

    def _gaps(self, body: bytes, caller: Identity) -> dict[str, Any]:
        return completeness.gaps(_parse(GapsQuestion, body), self._store.snapshot(), caller)

    def _roll_over(self, body: bytes, caller: Identity) -> dict[str, Any]:
        """Begin; it is done once ``through`` in the answer, or in ``status``, is ``last``."""
        caller.require(Scope.ADMIN)
        last = self._store.rollover.begin(everything=_parse(RollOver, body).everything)
        return {"last": last} | rollover_fields(self._store.rollover.status)

    def _lake_status(self, body: bytes, caller: Identity) -> dict[str, Any]:
        _parse(Nothing, body)
        return self._lake.status(caller)

    def _register_file(self, body: bytes, caller: Identity) -> dict[str, Any]:
        caller.require(Scope.WRITE)
        file = _parse(RegisterFile, body)
        known = self._files.register(
            file.digest,
            name=file.name,
            dataset=file.dataset,
            options=file.options,
            producer=file.producer,
        )
        return {
            "number": known.number,
            "state": known.state,
            "options": dict(known.options),
            "producer": known.producer,
            "rows": known.rows,
            "durable_seq": self._store.producers.durable(known.producer),
            "bulk_seq": self._store.bulk.durable(file.dataset, known.producer),
        }

    def _complete_file(self, body: bytes, caller: Identity) -> dict[str, Any]:
        caller.require(Scope.WRITE)
        file = _parse(CompleteFile, body)
        self._files.complete(file.digest, file.rows)
        return {}


def _parse(model: type[BodyT], body: bytes) -> BodyT:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidArgumentError(f"{field or 'body'}: {first['msg']}", field=field) from None
