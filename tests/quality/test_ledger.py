"""What is known of holes, rejects and witnesses, as of one moment."""

import json
import random
import threading
from typing import Any

import pyarrow as pa
import pytest

from storage.coverage import State
from storage.ledger import CoverageLedger, Gap, GapLane
from storage.schemas import DATASETS, GAPS, QUARANTINE
from storage.selection import Selection
from storage.snapshot import Snapshot
from storage.store import Store
from tests.quality.conftest import gap, spot_check
from tests.storage.conftest import NOON, Lab, send, ticks

SPAN = (NOON, NOON + 100)


def state(snapshot: Snapshot, span: tuple[int, int] = SPAN, source: str | None = None) -> State:
    chosen = Selection(symbols=("MNQ",), source=source)
    return snapshot.coverage("ticks", chosen, span).symbols["MNQ"].state


def witness(start: int, end: int) -> str:
    return json.dumps({"source": "demo", "start": NOON + start, "end": NOON + end})


class TestMoments:
    def test_a_snapshot_knows_what_was_known_when_it_was_taken(self, store: Store) -> None:
        before = store.snapshot()
        send(store, gap("g", 10, 20), dataset="gaps")
        send(store, ticks(2, size=-1.0))
        after = store.snapshot()
        assert (state(before), state(after)) == (State.UNVERIFIED, State.GAP)
        counts = [s.known.quarantined.get(("ticks", "MNQ"), 0) for s in (before, after)]
        assert counts == [0, 2]

    def test_nothing_new_costs_no_new_knowledge(self, store: Store) -> None:
        send(store, gap("g", 10, 20), dataset="gaps")
        known = store.snapshot().known
        send(store, ticks(5))
        assert store.snapshot().known is known

    def test_readers_at_once_count_every_row_once(self, store: Store) -> None:
        enough = threading.Event()
        wrong: list[tuple[int, int]] = []

        def watch() -> None:
            last = 0
            while not enough.is_set():
                count = store.snapshot().known.quarantined.get(("ticks", "MNQ"), 0)
                if count < last:
                    wrong.append((last, count))
                last = count

        watchers = [threading.Thread(target=watch) for _ in range(2)]
        for watcher in watchers:
            watcher.start()
        try:
            for n in range(20):
                send(store, ticks(3, size=-1.0, sequence=[n * 3 + i for i in range(3)]))
        finally:
            enough.set()
            for watcher in watchers:
                watcher.join()
        assert wrong == []
        assert store.snapshot().known.quarantined["ticks", "MNQ"] == 60

    def test_a_restart_forgets_nothing(self, lab: Lab) -> None:
        store = lab.open()
        send(store, gap("g", 10, 20), gap("g", 10, 20, revision=2, state="filled"), dataset="gaps")
        send(store, gap("h", 30, None, symbol=[None]), dataset="gaps")
        send(store, ticks(2, size=-1.0))
        send(store, spot_check(detail=witness(0, 9)), dataset="spot_checks")
        known = store.snapshot().known
        again = lab.reopen(store).snapshot().known
        assert again.gaps() == known.gaps()
        assert again.quarantined == known.quarantined
        assert again.witnessed == known.witnessed
        assert {one.gap_id: one.state for one in again.gaps()} == {"g": "filled", "h": "open"}

    def test_rows_that_left_memory_are_learned_from_where_they_went(self, store: Store) -> None:
        rejects = {"payload": "{}", "reason": "size is negative", "dataset": "ticks"}
        row = {"ts_event": NOON, "ts_recv": NOON, "symbol": "MNQ", "source": "demo"} | rejects
        ledger: CoverageLedger = store._ledger
        ledger.adopt("gaps", pa.Table.from_batches([gap("g", 10, 20)]))
        ledger.adopt("quarantine", pa.Table.from_pylist([row, row], schema=QUARANTINE.schema))
        ledger.adopt("spot_checks", pa.Table.from_batches([spot_check(detail=witness(0, 5))]))
        send(store, gap("g", 10, 20, revision=2, state="filled"), dataset="gaps")
        send(store, ticks(1, size=-1.0))
        known = store.snapshot().known
        assert [(one.gap_id, one.revision) for one in known.gaps()] == [("g", 2)]
        assert known.quarantined == {("ticks", "MNQ"): 3}
        assert known.is_witnessed("ticks", "MNQ", "demo", (NOON, NOON + 5))


