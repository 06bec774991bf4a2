"""Codes for low-cardinality strings: one append-only table a column."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Codes = npt.NDArray[np.int32]

NULL: Final = -1
"""Code of a missing string."""
INVALID: Final = -2
"""Code of a string that the column can't hold; its row goes to quarantine."""
VALUE_BYTES_MAX: Final = 256
"""Longest string with a code: exchange symbols and sale conditions are far shorter."""
VALUES_MAX: Final = 1 << 20
"""Most strings of a column: beyond that it is free text, and memory would grow without end."""


def is_reasonable(value: str) -> bool:
    """Whether ``value`` may have a code in any column."""
    return len(value.encode()) <= VALUE_BYTES_MAX


class Dictionary:
    """Strings of one column and their codes, in order of first appearance.

    One thread encodes; any thread reads, because codes are only ever added.
    """

    def __init__(self, accepts: Callable[[str], bool] = is_reasonable) -> None:
        self._accepts = accepts
        self._codes: dict[str, int] = {}
        self._values: list[str] = []
        self._array = pa.array([], pa.string())
        self._ranks: Codes = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Dictionary {len(self)} values>"

    def encode(self, values: pa.Array) -> Codes:
        """Return the code of each value, new ones added, with ``NULL`` appended.

        The extra last slot makes ``result[-1]`` the code of a null index.
        """
        codes = np.empty(len(values) + 1, np.int32)
        codes[-1] = NULL
        for i, value in enumerate(values.to_pylist()):
            codes[i] = NULL if value is None else self._code(value)
        return codes

    def code(self, value: str) -> int:
        """Return the code of ``value``, or ``NULL`` when it never came."""
        return self._codes.get(value, NULL)

    def value(self, code: int) -> str:
        """Return the string of a code."""
        return self._values[code]

    def values(self, start: int = 0) -> list[str]:
        """Return the strings from code ``start`` on."""
        return self._values[start:]

    def array(self) -> pa.Array:
        """Return all strings as an Arrow array; index it with codes."""
        array = self._array
        if len(array) != len(self._values):
            # Another reader may put a shorter one in its place: only our own is sure to suffice.
            array = self._array = pa.array(self._values, pa.string())
        return array

    def ranks(self) -> Codes:
        """Return each code's place when the strings are sorted by their UTF-8 bytes."""
        ranks = self._ranks
        if len(ranks) != len(self._values):
            values = list(self._values)
            ranks = np.empty(len(values), np.int32)
            ranks[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
            self._ranks = ranks  # ours is returned, as in ``array``
        return ranks

    def subset(self, codes: Codes) -> pa.DictionaryArray:
        """Return ``codes`` as a dictionary array that carries only the strings it uses."""
        used = np.zeros(len(self._values) + 1, bool)
        used[codes] = True
        used[-1] = False
        kept = np.flatnonzero(used)
        narrow = np.full(len(used), NULL, np.int32)
        narrow[kept] = np.arange(len(kept), dtype=np.int32)
        return _dictionary_array(narrow[codes], self.array().take(pa.array(kept)))

    def full(self, codes: Codes) -> pa.DictionaryArray:
        """Return ``codes`` as a dictionary array over all strings, without copying."""
        return _dictionary_array(codes, self.array())

    def _code(self, value: str) -> int:
        code = self._codes.get(value)
        if code is None:
            if len(self._values) >= VALUES_MAX or not self._accepts(value):
                return INVALID
            code = len(self._values)
            self._values.append(value)
            self._codes[value] = code
        return code


def _dictionary_array(codes: Codes, values: pa.Array) -> pa.DictionaryArray:
    if len(codes) and codes.min() < 0:
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), values)
    indices = pa.Array.from_buffers(pa.int32(), len(codes), [None, pa.py_buffer(codes)])
    return pa.DictionaryArray.from_arrays(indices, values, safe=False)
