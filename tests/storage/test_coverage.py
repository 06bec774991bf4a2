"""What is known of holes and rejects travels with every answer."""

import json
import threading
from typing import Any

import pyarrow as pa
import pytest

from storage.coverage import GAPS_LISTED_MAX
from storage.errors import InvalidDataError
from storage.schemas import GAPS
from storage.selection import Order, Selection
from storage.snapshot import COVERAGE_KEY, Snapshot
from storage.store import Store
from tests.storage.conftest import FOREVER, NOON, read, rows_of, send, ticks

SPAN = (NOON, NOON + 100)


def gap(gap_id: str, start: int, end: int | None, **columns: Any) -> pa.RecordBatch:
    """Build a row of the gaps dataset; its span is relative to noon."""
    defaults = {
        "ts_event": NOON,
        "ts_recv": NOON,
        "symbol": "MNQ",
        "gap_id": gap_id,
        "revision": 1,
        "dataset": "ticks",
        "source": "demo",
        "start": NOON + start,
        "end": None if end is None else NOON + end,
        "reason": "disconnect",
        "state": "open",
        "rows_recovered": 0,
    }
    return rows_of(GAPS, 1, defaults, **columns)


def coverage(
    store: Store, symbol: str = "MNQ", span: tuple[int, int] = SPAN, dataset: str = "ticks"
) -> dict[str, Any]:
    answer = store.snapshot().range(dataset, Selection(symbols=(symbol,)), *span)
    found: dict[str, Any] = json.loads(answer.schema.metadata[COVERAGE_KEY])
    return dict(found["symbols"][symbol])


class TestGaps:
    @pytest.mark.parametrize(
        ("start", "end", "inside"),
        [(10, 20, True), (-10, 0, False), (-10, 1, True), (99, None, True), (100, 110, False)],
    )
    def test_a_gap_counts_where_it_overlaps_the_slice(
        self, store: Store, start: int, end: int | None, *, inside: bool
    ) -> None:
        send(store, gap("g", start, end), dataset="gaps")
        found = coverage(store)
        assert (found["state"], found["gap_count"]) == (("gap", 1) if inside else ("unverified", 0))

    def test_a_gap_is_named_with_its_span_and_reason(self, store: Store) -> None:
        send(store, gap("g", 10, 20), dataset="gaps")
        assert coverage(store)["gaps"] == [
            {
                "gap_id": "g",
                "start": NOON + 10,
                "end": NOON + 20,
                "reason": "disconnect",
                "state": "open",
                "source": "demo",
            }
        ]

    def test_the_newest_revision_counts_whatever_order_they_come_in(self, store: Store) -> None:
        send(store, gap("g", 10, 20, revision=2, state="filled"), dataset="gaps")
        send(store, gap("g", 10, None, revision=1), dataset="gaps")
        assert coverage(store)["state"] == "unverified"
        send(store, gap("g", 10, 20, revision=3, state="unfillable"), dataset="gaps")
        assert coverage(store)["state"] == "gap"

    def test_a_gap_without_a_symbol_is_a_gap_of_every_symbol(self, store: Store) -> None:
        send(store, gap("g", 10, 20, symbol=[None]), dataset="gaps")
        assert coverage(store)["state"] == coverage(store, "NQ")["state"] == "gap"

    def test_other_symbols_and_datasets_have_gaps_of_their_own(self, store: Store) -> None:
        send(store, gap("g", 10, 20, symbol="NQ"), dataset="gaps")
        send(store, gap("h", 10, 20, dataset="quotes"), dataset="gaps")
        assert coverage(store)["state"] == "unverified"
        assert coverage(store, dataset="quotes")["state"] == "gap"

    def test_many_gaps_are_counted_and_the_first_are_named(self, store: Store) -> None:
        count = GAPS_LISTED_MAX + 5
        send(store, *(gap(f"g{n}", n, n + 1) for n in reversed(range(count))), dataset="gaps")
        found = coverage(store)
        assert found["gap_count"] == count
        assert [g["start"] - NOON for g in found["gaps"]] == list(range(GAPS_LISTED_MAX))


