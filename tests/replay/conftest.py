"""A service, a client of it, and rows that came when a test says."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

import tickflight
from flight_server.identity import Scope
from storage.schemas import DATASETS, TIMESTAMP
from tests.flight_server.conftest import House, serving

SECOND = 1_000_000
START = 1_790_000_000_000_000 // 86_400_000_000 * 86_400_000_000
"""A midnight of some weeks ago."""

_DEFAULTS: dict[str, Any] = {
    "price": 20_000.0,
    "size": 1.0,
    "side": 0,
    "kind": 0,
    "flags": 1,
    "source": "demo",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service for all tests of a module: each keeps to symbols of its own."""
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[tickflight.Client]:
    key = house.keys.create("tests", scopes=list(Scope)).key
    with tickflight.connect(house.service.uri, key) as client:
        yield client


def write(
    client: tickflight.Client,
    dataset: str,
    symbol: str,
    events: list[int],
    receipts: list[int],
    first: int = 0,
) -> None:
    """Write rows that happened and were received so many microseconds after ``START``."""
    schema = DATASETS[dataset].schema
    count = len(events)
    columns = {
        "ts_event": pa.array([START + event for event in events]).cast(TIMESTAMP),
        "ts_recv": pa.array([START + receipt for receipt in receipts]).cast(TIMESTAMP),
        "symbol": pa.array([symbol] * count),
        "contract": pa.array([symbol] * count),  # rows are told apart by it
        "sequence": pa.array(range(first, first + count), pa.int64()),
    }
    arrays = [
        columns[field.name]
        if field.name in columns
        else pa.array([_DEFAULTS.get(field.name)] * count, field.type)
        for field in schema
    ]
    with client.writer(dataset) as writer:
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
        writer.flush()
        assert writer.stats.rows_duplicate == writer.stats.rows_quarantined == 0


def instants(rows: pa.RecordBatch | pa.Table, name: str = "ts_recv") -> list[int]:
    """Return a column of instants, in µs."""
    found: list[int] = rows[name].cast(pa.int64()).to_pylist()
    return found
