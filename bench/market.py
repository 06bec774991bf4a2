"""Ticks to measure with: the full schema, six symbols mixed, every sequence once."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from storage.schemas import DICTIONARY, TICKS, TIMESTAMP, Flag

SYMBOLS: Final = ("MNQ", "NQ", "MES", "SPY", "QQQ", "VIX")
TICK_INTERVAL: Final = 100
"""Microseconds between the ticks of one producer: 10,000 ticks/s."""
BLOCK_BATCHES: Final = 256
"""Batches built at a time: one by one, building them would cost as much as sending them."""


def ticks(
    source: str, rows: int, start: int, *, symbols: int = len(SYMBOLS), seed: int = 1
) -> Iterator[pa.RecordBatch]:
    """Yield batches of ``rows`` ticks of so many symbols without end, from ``start`` (µs) on.

    Only instants and sequences differ from batch to batch: building the rest anew would measure
    the producer.
    """
    random = np.random.default_rng(seed)
    price = np.round((20_000 + np.cumsum(random.normal(0, 0.3, rows))) * 4) / 4
    template = {
        "symbol": _strings(random.integers(0, symbols, rows), SYMBOLS),
        "price": pa.array(price),
        "size": pa.array(random.integers(1, 20, rows).astype(float)),
        "bid": pa.array(price - 0.25),
        "ask": pa.array(price + 0.25),
        "side": pa.array(random.choice([-1, 1], rows).astype(np.int8)),
        "kind": pa.array(np.zeros(rows, np.int8)),
        "flags": pa.array(np.full(rows, Flag.VALID_TICK, np.uint16)),
        "exchange": _strings(random.integers(0, 8, rows), tuple("ABCDEFGH")),
        "condition": _strings(random.integers(0, 3, rows), ("", "F", "I")),
        "source": _strings(np.zeros(rows), (source,)),
    }
    contracts = [f"/{symbol}Z26:BENCH" for symbol in SYMBOLS]
    template["contract"] = pa.DictionaryArray.from_arrays(
        template["symbol"].indices, pa.array(contracts)
    )
    schema = pa.schema(
        field.with_type(DICTIONARY) if field.name in TICKS.dictionary else field
        for field in TICKS.schema
    )
    steps = np.arange(BLOCK_BATCHES * rows, dtype=np.int64) * TICK_INTERVAL
    repeated = pa.Table.from_batches(
        [pa.RecordBatch.from_pydict(template)] * BLOCK_BATCHES
    ).combine_chunks()
    block = {name: repeated[name].chunk(0) for name in template}
    while True:
        instants = _integers(start + steps, TIMESTAMP)
        changing = {
            "ts_event": instants,
            "ts_recv": instants,
            "sequence": _integers(start + steps, pa.int64()),
        }
        columns = [changing.get(name, block.get(name)) for name in schema.names]
        batches = pa.RecordBatch.from_arrays(columns, schema=schema)
        for at in range(0, len(steps), rows):
            yield batches.slice(at, rows)
        start += len(steps) * TICK_INTERVAL


def _strings(codes: np.ndarray, values: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(values))


def _integers(values: np.ndarray, data_type: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(data_type, len(values), [None, pa.py_buffer(values)])
