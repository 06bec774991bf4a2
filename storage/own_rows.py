"""Rows that the store tells of itself: through the one door, as those of everybody else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

from storage.lake.layout import FilePath, first_day
from storage.lake.row_hash import as_text, combine
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.producers import AppendStream
from storage.schemas import SEGMENTS, SERVICE_EVENTS, Dataset

PRODUCER_PREFIX: Final = "tickflightd:lake."
"""Begins the names of the producers of ``segments``, one a dataset; its batches are the parts."""

OpenStream = Callable[[str, pa.Schema], AppendStream]
CloseStream = Callable[[AppendStream], None]


class OwnRows:
    """Appends rows of ``segments`` and ``service_events``.

    Args:
        open_stream: As ``Store.open_stream``.
        close_stream: As ``Store.close_stream``.
        durable: Returns the newest durable batch of a producer.
        now: Returns the present instant, µs.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        close_stream: CloseStream,
        durable: Callable[[str], int],
        now: Callable[[], int],
    ) -> None:
        self._open = open_stream
        self._close = close_stream
        self._durable = durable
        self._now = now

    def tell_parts(self, table: LakeTable) -> None:
        """Tell of every part of a table that is not known to be told.

        Exactly once, whatever happens in between: a part is the producer's batch of its number,
        and a batch that is on its way to the journal is not taken again.
        Parts of the ledger itself are not told, or there would be no end of it.
        """
        name = table.dataset.name
        if name == SEGMENTS.name:
            return
        producer = PRODUCER_PREFIX + name
        for record in table.parts(after=self._durable(producer)):
            rows = _ledger_rows(table.dataset, record.part, record.files, self._now())
            self._append(SEGMENTS, rows, producer, record.part)

    def tell_event(self, service: str, level: str, event: str, detail: str) -> None:
        """Tell of something that happened to a part of the service."""
        row = {"service": service, "level": level, "event": event, "detail": detail}
        self._append(SERVICE_EVENTS, _batch(SERVICE_EVENTS, [row], self._now()), None, 0)

    def _append(
        self, dataset: Dataset, rows: pa.RecordBatch, producer: str | None, seq: int
    ) -> None:
        stream = self._open(dataset.name, dataset.schema)
        try:
            stream.push(rows, producer, seq)
        finally:
            self._close(stream)


def _ledger_rows(
    dataset: Dataset, part: int, files: Iterable[WrittenFile], now: int
) -> pa.RecordBatch:
    """Return a row a symbol and date of a part."""
    groups: dict[tuple[str | None, str], list[WrittenFile]] = {}
    for file in files:
        place = FilePath.parse(file.path)
        groups.setdefault((place.symbol, place.date), []).append(file)
    rows = [
        {
            "symbol": symbol,
            "dataset": dataset.name,
            "part": part,
            "date": first_day(date),
            "rows": sum(file.rows for file in own),
            "bytes": sum(file.bytes for file in own),
            "row_hash": as_text(combine(file.row_hash for file in own)),
            "first": min(file.first for file in own),
            "last": max(file.last for file in own),
        }
        for (symbol, date), own in groups.items()
    ]
    return _batch(SEGMENTS, rows, now)


def _batch(dataset: Dataset, rows: Iterable[Mapping[str, Any]], now: int) -> pa.RecordBatch:
    full = [{"ts_event": now, "ts_recv": now, "symbol": None, **row} for row in rows]
    return pa.RecordBatch.from_pylist(full, schema=dataset.schema)
