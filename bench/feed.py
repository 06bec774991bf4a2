"""A feed, a process of its own: sends small batches at a steady rate, each with the time it left.

``ts_recv`` of every row is the moment its batch was handed to Flight, so whoever gets it on the
same machine knows how long it took.
"""

import argparse
import threading
import time
from itertools import count

import pyarrow as pa
import pyarrow.flight as flight

from bench.market import ticks
from storage.schemas import TIMESTAMP


def main() -> None:
    """Send as the command line says until the time is over; the key comes on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    options = flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + input().encode())])
    batches = ticks("feed", args.rows, time.time_ns() // 1_000)
    first = next(batches)
    writer, reader = flight.connect(args.uri).do_put(
        flight.FlightDescriptor.for_path("ticks"), first.schema, options
    )
    acks = threading.Thread(target=_drain, args=(reader,))
    acks.start()
    at = first.schema.get_field_index("ts_recv")
    began = time.perf_counter()
    for number, batch in zip(count(1), batches, strict=False):
        due = began + number * args.rows / args.rate
        if due >= began + args.seconds:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        now = pa.repeat(pa.scalar(time.time_ns() // 1_000, TIMESTAMP), args.rows)
        stamped = batch.set_column(at, batch.schema.field(at), now)
        writer.write_with_metadata(stamped, b'{"producer":"feed","seq":%d}' % number)
    writer.done_writing()
    acks.join()
    writer.close()


def _drain(reader: flight.FlightMetadataReader) -> None:
    while reader.read() is not None:
        pass


if __name__ == "__main__":
    main()
