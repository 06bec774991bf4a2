"""Taking rows at random from where they are kept, to see whether readers get them.

A record of the journal, with its checksum verified; or a file of the lake, page by page, whose rows
must hash to what was committed with it. What was taken of either is then looked for in an answer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import JournalCorruptError, JournalError, LakeCorruptError, LakeError
from storage.journal_file import Access, JournalReader, is_unfinished
from storage.journal_verify import ATTEMPTS, journal_paths
from storage.lake import layout
from storage.lake.files import LakeFile
from storage.lake.row_hash import Hashes, as_text, combine, hashes, row_hash
from storage.lake.table import LakeTable
from storage.lake.writer import verified_rows
from storage.published import Published
from storage.runs import Mask
from storage.schemas import DATASETS, Flag
from storage.segment_rows import record_rows
from storage.synthetic import real_symbols

SAMPLE_ROWS: Final = 200
"""Rows of one look, next to each other: an answer that has them is short."""
PAUSE_SECONDS: Final = 0.02
"""Between pieces of a file, so that a reader who waits for the interpreter never waits for two."""

Pause = Callable[[], None]


class CheckKind(StrEnum):
    """What was compared."""

    JOURNAL = "journal"
    """Rows of the journal, with those that readers get."""
    REREAD = "reread"
    """Rows of a file of the lake, with what was committed and with those that readers get."""
    CROSS_SOURCE = "cross_source"
    """Rows, with what somebody independent has counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        dataset: Whose rows were looked at.
        kind: What was compared.
        checked: How many rows.
        passed: How many of them are as they should be.
        detail: Where was looked, and what is wrong with those that are not.
        symbol: The one symbol of the rows; None is any.
    """

    dataset: str
    kind: CheckKind
    checked: int
    passed: int
    detail: str
    symbol: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows that lie next to each other, and that readers must get.

    Attributes:
        dataset: Whose they are.
        kind: Where they are from.
        where: The same for people: file and place in it.
        symbol: Their one symbol; None is rows without one.
        source: Their one source; None where the dataset has none.
        start: ``ts_event`` of the first, µs.
        end: Instant after the last, µs.
        hashes: Of each row.
    """

    dataset: str
    kind: CheckKind
    where: str
    symbol: str | None
    source: str | None
    start: int
    end: int
    hashes: Hashes

    def compared(self, answer: Iterable[pa.RecordBatch]) -> Finding:
        """Look for the rows in an answer that should have them, and may have more."""
        missing = Counter(self.hashes.tolist())
        for batch in answer:
            found = hashes(batch, DATASETS[self.dataset])
            missing -= Counter(found[np.isin(found, self.hashes)].tolist())
        wrong, rows = missing.total(), len(self.hashes)
        detail = f"{self.where}, {rows:,} rows from {_text(self.start)} to {_text(self.end)}"
        if wrong:
            detail += f": readers don't get {wrong:,} of them"
        return Finding(self.dataset, self.kind, rows, rows - wrong, detail, self.symbol)


def random_record(directory: Path, chance: Random) -> tuple[Path, int] | None:
    """Return a file of the journal and the number of one of its records, None without any.

    Raises:
        JournalError: The journal can't be read.
    """
    paths = journal_paths(directory)
    if not paths:
        return None
    path = chance.choice(paths)
    try:
        if path == paths[-1] and is_unfinished(path, Access.BESIDE):
            return None  # it is just being made
        last, _ = JournalReader(path, Access.BESIDE).newest()
    except JournalError:
        return path, 1  # which will tell what is wrong
    return (path, chance.randint(1, last)) if last else None


def record_sample(
    path: Path, number: int, tables: Mapping[str, LakeTable], chance: Random, pause: Pause
) -> Sample | Finding | None:
    """Take rows of one record of the journal; what is wrong with it is a finding.

    Args:
        path: The file; one that is gone has no rows.
        number: Of the record.
        tables: Of the lake: they tell whose synthetic rows are left behind.
        chance: Chooses.
        pause: Called before a record that looks damaged is read again.

    Raises:
        JournalError: The file can't be read now.
    """
    for attempt in range(ATTEMPTS):
        try:
            reader = JournalReader(path, Access.BESIDE)
            record = reader.record(number)
            rows = record_rows(reader, record)
        except JournalError as error:
            if not path.exists():
                return None
            if not isinstance(error, JournalCorruptError):
                raise
            # One that is being written may look damaged for a moment.
            if attempt + 1 == ATTEMPTS:
                detail = f"{_named(error, path.parent)}; run `tickflightd journal verify`"
                return Finding("journal", CheckKind.JOURNAL, 1, 0, detail)
            pause()
        else:
            left_behind = real_symbols(tables).get(record.dataset, ())
            if left_behind:
                rows = rows.filter(pa.array(~_left_behind(rows, left_behind)))
            where = f"{path.name}, record {number}"
            return _sample(rows, record.dataset, CheckKind.JOURNAL, where, chance)
    return None


