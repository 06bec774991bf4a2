"""Rows leave in the order in which they were received, whatever waits and wherever."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import reordering
from storage.errors import TooLargeError
from storage.ports import SystemDisk
from storage.reordering import NEVER, Received, Reordering, Spill


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path, SystemDisk())


def rows(first: int, count: int) -> pa.RecordBatch:
    """Rows that know their number and weigh something."""
    numbers = range(first, first + count)
    lists = [[number] * 3 for number in numbers]
    return pa.record_batch(
        {"number": list(numbers), "text": [f"row {n}" for n in numbers], "l": lists}
    )


def reordered(spill: Spill, parts: list[list[int]]) -> Iterator[Received]:
    """Feed parts of receipts, each with the floor of all that follow."""
    waiting = Reordering(spill)
    try:
        first = 0
        for at, part in enumerate(parts):
            rest = [receipt for later in parts[at + 1 :] for receipt in later]
            floor = min(rest, default=NEVER)
            receipts = np.array(part, np.int64)
            yield from waiting.add(rows(first, len(part)), receipts, floor)
            first += len(part)
    finally:
        waiting.close()


def expected(parts: list[list[int]]) -> list[int]:
    whole = np.array([receipt for part in parts for receipt in part])
    return [int(number) for number in np.argsort(whole, kind="stable")]


def numbers(blocks: Iterator[Received]) -> list[int]:
    return [number for block in blocks for number in block.rows["number"].to_pylist()]


PARTS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=30), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=PARTS)
def test_any_rows_leave_in_order_of_receipt(parts: list[list[int]], spill: Spill) -> None:
    assert numbers(reordered(spill, parts)) == expected(parts)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(parts=PARTS, held=st.integers(0, 600))
def test_rows_that_waited_on_disk_come_back_in_their_place(
    parts: list[list[int]], held: int, spill: Spill
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reordering, "HELD_BYTES_MAX", held)
        patch.setattr(reordering, "CHUNK_BYTES", 100)
        patch.setattr(reordering, "HELD_RUNS_MAX", 3)
        assert numbers(reordered(spill, parts)) == expected(parts)
    assert list(spill.directory.iterdir()) == []


def test_a_row_leaves_as_soon_as_its_turn_has_come(spill: Spill) -> None:
    waiting = Reordering(spill)
    first = list(waiting.add(rows(0, 3), np.array([5, 9, 7]), 7))
    assert numbers(iter(first)) == [0, 2]
    assert numbers(waiting.add(rows(3, 1), np.array([7]), NEVER)) == [3, 1]


def test_blocks_fit_into_a_message(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reordering, "BLOCK_BYTES", 1_000)
    blocks = list(reordered(spill, [[9, 8, 7] * 100]))
    assert max(block.rows.nbytes for block in blocks) < 2_000
    assert sum(len(block.receipts) for block in blocks) == 300


def test_what_waits_in_memory_is_bounded(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 100_000)
    waiting = Reordering(spill)
    for at in range(200):
        late = np.full(1_000, 10**9) + np.arange(1_000)
        assert list(waiting.add(rows(at * 1_000, 1_000), late, 0)) == []
        assert sum(run.held_bytes for run in waiting._in_memory) <= 100_000
    assert len(waiting._on_disk) > 1
    waiting.close()


def test_more_than_the_limit_waits_nowhere(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 1_000)
    monkeypatch.setattr(reordering, "SPILLED_BYTES_MAX", 50_000)
    with pytest.raises(TooLargeError, match="shorter span"):
        list(reordered(spill, [[9] * 1_000] * 100 + [[1]]))


def test_what_has_left_the_disk_makes_room_for_more(
    spill: Spill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 1_000)
    monkeypatch.setattr(reordering, "SPILLED_BYTES_MAX", 200_000)
    # Each part is late by one part: far more goes through the disk than may be there at once.
    parts = [[10 * at + 9] * 1_000 for at in range(50)]
    waiting = Reordering(spill)
    left = 0
    for at, part in enumerate(parts):
        for block in waiting.add(rows(at * 1_000, 1_000), np.array(part), 10 * at):
            left += len(block.receipts)
    assert left == 49_000
    assert len(waiting._files) <= 2
    waiting.close()


def test_the_disk_that_the_journal_needs_is_left_to_it(
    spill: Spill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 1_000)
    monkeypatch.setattr(reordering, "SPARE_BYTES", 1 << 60)
    with pytest.raises(TooLargeError):
        list(reordered(spill, [[9] * 1_000, [1]]))


def test_a_disk_that_refuses_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Roomy(SystemDisk):
        def free(self, path: Path) -> int:  # noqa: ARG002 - there is always room
            return 1 << 62

    monkeypatch.setattr(reordering, "HELD_BYTES_MAX", 1_000)
    spill = Spill(tmp_path / "gone", Roomy())
    with pytest.raises(TooLargeError, match="No such file"):
        list(reordered(spill, [[9] * 1_000, [1]]))
