"""A replay has the rows of the range of all sources, in the order in which they were received."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import merge, reordering, streams
from storage.columnar import ColumnarStore
from storage.columnar_view import ColumnarView
from storage.errors import InvalidDataError, RetentionError
from storage.lake import reader
from storage.ports import SystemDisk
from storage.reordering import Spill
from storage.replay import Replay, replay
from storage.schemas import TICKS, TIMESTAMP
from storage.selection import Selection
from storage.snapshot import Snapshot
from storage.speakers import DAY
from storage.validation import Decoder
from tests.lake_queries.conftest import POLICY, Pool, Row, batch_of
from tests.storage.conftest import NOON

STEP = DAY // 5
EVER = (0, 1 << 62)
LATENESS = st.sampled_from([0, 0, 0, 1, 5, -3, STEP, -STEP, 9 * DAY, -NOON])
"""On time mostly; also ahead of their venue's clock, days late, and at a clock's zero."""


@dataclass(frozen=True, order=True)
class Heard(Row):
    """A tick that was received some time after it happened."""

    late: int = 0

    @property
    def received(self) -> int:
        return max(0, self.ts + self.late)


HEARD = st.builds(
    Heard,
    ts=st.integers(0, 14).map(lambda step: NOON + step * STEP),
    source=st.sampled_from(["good", "best"]),
    contract=st.sampled_from(["A1", "A2", "B1"]),
    sequence=st.integers(0, 99),
    kind=st.just(0),
    late=LATENESS,
)
ROWS = st.lists(HEARD, max_size=40, unique_by=lambda row: (row.source, row.contract, row.sequence))


def heard(rows: Sequence[Heard]) -> pa.RecordBatch:
    received = pa.array([row.received for row in rows], pa.int64()).cast(TIMESTAMP)
    return batch_of(rows).set_column(1, "ts_recv", received)


def spread(directory: Path, memory: Sequence[Heard], *parts: Sequence[Heard]) -> Snapshot:
    """Have some rows in memory, in the order they came, and others in parts of a lake."""
    pool = Pool(directory)
    store = ColumnarStore(TICKS)
    for row in memory:
        batch = heard([row])
        columns, _ = Decoder(TICKS, batch.schema, store.dictionaries).decode(batch)
        store.append(columns)
    pool.hot = lambda: ColumnarView(store.state, POLICY)
    for part in parts:
        if part:
            pool.roll(heard(part))
    return pool.snapshot()


def begin(
    snapshot: Snapshot, directory: Path, span: tuple[int, int] = EVER, **selection: Any
) -> Replay:
    spill = Spill(directory, SystemDisk())
    return replay(snapshot, "ticks", Selection(**selection), span, spill)


def keys(played: Replay) -> list[tuple[Any, ...]]:
    names = ("ts_recv", "ts_event", "source", "contract", "sequence")
    batches = [block.rows for block in played.blocks if block is not None]
    table = pa.Table.from_batches(batches, played.schema)
    numbers = [table[name].cast(pa.int64()) if name[:2] == "ts" else table[name] for name in names]
    return list(zip(*(column.to_pylist() for column in numbers), strict=True))


def key(row: Heard) -> tuple[Any, ...]:
    return row.received, row.ts, row.source, row.contract, row.sequence


@settings(max_examples=60)
@given(
    rows=ROWS,
    sides=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    start=st.integers(-1, 15),
    length=st.integers(0, 16),
    held=st.sampled_from([0, 500, 1 << 20]),
)
def test_every_row_of_the_span_comes_once_in_order_of_receipt(
    rows: list[Heard], sides: list[int], start: int, length: int, held: int
) -> None:
    groups = [[row for row, at in zip(rows, sides, strict=False) if at == n] for n in range(3)]
    span = (NOON + start * STEP, NOON + (start + length) * STEP)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        # Small enough for a few rows to be many blocks.
        patch.setattr(merge, "BLOCK_ROWS_TARGET", 4)
        patch.setattr(streams, "BLOCK_ROWS_TARGET", 3)
        patch.setattr(streams, "BATCH_ROWS_MIN", 2)
        patch.setattr(reader, "BATCH_ROWS", 3)
        patch.setattr(reordering, "HELD_BYTES_MAX", held)
        played = begin(spread(Path(name), *groups), Path(name), span)
        wanted = sorted(key(row) for row in rows if span[0] <= row.ts < span[1])
        assert keys(played) == wanted


def test_only_the_symbols_and_columns_asked_for_come(tmp_path: Path) -> None:
    rows = [Heard(NOON + at, "good", contract, at, late=-at) for at, contract in enumerate("ABAB")]
    snapshot = spread(tmp_path, rows[:2], rows[2:])
    played = begin(snapshot, tmp_path, symbols=("B",), columns=("sequence", "symbol"))
    batches = [block.rows for block in played.blocks if block is not None]
    assert played.schema.names == ["sequence", "symbol"]
    assert pa.Table.from_batches(batches).to_pylist() == [
        {"sequence": 1, "symbol": "B"},
        {"sequence": 3, "symbol": "B"},
    ]


def test_strings_are_plain_and_coverage_is_told(tmp_path: Path) -> None:
    played = begin(spread(tmp_path, [Heard(NOON, "good", "A", 1)]), tmp_path)
    assert played.schema.field("symbol").type == pa.string()
    assert b"tickflight.coverage" in played.schema.metadata


def test_a_row_leaves_before_the_span_was_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "BLOCK_ROWS_TARGET", 10)
    rows = [Heard(NOON + at, "good", "A", at, late=3) for at in range(100)]
    played = begin(spread(tmp_path, rows), tmp_path)
    blocks = list(played.blocks)
    first = next(at for at, block in enumerate(blocks) if block is not None)
    # Ten times the receipts alone, then rows after the first of ten blocks.
    assert first <= 11


def test_whoever_waits_hears_now_and_then_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "BLOCK_ROWS_TARGET", 10)
    # The last row was received first: nothing can leave before all is read.
    rows = [Heard(NOON + at, "good", "A", at, late=-DAY if at == 99 else 0) for at in range(100)]
    blocks = list(begin(spread(tmp_path, rows), tmp_path).blocks)
    assert sum(block is None for block in blocks) >= 20


def test_a_span_that_ends_before_it_starts_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError):
        begin(spread(tmp_path, []), tmp_path, (NOON, NOON - 1))


def test_a_span_that_was_dropped_is_refused_at_once(tmp_path: Path) -> None:
    pool = Pool(tmp_path, retained_from=NOON)
    pool.remember([])
    with pytest.raises(RetentionError):
        begin(pool.snapshot(), tmp_path, (NOON - DAY, NOON))
