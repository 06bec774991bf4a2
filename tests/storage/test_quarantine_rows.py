"""Impossible rows as they are put aside."""

import json

import numpy as np
import pyarrow as pa

from storage.quarantine import set_aside
from storage.schemas import GAPS, TICKS
from storage.validation import Rejected


def test_a_null_in_a_column_that_promised_none_is_put_aside() -> None:
    schema = pa.schema([pa.field("symbol", pa.string(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array([None], pa.string())], schema=schema)
    rejected = [Rejected(np.array([0]), "symbol is missing")]
    rows = set_aside(TICKS, batch, rejected, 5).to_pylist()
    assert [(row["reason"], json.loads(row["payload"])) for row in rows] == [
        ("symbol is missing", {"symbol": None})
    ]


def test_a_row_with_several_faults_is_put_aside_once_with_the_first() -> None:
    batch = pa.RecordBatch.from_pydict({"symbol": ["?", "SPY"], "reason": ["x", "y"]})
    rejected = [Rejected(np.array([0]), "first"), Rejected(np.array([0, 1]), "second")]
    rows = set_aside(GAPS, batch, rejected, 5).to_pylist()
    assert [(row["symbol"], row["reason"]) for row in rows] == [(None, "first"), ("SPY", "second")]


def test_text_in_any_encoding_can_be_put_aside() -> None:
    for kind in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        batch = pa.RecordBatch.from_pydict({"symbol": pa.array(["?", "SPY"]).cast(kind)})
        rows = set_aside(TICKS, batch, [Rejected(np.array([1]), "odd")], 5).to_pylist()
        assert [row["symbol"] for row in rows] == ["SPY"]
