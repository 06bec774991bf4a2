"""One producer, a process of its own: sends ticks with marks, and counts what is acknowledged."""

import argparse
import json
import math
import threading
import time
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np
import pyarrow.flight as flight

from bench.market import SYMBOLS, ticks

WINDOW_ROWS = 256_000
"""Rows in flight: what a producer sends before it waits for acks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When to stop, how fast to go, how many symbols to mix, and when the first tick was, µs."""

    seconds: float
    count: float
    rate: float | None
    symbols: int
    start: int


@dataclass(frozen=True, slots=True)
class Produced:
    """What one producer saw; latencies from writing a batch to its durable ack."""

    rows: int
    seconds: float
    ack_ms_p50: float
    ack_ms_p99: float


class Producer:
    """Writes batches for a while, as fast as the window allows or at a steady rate."""

    def __init__(self, uri: str, key: str, name: str) -> None:
        self._name = name
        self._options = flight.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {key}".encode())]
        )
        self._client = flight.connect(uri)
        self._changed = threading.Condition()
        self._acked_rows = 0
        self._acked_seq = 0
        self._sent_at: dict[int, float] = {}
        self._latencies: list[float] = []

    def run(self, rows: int, plan: Plan) -> Produced:
        """Send batches of ``rows``; return once the last is acknowledged."""
        batches = ticks(self._name, rows, plan.start, symbols=plan.symbols)
        first = next(batches)
        writer, reader = self._client.do_put(
            flight.FlightDescriptor.for_path("ticks"), first.schema, self._options
        )
        acks = threading.Thread(target=self._read_acks, args=(reader,))
        acks.start()
        began = time.perf_counter()
        sent = 0
        for seq, batch in zip(count(1), batches, strict=False):
            now = time.perf_counter()
            if now - began >= plan.seconds or sent >= plan.count:
                break
            with self._changed:
                while sent - self._acked_rows > WINDOW_ROWS:
                    self._changed.wait()
                self._sent_at[seq] = time.perf_counter()
            writer.write_with_metadata(
                batch, b'{"producer":"%b","seq":%d}' % (self._name.encode(), seq)
            )
            sent += rows
            if plan.rate is not None:
                time.sleep(max(0.0, began + sent / plan.rate - time.perf_counter()))
        writer.done_writing()
        acks.join()
        writer.close()
        took = time.perf_counter() - began
        p50, p99 = np.percentile(np.array(self._latencies) * 1000, (50, 99)).tolist()
        return Produced(self._acked_rows, took, p50, p99)

    def _read_acks(self, reader: flight.FlightMetadataReader) -> None:
        while (message := reader.read()) is not None:
            ack = json.loads(message.to_pybytes())
            now = time.perf_counter()
            with self._changed:
                for seq in range(self._acked_seq + 1, ack["seq"] + 1):
                    self._latencies.append(now - self._sent_at.pop(seq))
                self._acked_seq = ack["seq"]
                self._acked_rows += ack["rows"]
                self._changed.notify_all()


def main() -> None:
    """Produce as the command line says; the key comes on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("name")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--count", type=float, default=math.inf)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--symbols", type=int, default=len(SYMBOLS))
    parser.add_argument("--start", type=int, default=time.time_ns() // 1000)
    args = parser.parse_args()
    producer = Producer(args.uri, input().strip(), args.name)
    plan = Plan(args.seconds, args.count, args.rate, args.symbols, args.start)
    print(json.dumps(asdict(producer.run(args.rows, plan))), flush=True)


if __name__ == "__main__":
    main()
