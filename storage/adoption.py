"""What the coverage ledger learns at start from rows that have left memory in earlier lives."""

from typing import Final

import pyarrow as pa

from storage.lake.view import Lake
from storage.ledger import CoverageLedger
from storage.published import Published
from storage.schemas import GAPS, QUARANTINE, SPOT_CHECKS

_COLUMNS: Final = {
    GAPS: tuple(GAPS.schema.names),
    QUARANTINE: ("dataset", "symbol"),  # the ledger counts; payloads may be large
    SPOT_CHECKS: tuple(SPOT_CHECKS.schema.names),
}
ROWS_A_TIME: Final = 1 << 16
"""Rows turned into what the ledger keeps at a time, which takes some hundred bytes a row."""
_FOREVER: Final = 1 << 62


def adopt_from_lake(ledger: CoverageLedger, lake: Lake, published: Published) -> None:
    """Have a ledger read the gaps, rejects and checks that are in the lake alone.

    Raises:
        LakeError: A file can't be read. Without it, nobody could say what is complete.
    """
    for dataset, names in _COLUMNS.items():
        files = lake.view(dataset, published.lake[dataset.name])
        for stream in files.mixed_streams(None, None, -_FOREVER, _FOREVER):
            for batch in stream.open(names, ROWS_A_TIME):
                ledger.adopt(dataset.name, pa.Table.from_batches([batch]))
