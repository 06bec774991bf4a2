"""Counter-based noise: a value is a hash of (key, counter), so any point costs the same.

Nothing here has state. A generator that steps could not say what the market was at noon without
having lived through the morning; a hash can.
"""

from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_MANTISSA_BITS: Final = 53


def key(seed: int, *labels: str) -> int:
    """Return the 64-bit key of the noise stream named by ``labels``."""
    text = "\0".join((str(seed), *labels)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def bits(keys: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each (key, counter): splitmix64, element by element.

    Args:
        keys: Streams, broadcast against ``counters``.
        counters: Which value of the stream.
    """
    state = keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def unit(random_bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the bits as numbers in [0, 1)."""
    shift = np.uint64(64 - _MANTISSA_BITS)
    fractions: NDArray[np.float64] = (random_bits >> shift).astype(np.float64)
    return fractions * 2.0**-_MANTISSA_BITS


def field(random_bits: NDArray[np.uint64], offset: int, width: int) -> NDArray[np.int64]:
    """Cut ``width`` bits at ``offset`` out of each value: one hash feeds several small choices."""
    mask = np.uint64((1 << width) - 1)
    return ((random_bits >> np.uint64(offset)) & mask).astype(np.int64)