class TestSpans:
    def test_what_was_asked_for_and_what_there_is_are_told(self, store: Store) -> None:
        send(store, ticks(3, ts_event=[NOON + 5, NOON + 7, NOON + 300]))
        found = coverage(store)
        assert found["requested"] == [*SPAN]
        assert found["available"] == [NOON + 5, NOON + 301]

    def test_a_symbol_without_rows_has_nothing_available(self, store: Store) -> None:
        found = coverage(store, "VIX")
        assert (found["available"], found["state"]) == (None, "unverified")

    def test_latest_asks_for_the_span_of_its_rows(self, store: Store) -> None:
        send(store, ticks(3))
        answer = store.snapshot().latest("ticks", Selection(symbols=("MNQ",)), 2)
        found = json.loads(answer.schema.metadata[COVERAGE_KEY])["symbols"]["MNQ"]
        assert found["requested"] == [NOON + 1, NOON + 3]

    def test_an_end_before_its_start_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidDataError, match="end lies before start") as caught:
            store.snapshot().range("ticks", Selection(), 2, 1)
        assert caught.value.field == "end"

    def test_rejects_are_counted_by_symbol_and_dataset(self, store: Store) -> None:
        send(store, ticks(3, size=-1.0, symbol=["MNQ", "MNQ", "NQ"]))
        assert coverage(store)["quarantined"] == 2
        assert coverage(store, "NQ")["quarantined"] == 1
        assert coverage(store, dataset="quotes")["quarantined"] == 0


class TestSnapshots:
    def test_every_snapshot_has_a_name_of_its_own(self, store: Store) -> None:
        names = {store.snapshot().id for _ in range(10)}
        assert len(names) == 10
        assert all(name.startswith(f"{store.epoch}.") for name in names)

    def test_a_snapshot_answers_the_same_while_rows_come(self, store: Store) -> None:
        """A writer never rests; each snapshot is asked three times, and has no row twice."""

        def write() -> None:
            sequence = 0
            while not enough.is_set():
                numbers = list(range(sequence, sequence + 7))
                instants = [NOON + n - (n % 3) * 50 for n in numbers]  # some of them late
                send(store, ticks(7, sequence=numbers, ts_event=instants))
                sequence += 7

        def answers(snapshot: Snapshot) -> list[object]:
            span = snapshot.range("ticks", Selection(source="all"), 0, FOREVER, Order.TIME)
            newest = snapshot.latest("ticks", Selection(symbols=("MNQ",)), 20)
            return [read(span), read(newest), snapshot.symbols("ticks")]

        enough = threading.Event()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(60):
                snapshot = store.snapshot()
                first = answers(snapshot)
                rows = first[0]
                assert isinstance(rows, list)
                found = sorted(row["sequence"] for row in rows)
                assert found == list(range(len(found)))
                assert first[1] == rows[-20:]
                assert answers(snapshot) == answers(snapshot) == first
        finally:
            enough.set()
            writer.join()

    def test_columns_come_in_the_order_asked_for(self, store: Store) -> None:
        send(store, ticks(1))
        chosen = Selection(columns=("price", "symbol"))
        answer = store.snapshot().latest("ticks", chosen, 1)
        assert answer.schema.names == ["price", "symbol"]

    @pytest.mark.parametrize("columns", [("nope",), ("price", "price"), ()])
    def test_columns_that_can_not_be_are_refused(
        self, store: Store, columns: tuple[str, ...]
    ) -> None:
        with pytest.raises(InvalidDataError) as caught:
            store.snapshot().latest("ticks", Selection(columns=columns), 1)
        assert caught.value.field == "columns"

    def test_a_narrow_answer_names_no_string_its_rows_do_not_use(self, store: Store) -> None:
        send(store, ticks(3, symbol=["MNQ", "SECRET", "ES"], contract=["C1", "SECRET", "C2"]))
        chosen = Selection(symbols=("MNQ", "ES"), narrow=True)
        for answer in (
            store.snapshot().latest("ticks", chosen, 9),
            store.snapshot().range("ticks", chosen, 0, FOREVER),
        ):
            table = pa.Table.from_batches(answer.batches, answer.schema)
            assert table.num_rows == 2
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            assert b"SECRET" not in sink.getvalue().to_pybytes()
