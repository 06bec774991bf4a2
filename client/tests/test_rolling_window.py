"""A window holds the newest rows, and nothing else for long."""

from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickflight import InvalidRequestError, RollingWindow
from tickflight.window import MERGED_ROWS

SECOND = 1_000_000
TIMESTAMP = pa.timestamp("us", "UTC")


def batch(instants: list[int], first: int = 0) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "ts_event": pa.array(instants, pa.int64()).cast(TIMESTAMP),
            "number": pa.array(range(first, first + len(instants)), pa.int64()),
        }
    )


def numbers(window: RollingWindow) -> list[int]:
    found: list[int] = window.table()["number"].to_pylist()
    return found


@dataclass(frozen=True)
class Size:
    seconds: float | None
    rows: int | None


SIZES = st.one_of(
    st.builds(Size, seconds=st.integers(1, 5).map(float), rows=st.none()),
    st.builds(Size, seconds=st.none(), rows=st.integers(1, 9)),
    st.builds(Size, seconds=st.integers(1, 5).map(float), rows=st.integers(1, 9)),
)


@given(
    size=SIZES,
    parts=st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=12),
    merged=st.sampled_from([1, 3, MERGED_ROWS]),
)
def test_a_window_is_what_a_list_of_all_rows_would_say(
    size: Size, parts: list[list[int]], merged: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tickflight.window.MERGED_ROWS", merged)
        window = RollingWindow(seconds=size.seconds, rows=size.rows)
        everything: list[tuple[int, int]] = []
        for part in parts:
            window.add(batch([at * SECOND for at in part], len(everything)))
            everything += [(len(everything) + n, at) for n, at in enumerate(part)]
            expected = everything if size.rows is None else everything[-size.rows :]
            if size.seconds is not None and everything:
                newest = max(at for _, at in everything)
                expected = [one for one in expected if one[1] > newest - size.seconds]
            assert numbers(window) == [number for number, _ in expected]
            assert len(window) == len(expected)


def test_it_does_not_matter_how_rows_were_cut_into_batches() -> None:
    whole, single = RollingWindow(seconds=3), RollingWindow(seconds=3)
    instants = [at * SECOND // 2 for at in range(40)]
    whole.add(batch(instants))
    for number, instant in enumerate(instants):
        single.add(batch([instant], number))
    assert whole.table().equals(single.table())


@pytest.mark.parametrize("size", [Size(seconds=10.0, rows=None), Size(seconds=None, rows=100)])
def test_what_has_left_the_window_leaves_memory(size: Size) -> None:
    window = RollingWindow(seconds=size.seconds, rows=size.rows)
    for at in range(15_000):
        window.add(batch([at * SECOND]))
    held = sum(one.num_rows for one in window._batches)
    assert held <= 2 * MERGED_ROWS + 100


def test_frames_have_the_rows_of_the_table() -> None:
    window = RollingWindow(rows=2)
    window.add(batch([1, 2, 3]))
    assert window.polars()["number"].to_list() == [1, 2]
    assert window.pandas()["number"].to_list() == [1, 2]
    assert repr(window) == "<RollingWindow 2 rows>"


def test_another_column_of_instants_may_rule() -> None:
    window = RollingWindow(seconds=1, by="ts_recv")
    rows = batch([0, 1]).append_column(
        "ts_recv", pa.array([5 * SECOND, 9 * SECOND]).cast(TIMESTAMP)
    )
    window.add(rows)
    assert numbers(window) == [1]


@pytest.mark.parametrize("size", [Size(None, None), Size(0.0, None), Size(None, 0)])
def test_a_window_without_a_size_is_refused(size: Size) -> None:
    with pytest.raises(InvalidRequestError):
        RollingWindow(seconds=size.seconds, rows=size.rows)


def test_rows_of_another_kind_are_refused() -> None:
    window = RollingWindow(rows=2)
    window.add(batch([1]))
    with pytest.raises(InvalidRequestError, match="one schema"):
        window.add(pa.record_batch({"price": [1.0]}))
    with pytest.raises(InvalidRequestError, match="ts_event"):
        RollingWindow(seconds=1).add(pa.record_batch({"price": [1.0]}))


def test_a_window_that_got_nothing_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="add a batch first"):
        RollingWindow(rows=1).table()