class TestGaps:
    def test_a_filled_gap_is_none_and_an_unfillable_one_stays_one(self, store: Store) -> None:
        send(store, gap("g", 10, 20, state="filled"), dataset="gaps")
        assert state(store.snapshot()) is State.UNVERIFIED
        send(store, gap("h", 30, 40, state="unfillable"), dataset="gaps")
        assert state(store.snapshot()) is State.GAP

    def test_a_gap_that_changes_its_symbol_leaves_the_old_one(self, store: Store) -> None:
        send(store, gap("g", 10, 20), dataset="gaps")
        send(store, gap("g", 10, 20, revision=2, symbol="NQ"), dataset="gaps")
        assert state(store.snapshot()) is State.UNVERIFIED
        assert [one.symbol for one in store.snapshot().known.gaps()] == ["NQ"]

    def test_whoever_names_a_source_is_told_of_its_gaps_alone(self, store: Store) -> None:
        send(store, gap("g", 10, 20, source="sierra"), dataset="gaps")
        snapshot = store.snapshot()
        found = [state(snapshot, source=name) for name in ("demo", "sierra", "all", None)]
        assert found == [State.UNVERIFIED, State.GAP, State.GAP, State.GAP]

    @pytest.mark.parametrize("seed", range(20))
    def test_gaps_are_found_as_by_looking_at_each(self, seed: int) -> None:
        chance = random.Random(seed)
        gaps = [made_up(chance, n) for n in range(chance.randrange(60))]
        lane = GapLane(gaps)
        for _ in range(30):
            start = chance.randrange(120)
            end = start + chance.randrange(40)
            expected = {
                one.gap_id
                for one in gaps
                if one.is_hole and one.start < end and (one.end is None or one.end > start)
            }
            assert {one.gap_id for one in lane.holes((start, end))} == expected
        assert len(lane.holes(None)) == sum(one.is_hole for one in gaps)


def made_up(chance: random.Random, number: int) -> Gap:
    start = chance.randrange(100)
    end = None if chance.random() < 0.2 else start + chance.randrange(30)
    fate = chance.choice(["open", "filled", "unfillable"])
    return Gap(str(number), 0, "ticks", "demo", "MNQ", start, end, "silence", fate, 0)


class TestWitnesses:
    def verify(self, store: Store, **columns: Any) -> None:
        send(store, spot_check(**columns), dataset="spot_checks")

    def test_a_slice_within_what_a_witness_counted_is_verified(self, store: Store) -> None:
        send(store, ticks(3))
        self.verify(store, detail=witness(0, 50))
        snapshot = store.snapshot()
        assert state(snapshot, (NOON + 10, NOON + 50)) is State.VERIFIED
        assert state(snapshot, (NOON + 10, NOON + 51)) is State.UNVERIFIED
        assert state(snapshot, (NOON - 1, NOON + 50)) is State.UNVERIFIED

    def test_spans_that_touch_are_one(self, store: Store) -> None:
        send(store, ticks(3))
        for span in ((50, 100), (0, 20), (20, 50), (200, 300)):
            self.verify(store, detail=witness(*span))
        snapshot = store.snapshot()
        assert state(snapshot) is State.VERIFIED
        assert state(snapshot, (NOON + 90, NOON + 210)) is State.UNVERIFIED

    @pytest.mark.parametrize(
        "columns",
        [
            {"passed": 2},
            {"kind": "journal"},
            {"symbol": [None]},
            {"dataset": "quotes"},
            {"detail": "not json"},
            {"detail": "{}"},
            {"detail": [None]},
        ],
    )
    def test_whoever_has_not_counted_the_same_is_no_witness(
        self, store: Store, columns: dict[str, Any]
    ) -> None:
        send(store, ticks(3))
        self.verify(store, **({"detail": witness(0, 100)} | columns))
        assert state(store.snapshot()) is State.UNVERIFIED

    def test_a_gap_outweighs_a_witness(self, store: Store) -> None:
        send(store, ticks(3))
        self.verify(store, detail=witness(0, 100))
        send(store, gap("g", 10, 20), dataset="gaps")
        assert state(store.snapshot()) is State.GAP

    def test_a_witness_of_one_source_does_not_speak_for_another(self, store: Store) -> None:
        send(store, ticks(3), ticks(1, source="sierra"))
        self.verify(store, detail=witness(0, 100))
        found = [state(store.snapshot(), source=name) for name in (None, "all", "sierra", "demo")]
        assert found == [State.UNVERIFIED] * 3 + [State.VERIFIED]

    def test_a_symbol_without_rows_is_never_verified(self, store: Store) -> None:
        self.verify(store, detail=witness(0, 100))
        assert state(store.snapshot()) is State.UNVERIFIED


def test_the_ledger_reads_the_columns_that_the_gaps_dataset_has() -> None:
    assert set(Gap.__slots__) <= set(DATASETS[GAPS.name].schema.names)
