"""A model that knows nothing of where its rows come from: live or a replay, it says the same.

It looks at the last half minute of a symbol, once a second of the market's own time, and says when
the price has run away from its mean with the order flow behind it. Not advice: an example of
features that depend on rows alone, not on how they were cut into batches or on any other clock.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tickflight import RollingWindow

COLUMNS = ["ts_event", "symbol", "price", "size", "side"]
WINDOW_SECONDS = 30.0
ROWS_MIN = 50
DEVIATIONS = 1.5


@dataclass(frozen=True)
class Signal:
    """What the model says, and why."""

    second: int
    symbol: str
    side: str
    deviations: float
    flow: float

    def __str__(self) -> str:
        why = f"{self.deviations:+.3f} deviations, flow {self.flow:+.3f}"
        return f"{self.second} {self.symbol} {self.side}: {why}"


class Momentum:
    """The model, for one symbol; it speaks from so many standard deviations on."""

    def __init__(self, symbol: str, deviations: float = DEVIATIONS) -> None:
        self._symbol = symbol
        self._deviations = deviations
        self._window = RollingWindow(seconds=WINDOW_SECONDS)
        self._second = 0

    def add(self, rows: pa.RecordBatch) -> Iterator[Signal]:
        """Take the next rows; yields what there is to say of each second that is over."""
        for second, part in by_second(rows):
            if second > self._second:
                yield from self._decide()
                self._second = second
            self._window.add(part)  # rows that come late count, but the past is not judged again

    def _decide(self) -> Iterator[Signal]:
        if not self._second:
            return
        rows = self._window.table()
        if rows.num_rows < ROWS_MIN:
            return
        price, size = rows["price"], rows["size"]
        spread = pc.stddev(price).as_py()
        if not spread:
            return
        deviations = (price[-1].as_py() - pc.mean(price).as_py()) / spread
        flow = pc.sum(pc.multiply(size, rows["side"])).as_py() / pc.sum(size).as_py()
        if abs(deviations) >= self._deviations and deviations * flow > 0:
            side = "buy" if deviations > 0 else "sell"
            yield Signal(self._second, self._symbol, side, deviations, flow)


def by_second(rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut rows where the second of their ts_event changes."""
    seconds = pc.floor_temporal(rows["ts_event"], unit="second").cast(pa.int64()).to_pylist()
    start = 0
    for at in range(1, len(seconds) + 1):
        if at == len(seconds) or seconds[at] != seconds[start]:
            yield seconds[start] // 1_000_000, rows.slice(start, at - start)
            start = at


def run(stream: Iterable[pa.RecordBatch], model: Momentum) -> None:
    """Feed a model from any stream of batches, and print what it says."""
    for rows in stream:
        for signal in model.add(rows):
            print(signal, flush=True)
