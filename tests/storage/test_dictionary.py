"""Codes for strings."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from storage.dictionary import INVALID, NULL, VALUE_BYTES_MAX, Dictionary

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def encoded(*values: str | None) -> tuple[Dictionary, np.ndarray[Any, Any]]:
    dictionary = Dictionary()
    return dictionary, dictionary.encode(pa.array(values, pa.string()))[:-1]


@given(st.lists(TEXT | st.none()))
def test_what_is_encoded_reads_back(values: list[str | None]) -> None:
    dictionary, codes = encoded(*values)
    assert dictionary.full(codes).to_pylist() == values
    assert dictionary.subset(codes).to_pylist() == values


@given(st.lists(TEXT | st.none()), st.lists(TEXT | st.none()))
def test_a_subset_holds_the_strings_it_uses_and_no_others(
    values: list[str | None], others: list[str | None]
) -> None:
    dictionary, codes = encoded(*values, *others)
    subset = dictionary.subset(codes[: len(values)])
    assert set(subset.dictionary.to_pylist()) == {v for v in values if v is not None}
    subset.validate(full=True)


@given(st.lists(TEXT, unique=True))
def test_ranks_sort_as_utf8_bytes_do(values: list[str]) -> None:
    dictionary, _ = encoded(*values)
    ranks = dictionary.ranks()
    by_rank = [dictionary.value(int(code)) for code in np.argsort(ranks)]
    assert by_rank == sorted(values, key=str.encode)


def test_codes_count_up_in_order_of_appearance() -> None:
    dictionary, codes = encoded("b", "a", None, "b")
    assert codes.tolist() == [0, 1, NULL, 0]
    assert dictionary.values() == ["b", "a"]
    assert dictionary.values(1) == ["a"]
    assert (dictionary.code("a"), dictionary.code("z")) == (1, NULL)


def test_the_slot_after_the_last_is_the_code_of_null() -> None:
    assert Dictionary().encode(pa.array(["x"]))[-1] == NULL


def test_a_string_too_long_has_no_code() -> None:
    longest, longer = "é" * (VALUE_BYTES_MAX // 2), "é" * (VALUE_BYTES_MAX // 2) + "x"
    dictionary, codes = encoded(longest, longer)
    assert codes.tolist() == [0, INVALID]
    assert len(dictionary) == 1


def test_a_reader_keeps_what_it_has_made_when_a_slower_one_puts_less_in_its_place() -> None:
    class Overtaken(Dictionary):
        """Whoever caches something finds it replaced by what another reader made before."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, slower.get(name, value))

    slower: dict[str, object] = {}
    dictionary = Overtaken()
    codes = dictionary.encode(pa.array(["a", "b"]))[:-1]
    slower.update(_array=pa.array(["a"]), _ranks=np.zeros(1, np.int32))
    assert dictionary.array().to_pylist() == ["a", "b"]
    assert dictionary.ranks().tolist() == [0, 1]
    assert dictionary.full(codes).to_pylist() == ["a", "b"]
