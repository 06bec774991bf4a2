"""What earlier runs of a source left behind: how far its rows reach, and gaps nobody closed."""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ingest.outages import Gap, lasting_gaps
from ingest.ports import Service
from ingest.source import SourceProfile

GAP_ROWS: Final = 1_000
"""Revisions of gaps looked through, per symbol: a feed that fails every minute has fewer a day."""
ANSWER_SECONDS: Final = 2.0
"""A service that works answers in milliseconds, and a role has five seconds to stop."""


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of the time before this run.

    Attributes:
        last_row: When the newest row came, by dataset, in µs since 1970; no entry without rows.
        lasting: Gaps that are open still.
    """

    last_row: dict[str, int]
    lasting: list[Gap]


def read_past(service: Service, profile: SourceProfile) -> Past:
    """Ask the service what it has of this source.

    Raises:
        tickflight.errors.TickflightError: The service could not be asked.
    """
    last_row = {}
    for dataset in profile.datasets:
        newest = _newest_receipt(service, profile, dataset)
        if newest is not None:
            last_row[dataset] = newest
    gaps = service.latest(profile.symbols, dataset="gaps", limit=GAP_ROWS, timeout=ANSWER_SECONDS)
    return Past(last_row, lasting_gaps(gaps.arrow(), profile.name))


def _newest_receipt(service: Service, profile: SourceProfile, dataset: str) -> int | None:
    """When the newest row of any symbol came: a quiet symbol does not mean that nobody listened."""
    answer = service.latest(
        profile.symbols, dataset=dataset, limit=1, source=profile.name, timeout=ANSWER_SECONDS
    )
    newest = pc.max(answer.arrow()["ts_recv"].cast(pa.int64())).as_py()
    return None if newest is None else int(newest)
