"""Where prices are at a moment: a few shared factors, each a sum of swings and of rough noise.

A factor is a pure function of (seed, name, time). Slow sines keep it near its level for years;
value noise at periods four apart, each with an amplitude in proportion to the root of its period,
gives it the look of a random walk below a day. Instruments mix the market's factor with their own,
so that MES moves with SPY and VIX against both.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ingest.demo import noise
from ingest.demo.instruments import Instrument

NODE_US: Final = 100_000
"""Factors are computed at these steps and drawn straight between: ten times cheaper at 100,000
ticks a second, and shorter than the quickest octave's 400 ms."""

_SECOND_US: Final = 1_000_000
_DAY_SECONDS: Final = 86_400.0
_DAILY_MOVE: Final = 0.02  # how far noise of a one-day period carries a factor, peak to peak
_OCTAVE_PERIODS_US: Final = np.array(
    [round(0.4 * _SECOND_US * 4**octave) for octave in range(10)], np.int64
)[:, None]
_OCTAVE_AMPLITUDES: Final = _DAILY_MOVE * np.sqrt(_OCTAVE_PERIODS_US / _SECOND_US / _DAY_SECONDS)
_SWING_PERIODS_US: Final = np.array(
    [round(days * _DAY_SECONDS * _SECOND_US) for days in (3.1, 8.7, 23.3, 71.9)], np.int64
)[:, None]
_SWING_AMPLITUDES: Final = np.array([0.004, 0.006, 0.009, 0.012])[:, None]
_MARKET: Final = "market"


class PriceField:
    """Unrounded prices of a list of instruments at any time.

    Args:
        seed: Another seed is another market.
        instruments: Row ``i`` of every answer is the ``i``-th of these.
    """

    def __init__(self, seed: int, instruments: Sequence[Instrument]) -> None:
        factors = [_MARKET, *sorted({item.factor for item in instruments})]
        octaves = range(len(_OCTAVE_PERIODS_US))
        swings = range(len(_SWING_PERIODS_US))
        self._octave_keys = np.array(
            [[[noise.key(seed, name, "octave", str(i))] for i in octaves] for name in factors],
            np.uint64,
        )
        phase_keys = np.array(
            [[[noise.key(seed, name, "swing", str(i))] for i in swings] for name in factors],
            np.uint64,
        )
        self._phases = noise.unit(phase_keys) * 2 * np.pi
        self._levels = np.array([[item.level] for item in instruments])
        self._exposures = np.zeros((len(instruments), len(factors)))
        for row, item in enumerate(instruments):
            self._exposures[row, 0] = item.beta
            self._exposures[row, factors.index(item.factor)] = item.own

    def at(self, rows: NDArray[np.int64], instants: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the price of instrument ``rows[i]`` at ``instants[i]`` (µs since 1970)."""
        if not len(instants):
            return np.empty(0)
        first = int(instants.min()) // NODE_US
        last = int(instants.max()) // NODE_US + 1
        nodes = self._nodes(np.arange(first, last + 1))
        node, rest = np.divmod(instants - first * NODE_US, NODE_US)
        left = nodes[rows, node]
        price: NDArray[np.float64] = left + (nodes[rows, node + 1] - left) * (rest / NODE_US)
        return price

    def _nodes(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Prices at the steps ``index``: one row an instrument."""
        instants = index * NODE_US
        factors = self._rough(instants) + self._swing(instants)
        prices: NDArray[np.float64] = self._levels * np.exp(self._exposures @ factors)
        return prices

    def _rough(self, instants: NDArray[np.int64]) -> NDArray[np.float64]:
        cell, rest = np.divmod(instants, _OCTAVE_PERIODS_US)
        fraction = rest / _OCTAVE_PERIODS_US
        eased = fraction * fraction * (3 - 2 * fraction)
        left = noise.unit(noise.bits(self._octave_keys, cell))
        right = noise.unit(noise.bits(self._octave_keys, cell + 1))
        summed: NDArray[np.float64] = (
            (left + (right - left) * eased - 0.5) * _OCTAVE_AMPLITUDES
        ).sum(axis=1)
        return summed

    def _swing(self, instants: NDArray[np.int64]) -> NDArray[np.float64]:
        turns = (instants % _SWING_PERIODS_US) / _SWING_PERIODS_US
        swings = np.sin(turns * (2 * np.pi) + self._phases) * _SWING_AMPLITUDES
        summed: NDArray[np.float64] = swings.sum(axis=1)
        return summed
