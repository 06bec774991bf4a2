"""Who else has counted: imported files, whose records are numbered from first to last.

The import counts the records of a file while it reads it; the store knows nothing of that count.
Each row carries the number of its file and of its record in ``sequence``. So once an import is
complete, the rows of the store that carry the file's number are counted, and those of the
quarantine: where both together are as many as the file has, every record of it came in.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from flight_server.files import ImportedFile
from storage.schemas import DATASETS, QUARANTINE
from storage.selection import ALL_SOURCES, Selection
from storage.snapshot import Snapshot
from storage.spot_checks import CheckKind, Finding, Pause
from storage.where import Where

ROW_BITS: Final = 32
"""Bits of ``sequence`` that number the record; the file's number lies above."""
_FOREVER: Final = 1 << 62
_COLUMNS: Final = ("ts_event", "source")


def check_file(snapshot: Snapshot, file: ImportedFile, pause: Pause) -> Finding | None:
    """Count the rows of a file that was imported whole; None where they carry no number.

    Args:
        snapshot: Where the rows are.
        file: The file.
        pause: Called between blocks of rows.
    """
    symbol = file.options.get("symbol")
    if not isinstance(symbol, str) or "sequence" not in DATASETS[file.dataset].schema.names:
        return None
    rows = _rows(snapshot, file, symbol, pause)
    count = rows.num_rows
    aside = _put_aside(snapshot, file, symbol) if count != file.rows else 0
    expected = file.rows - aside
    detail: dict[str, Any] = {"file": file.number, "name": file.name, "rows": file.rows}
    if aside:
        detail["quarantined"] = aside
    sources = rows["source"].unique().to_pylist()
    if len(sources) == 1:
        reach = pc.min_max(rows["ts_event"].cast(pa.int64())).as_py()
        detail |= {"source": sources[0], "start": reach["min"], "end": reach["max"] + 1}
    if count != expected:
        detail["wrong"] = f"the file has {expected:,} rows beside them, the store {count:,}"
    passed = expected if count == expected else max(0, min(count, expected - 1))
    return Finding(
        file.dataset, CheckKind.CROSS_SOURCE, expected, passed, json.dumps(detail), symbol
    )


def _rows(snapshot: Snapshot, file: ImportedFile, symbol: str, pause: Pause) -> pa.Table:
    first, after = file.number << ROW_BITS, (file.number + 1) << ROW_BITS
    where = Where.parse(f"sequence >= {first} and sequence < {after}", DATASETS[file.dataset])
    selection = Selection(symbols=(symbol,), columns=_COLUMNS, source=ALL_SOURCES)
    answer = snapshot.range(file.dataset, selection, 0, _FOREVER, where=where)
    batches = []
    for batch in answer.batches:
        batches.append(batch)
        pause()
    return pa.Table.from_batches(batches, answer.schema).unify_dictionaries()


def _put_aside(snapshot: Snapshot, file: ImportedFile, symbol: str) -> int:
    """Count the rows of a file that are in quarantine."""
    selection = Selection(symbols=(symbol,), columns=("dataset", "payload"))
    counts: Counter[tuple[str, int]] = Counter()
    for batch in snapshot.range(QUARANTINE.name, selection, 0, _FOREVER).batches:
        counts.update(
            (row["dataset"], _number(json.loads(row["payload"]))) for row in batch.to_pylist()
        )
    return counts[file.dataset, file.number]


def _number(payload: Mapping[str, Any]) -> int:
    sequence = payload.get("sequence")
    return sequence >> ROW_BITS if isinstance(sequence, int) else -1
