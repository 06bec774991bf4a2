"""Growing arrays, and the sets that tell a repeat from a new row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.runs import BLOCK_ROWS, GrowingArray, SequenceSet

SEQUENCES = st.lists(st.integers(-40, 40) | st.sampled_from([-(1 << 63), (1 << 63) - 1]))


def admitted(known: SequenceSet, sequences: list[int]) -> list[bool]:
    new = known.admit(np.array(sequences, np.int64))
    return [True] * len(sequences) if new is None else new.tolist()


@given(st.lists(SEQUENCES.filter(bool)))
def test_a_sequence_set_says_what_a_set_of_python_says(batches: list[list[int]]) -> None:
    known, model = SequenceSet(), set[int]()
    for batch in batches:
        expected = []
        for sequence in batch:
            expected.append(sequence not in model)
            model.add(sequence)
        assert admitted(known, batch) == expected


def test_the_first_of_several_equal_sequences_is_the_new_one() -> None:
    assert admitted(SequenceSet(), [5, 5, 4, 5, 4]) == [True, False, True, False, False]


def test_the_newest_half_is_always_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceSet, "REMEMBERED_MAX", 8)
    known = SequenceSet()
    for sequence in range(100):
        assert admitted(known, [sequence]) == [True]
        newest = list(range(max(0, sequence - 3), sequence + 1))
        assert not any(admitted(known, newest))


def test_late_sequences_are_forgotten_lowest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceSet, "REMEMBERED_MAX", 8)
    known = SequenceSet()
    admitted(known, [1000])
    admitted(known, list(range(9)))
    assert admitted(known, [8, 7, 6]) == [False] * 3
    assert admitted(known, [0]) == [True]


def test_repeats_are_found_across_blocks() -> None:
    known = SequenceSet()
    count = 2 * BLOCK_ROWS + 10
    assert known.admit(np.arange(count)) is None
    edges = [0, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS, count - 1]
    assert not any(admitted(known, edges))
    assert admitted(known, [count - 1, count]) == [False, True]


@given(st.lists(st.integers(0, 3 * BLOCK_ROWS // 2), max_size=4), st.data())
def test_a_growing_array_is_its_parts_one_after_another(
    lengths: list[int], data: st.DataObject
) -> None:
    grown, whole = GrowingArray(), np.arange(sum(lengths))
    at = 0
    for length in lengths:
        grown.extend(whole[at : at + length])
        at += length
    start = data.draw(st.integers(0, at))
    stop = data.draw(st.integers(start, at))
    assert grown.length == at
    assert (grown.slice(start, stop) == whole[start:stop]).all()
    assert grown.slice(start, stop).size == stop - start
    if at:
        assert grown[at - 1] == at - 1


def test_a_slice_once_taken_never_changes() -> None:
    grown = GrowingArray()
    grown.extend(np.arange(10))
    before = grown.slice(0, 10)
    grown.extend(np.arange(BLOCK_ROWS))
    assert before.tolist() == list(range(10))


def test_an_array_counts_the_bytes_it_fills_not_those_it_may_grow_into() -> None:
    """A block is address space until it is written to; thousands of quiet feeds cost little."""
    grown = GrowingArray()
    grown.extend(np.arange(3))
    assert grown.nbytes == 24
