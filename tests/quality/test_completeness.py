"""The actions ``coverage`` and ``gaps`` over a real connection."""

from typing import Any

import pytest
from pyarrow import flight

from flight_server.completeness import explained
from flight_server.identity import Scope
from storage.ledger import Gap
from tests.flight_server.conftest import Caller, House, ticks, told
from tests.quality.conftest import gap
from tests.storage.conftest import NOON


def of_symbol(answer: dict[str, Any], symbol: str) -> dict[str, Any]:
    found: dict[str, Any] = answer["symbols"][symbol]
    return found


class TestCoverage:
    def test_the_action_tells_what_an_answer_tells(self, anyone: Caller) -> None:
        anyone.put(ticks(3, symbol="COV1", ts_event=[NOON + 5, NOON + 6, NOON + 7]))
        anyone.put(gap("cov1", 50, 60, symbol="COV1"), dataset="gaps")
        span = {"start": NOON, "end": NOON + 100}
        found = of_symbol(anyone.act("coverage", symbols=["COV1"], **span), "COV1")
        assert found["state"] == "gap"
        assert found["requested"] == [NOON, NOON + 100]
        assert found["available"] == [NOON + 5, NOON + 8]
        assert [one["gap_id"] for one in found["gaps"]] == ["cov1"]
        schema = anyone.get({"op": "range", "dataset": "ticks", "symbols": ["COV1"], **span}).schema
        assert b'"gap_id": "cov1"' in schema.metadata[b"tickflight.coverage"]

    def test_without_instants_all_of_time_is_meant(self, anyone: Caller) -> None:
        anyone.put(gap("cov2", 50, None, symbol="COV2"), dataset="gaps")
        found = of_symbol(anyone.act("coverage", symbols=["COV2"]), "COV2")
        assert (found["requested"], found["state"], found["available"]) == (None, "gap", None)

    def test_any_key_may_ask_for_the_symbols_it_may_read(self, house: House) -> None:
        narrow = house.caller(Scope.WRITE, symbols=["COV3"])
        assert list(narrow.act("coverage")["symbols"]) == ["COV3"]
        with pytest.raises(flight.FlightUnauthorizedError, match="may not read COV4"):
            narrow.act("coverage", symbols=["COV4"])

    def test_datasets_of_administrators_stay_theirs(self, house: House) -> None:
        reader = house.caller(Scope.READ_HISTORY)
        with pytest.raises(flight.FlightUnauthorizedError, match="admin"):
            reader.act("coverage", dataset="queries")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"start": "yesterday"}, "start"),
            ({"start": 5, "end": 4}, "end"),
            ({"symbols": ["bad symbol"]}, "symbols.0"),
            ({"dataset": "nope"}, "dataset"),
            ({"sybmols": []}, "sybmols"),
        ],
    )
    def test_what_can_not_be_meant_is_named(
        self, anyone: Caller, body: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            anyone.act("coverage", **body)
        assert told(caught.value) == {"code": "invalid_argument", "field": field}


class TestGaps:
    def ids(self, caller: Caller, **question: Any) -> list[str]:
        return [one["gap_id"] for one in caller.act("gaps", **question)["gaps"]]

    def test_each_gap_is_told_once_as_it_is_now(self, anyone: Caller) -> None:
        anyone.put(gap("gap1", 10, None, symbol="GAP1"), dataset="gaps")
        later = gap("gap1", 10, 20, symbol="GAP1", revision=2, state="filled", rows_recovered=7)
        anyone.put(later, dataset="gaps")
        answer = anyone.act("gaps", symbols=["GAP1"])
        assert answer["count"] == 1
        assert answer["gaps"] == [
            {
                "gap_id": "gap1",
                "revision": 2,
                "dataset": "ticks",
                "source": "demo",
                "symbol": "GAP1",
                "start": NOON + 10,
                "end": NOON + 20,
                "reason": "disconnect",
                "state": "filled",
                "rows_recovered": 7,
                "detail": "the source was cut off from its venue; 7 rows came later",
            }
        ]

    def test_questions_narrow_the_answer(self, anyone: Caller) -> None:
        anyone.put(gap("n1", 10, 20, symbol="NAR"), dataset="gaps")
        anyone.put(gap("n2", 30, 40, symbol="NAR", dataset="quotes"), dataset="gaps")
        anyone.put(gap("n3", 50, None, symbol="NAR", state="unfillable"), dataset="gaps")
        mine = {"symbols": ["NAR"]}
        assert self.ids(anyone, **mine) == ["n1", "n2", "n3"]
        assert self.ids(anyone, **mine, dataset="quotes") == ["n2"]
        assert self.ids(anyone, **mine, states=["unfillable", "filled"]) == ["n3"]
        assert self.ids(anyone, **mine, start=NOON + 20, end=NOON + 50) == ["n2"]
        assert self.ids(anyone, **mine, start=NOON + 45) == ["n3"]

    def test_of_too_many_the_last_ones_are_told_and_all_counted(self, anyone: Caller) -> None:
        rows = [gap(f"many{n}", n, n + 1, symbol="MANY") for n in range(5)]
        anyone.put(*rows, dataset="gaps")
        answer = anyone.act("gaps", symbols=["MANY"], limit=2)
        assert [one["gap_id"] for one in answer["gaps"]] == ["many3", "many4"]
        assert answer["count"] == 5

    def test_a_key_sees_gaps_of_its_symbols_and_of_whole_sources(
        self, house: House, anyone: Caller
    ) -> None:
        anyone.put(gap("mine", 10, 20, symbol="MINE"), dataset="gaps")
        anyone.put(gap("whole", 10, 20, symbol=[None], source="whole"), dataset="gaps")
        anyone.put(gap("theirs", 10, 20, symbol="THEIRS"), dataset="gaps")
        found = self.ids(house.caller(Scope.READ_REALTIME, symbols=["MINE"]))
        assert "theirs" not in found
        assert {"mine", "whole"} <= set(found)

    def test_an_unknown_state_is_refused(self, anyone: Caller) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            anyone.act("gaps", states=["lost"])
        assert told(caught.value)["field"] == "states.0"


@pytest.mark.parametrize(
    ("end", "state", "reason", "words"),
    [
        (None, "open", "silence", "said nothing while its market was open, and still is"),
        (9, "open", "sequence", "numbers of the feed are missing; not filled yet"),
        (9, "unfillable", "overflow", "faster than they could be kept; the rows are lost"),
        (9, "filled", "downtime", "did not run; all rows came later"),
        (9, "open", "flood", "flood; not filled yet"),
    ],
)
def test_a_gap_is_explained_in_words(end: int | None, state: str, reason: str, words: str) -> None:
    found = Gap("g", 0, "ticks", "demo", "MNQ", 1, end, reason, state, 0)
    assert explained(found).endswith(words)