def random_file(published: Published, chance: Random) -> tuple[str, LakeFile] | None:
    """Return a dataset and one of its files of the lake, None without any."""
    files = [(name, file) for name, index in published.lake.items() for file in index]
    return chance.choice(files) if files else None


def file_sample(
    table: LakeTable, file: LakeFile, chance: Random, pause: Pause
) -> Sample | Finding | None:
    """Read one file of a table whole and take rows of it; what is wrong with it is a finding.

    Args:
        table: Whose it is.
        file: The file; one that was joined with others, or dropped, has no rows.
        chance: Chooses.
        pause: Called between row groups.

    Raises:
        LakeError: The file can't be read now.
    """
    path = table.root / file.path
    try:
        rows = _verified(table, file, chance.randrange(file.rows), pause)
    except LakeError as error:
        if file not in set(table.index):
            return None
        if not isinstance(error, LakeCorruptError) and path.exists():
            raise
        detail = f"{_named(error, table.root)}; run `tickflightd lake verify`"
        return Finding(table.dataset.name, CheckKind.REREAD, file.rows, 0, detail, file.symbol)
    if file not in set(table.index):
        return None
    return _sample(rows, table.dataset.name, CheckKind.REREAD, file.path, chance)


def _verified(table: LakeTable, file: LakeFile, wanted: int, pause: Pause) -> pa.Table:
    """Return the row group of a file that has one of its rows, once all of it is as committed."""
    dataset, path = table.dataset, table.root / file.path
    found, seen, taken = 0, 0, dataset.wire_schema.empty_table()
    for group in verified_rows(path, dataset):
        found = combine((found, row_hash(group, dataset, file.symbol)))
        if seen <= wanted < seen + group.num_rows:
            taken = layout.from_lake(group, dataset, file.symbol)
        seen += group.num_rows
        pause()
    meant = table.ledger().get(file.path)
    if meant is not None and found != meant.row_hash:
        detail = f"rows hash to {as_text(found)}, not to {as_text(meant.row_hash)}"
        raise LakeCorruptError(path, detail)
    return taken


def _sample(
    rows: pa.Table, dataset: str, kind: CheckKind, where: str, chance: Random
) -> Sample | None:
    """Take rows of one symbol and source that lie next to each other in time."""
    if not rows.num_rows:
        return None
    at = chance.randrange(rows.num_rows)
    whose: dict[str, str | None] = {"symbol": None, "source": None}
    for name in whose:
        if name in rows.schema.names:
            value = whose[name] = rows[name][at].as_py()
            same = pc.is_null(rows[name]) if value is None else pc.equal(rows[name], value)
            at = pc.sum(same.slice(0, at)).as_py() or 0
            rows = rows.filter(same)
    rows = rows.take(pc.sort_indices(rows["ts_event"]))
    first = chance.randrange(max(1, rows.num_rows - SAMPLE_ROWS + 1))
    taken = rows.slice(first, SAMPLE_ROWS)
    instants = taken["ts_event"].cast(pa.int64())
    return Sample(
        dataset,
        kind,
        where,
        whose["symbol"],
        whose["source"],
        instants[0].as_py(),
        instants[-1].as_py() + 1,
        hashes(taken, DATASETS[dataset]),
    )


def _left_behind(rows: pa.Table, symbols: Iterable[str]) -> Mask:
    synthetic = (rows["flags"].to_numpy() & Flag.SYNTHETIC) != 0
    real = pc.is_in(rows["symbol"].cast(pa.string()), pa.array(symbols, pa.string()))
    left_behind: Mask = synthetic & real.to_numpy()
    return left_behind


def _named(error: Exception, root: Path) -> str:
    """Return what is wrong, with the name of the file and without the machine's directories."""
    return str(error).replace(f"{root}/", "")


def _text(instant: int) -> str:
    text: str = pa.scalar(instant, pa.timestamp("us", "UTC")).cast(pa.string()).as_py()
    return text
