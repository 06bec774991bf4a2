"""The way out of a source: one writer of the SDK a dataset, without blocking the event loop."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import structlog

from ingest.ports import RowWriter, Service
from tickflight import Overflow, TickflightError

CLOSE_SECONDS: Final = 2.0
"""How long the service may take for the last rows: a role has five seconds to stop. Rows that it
does not take are in the spool, or missing after the last row, where the next start finds a gap."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Lane:
    """One dataset's writer, and the one thread that may be blocked in it."""

    writer: RowWriter
    thread: ThreadPoolExecutor


class DatasetWriters:
    """Writers of one source by dataset, opened when first used.

    A dataset under back-pressure does not hold up another; within one, rows keep their order.

    Args:
        service: Where the rows go.
        name: What operators see in producer ids.
        spool: Directory for rows that the service can't take now; None lets the source wait.
    """

    def __init__(self, service: Service, *, name: str, spool: Path | None) -> None:
        self._service = service
        self._name = name
        self._spool = spool
        self._lanes: dict[str, _Lane] = {}
        self._opening = asyncio.Lock()
        # Appended to by the lanes' threads, which a deque allows.
        self._losses: deque[Overflow] = deque()

    async def write(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        """Write rows; returns once the writer has them.

        Raises:
            tickflight.errors.TickflightError: The service refused; the next call begins anew.
        """
        async with self._opening:
            lane = self._lanes.get(dataset) or await self._open(dataset)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(lane.thread, lane.writer.write, rows)
        except TickflightError:
            await self._close(dataset)
            raise

    async def flush(self) -> None:
        """Wait until everything written is durable, however long the service is away.

        Raises:
            tickflight.errors.TickflightError: The service refused rows for good.
        """
        lanes = list(self._lanes.values())
        await asyncio.gather(*(asyncio.to_thread(lane.writer.flush) for lane in lanes))

    def take_losses(self) -> list[Overflow]:
        """Rows that were not taken since the last call, because the spool was full."""
        return [self._losses.popleft() for _ in range(len(self._losses))]

    async def close(self) -> None:
        """Send or spool what is left; what could not be is logged."""
        await asyncio.gather(*(self._close(dataset) for dataset in list(self._lanes)))

    async def _open(self, dataset: str) -> _Lane:
        # In a thread: a spool that an earlier life left is read through first.
        writer = await asyncio.to_thread(
            self._service.writer,
            dataset,
            name=f"ingest.{self._name}",
            spool=None if self._spool is None else self._spool / dataset,
            on_overflow=self._losses.append,
        )
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"write-{dataset}")
        lane = self._lanes[dataset] = _Lane(writer, thread)
        return lane

    async def _close(self, dataset: str) -> None:
        lane = self._lanes.pop(dataset, None)
        if lane is None:
            return
        try:
            # Not on the lane's thread: it may be the one that waits, and closing ends the wait.
            await asyncio.to_thread(lane.writer.close, CLOSE_SECONDS)
        except TickflightError as error:
            _log.warning("writer closed with a failure", dataset=dataset, reason=str(error))
        lane.thread.shutdown(wait=False)
