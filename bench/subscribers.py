"""Subscribers of one stream, all in a process of their own: how late rows are, and if all came."""

import argparse
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from bench.market import TICK_INTERVAL

WARM_UP_SECONDS = 2.0


@dataclass
class Subscriber:
    """One of them: how late each row was (µs), and the sequences it saw."""

    stream: flight.FlightStreamReader
    late: list[npt.NDArray[np.int64]] = field(default_factory=list)
    rows: int = 0
    first: int = 0
    last: int = 0

    def read(self, begins: float) -> None:
        """Read until the stream is cancelled; what comes before ``begins`` is not measured."""
        try:
            for chunk in self.stream:
                now = time.time_ns() // 1_000
                batch = chunk.data
                if batch is None or not batch.num_rows or time.perf_counter() < begins:
                    continue
                sequences = batch.column("sequence").to_numpy()
                self.first = self.first or int(sequences[0])
                self.last = int(sequences[-1])
                self.rows += batch.num_rows
                self.late.append(now - batch.column("ts_recv").cast(pa.int64()).to_numpy())
        except flight.FlightError:
            pass

    @property
    def lost(self) -> int:
        """How many rows did not come."""
        return (self.last - self.first) // TICK_INTERVAL + 1 - self.rows if self.rows else 0


def main() -> None:
    """Subscribe as the command line says; the key comes on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    options = flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + input().encode())])
    pa.array([0]).to_numpy()  # imports pandas the first time, which takes a second
    # A connection each: they stand for as many programs.
    clients = [flight.connect(args.uri) for _ in range(args.count)]
    ticket = flight.Ticket(b'{"op": "live", "dataset": "ticks"}')
    subscribers = [Subscriber(client.do_get(ticket, options)) for client in clients]
    begins = time.perf_counter() + WARM_UP_SECONDS
    threads = [threading.Thread(target=one.read, args=(begins,)) for one in subscribers]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_SECONDS + args.seconds)
    for one in subscribers:
        one.stream.cancel()
    for thread in threads:
        thread.join()
    print(json.dumps(_summary(subscribers)), flush=True)


def _summary(subscribers: Sequence[Subscriber]) -> dict[str, float]:
    late = np.concatenate([part for one in subscribers for part in one.late]) / 1_000
    p50, p99 = np.percentile(late, (50, 99)).tolist()
    return {
        "p50": p50,
        "p99": p99,
        "max": float(late.max()),
        "rows": min(one.rows for one in subscribers),
        "batches": sum(len(one.late) for one in subscribers) / len(subscribers),
        "lost": sum(one.lost for one in subscribers),
    }


if __name__ == "__main__":
    main()
