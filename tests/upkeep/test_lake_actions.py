"""The lake's actions over real sockets: for administrators, and durable once they answer."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import flight

from flight_server.identity import Scope
from tests.flight_server.conftest import House, serving
from tests.storage.conftest import ticks

ACTIONS = ("lake.status", "compact", "retain", "vacuum", "repair", "verify")
LONG_AGO = 1_780_000_000_000_000


@pytest.fixture
def house(tmp_path: Path, here: None) -> Iterator[House]:  # noqa: ARG001
    """A service whose rows leave memory at once."""
    with serving(tmp_path, hot_window_us=1, retention_us=86_400_000_000) as house:
        yield house


def rolled(house: House, parts: int) -> None:
    """Have some parts of one day in the lake, and out of memory."""
    caller, store = house.caller(), house.service._store
    assert store is not None
    for part in range(1, parts + 1):
        caller.put(ticks(2, sequence=[2 * part, 2 * part + 1], ts_event=[LONG_AGO] * 2))
        caller.act("rollover", all=True)
        while len(store.published.lake["ticks"]) < part:
            time.sleep(0.01)


def refusal(house: House, *scopes: Scope, action: str, **body: Any) -> str:
    with pytest.raises(flight.FlightError) as caught:
        house.caller(*scopes).act(action, **body)
    return str(json.loads(caught.value.extra_info)["code"])


@pytest.mark.parametrize("action", ACTIONS)
def test_only_administrators_may(house: House, action: str) -> None:
    others = set(Scope) - {Scope.ADMIN}
    assert refusal(house, *others, action=action) == "unauthorized"


@pytest.mark.parametrize("action", ACTIONS[1:])
def test_an_unknown_table_is_refused_by_name(house: House, action: str) -> None:
    assert refusal(house, action=action, dataset="no_such") == "invalid_argument"
    assert refusal(house, action=action, tables=["ticks"]) == "invalid_argument"


def test_a_day_is_joined_when_asked_and_a_dry_run_changes_nothing(house: House) -> None:
    rolled(house, 3)
    caller = house.caller()
    would = caller.act("compact", dataset="ticks", dry_run=True)
    assert would == caller.act("compact", dataset="ticks", dry_run=True)
    (joined,) = caller.act("compact", dataset="ticks")["joined"]
    assert (joined["files"], joined["rows"]) == (3, 6)
    assert {**joined, "bytes": None} == would["joined"][0]
    assert caller.act("compact", dataset="ticks")["joined"] == []
    about = caller.act("lake.status")
    (table,) = (one for one in about["tables"] if one["dataset"] == "ticks")
    assert (table["files"], table["rows"], table["part"]) == (1, 6, 3)
    assert caller.act("vacuum", dataset="ticks")["removed"] == []  # not before a day has passed
    assert caller.act("retain", dataset="ticks")["dropped"] == []  # it came just now
    ticket = {"op": "range", "dataset": "ticks", "symbols": [], "start": 0, "end": "now"}
    assert caller.get(ticket).num_rows == 6


def test_damage_is_named_by_verify_and_in_status(house: House) -> None:
    rolled(house, 2)
    store = house.service._store
    assert store is not None
    name = store.published.lake["ticks"].files[0].path
    path = store.lake_directory / "ticks" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    caller = house.caller()
    found = caller.act("verify")
    assert [(one["dataset"], one["path"]) for one in found["damaged"]] == [("ticks", name)]
    assert found["left"] == 0
    assert found["files"] >= 2
    services = {one["name"]: one for one in caller.act("status")["services"]}
    assert services["lake"]["state"] == "degraded"
    assert name in services["lake"]["detail"]
    (repaired,) = caller.act("repair")["repaired"]
    assert repaired["path"] == name
    assert caller.act("verify", dataset="ticks")["damaged"] == []
    services = {one["name"]: one for one in caller.act("status")["services"]}
    assert services["lake"]["state"] == "running"


def test_a_verification_is_asked_for_slice_by_slice(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.lake_verification.SLICE_BYTES_MIN", 1)
    rolled(house, 3)
    caller = house.caller()
    answer = caller.act("verify", dataset="ticks")
    assert (answer["files"], answer["left"]) == (1, 2)
    answer = caller.act("verify", dataset="ticks", before=answer["before"])
    assert (answer["files"], answer["left"]) == (1, 1)
    answer = caller.act("verify", dataset="ticks", before=answer["before"])
    assert (answer["files"], answer["left"]) == (1, 0)
