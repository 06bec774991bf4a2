"""The upkeep of the lake: retention, compaction, vacuum and verification.

One thread; what is asked for by hand is done by whoever asks, one task at a time:

    once a day      dates whose time is over are dropped ─► the files of past dates are joined
                    ─► what was replaced long enough ago leaves the disk
    once an hour    a slice of all files is read whole and compared with what was committed

Each step is one commit and finds what is to do by looking at the tables, so whatever is cut off is
begun again. A task that fails is told in ``status`` and tried again; others go on.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Final

from storage.errors import JournalError, LakeError, LakeFullError, StoreClosedError
from storage.lake import compaction, retention, vacuum
from storage.lake.compaction import Joined, JoinTask
from storage.lake.files import LakeFile
from storage.lake.layout import DAY_US
from storage.lake.retention import Dropped
from storage.lake.scrub import FileReport
from storage.lake.table import LakeTable
from storage.lake.vacuum import LeftOver
from storage.lake.writer import WrittenFile
from storage.lake_repair import LakeRepair, Repaired
from storage.lake_verification import LakeVerification
from storage.ports import MICROSECONDS, Clock, Disk
from storage.upkeep_health import UpkeepHealth
from storage.upkeep_parts import LakeHealth, Repair, UpkeepConfig, UpkeepParts, Verification

POLL_SECONDS: Final = 5.0
"""How often the clock is looked at."""
FIRST_SECONDS: Final = 300.0
"""How long after the start the first tasks begin: a restart has better things to do."""
DAILY_DELAY_US: Final = 1_800 * MICROSECONDS
"""How long after the last rows of a day have left memory its files are joined, µs: rolling over
may be late, and what comes later is joined a day later."""
VERIFY_SECONDS: Final = 3_600.0
"""How often a slice of the lake is verified."""
RETRY_SECONDS: Final = 600.0
"""How long after a failure the next attempt is made."""
FAILURES_MAX: Final = 8
"""Groups that may fail to be joined in one go: then it is the disk, and not a file."""
ALONE_POLL_SECONDS: Final = 0.2
"""How late whoever waits for a task to end notices that the store is shutting down."""


class Upkeep:
    """Keeps the lake up by itself and by hand; ``start`` once, ``stop`` once.

    Args:
        config: Of what and how.
        parts: What, and what with.
        clock: Where time comes from.
        disk: Where the lake lies.
        on_failure: Called when the thread can't go on.
    """

    def __init__(
        self,
        config: UpkeepConfig,
        parts: UpkeepParts,
        *,
        clock: Clock,
        disk: Disk,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._parts = parts
        self._clock = clock
        self._disk = disk
        self._on_failure = on_failure
        self._working = threading.Lock()
        self._stopping = threading.Event()
        self._verification = LakeVerification(
            config.lake, parts.tables, parts.scrub, self._stopping, clock, disk
        )
        self._health = UpkeepHealth(parts.own_rows, self._verification, clock)
        self._next = clock.monotonic() + FIRST_SECONDS
        self._next_slice = self._next
        self._day = -1  # the last that the daily tasks were done after
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin to keep the lake up."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop; what is half done is done again in the next life."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for the end, once appender and journal have stopped."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def status(self) -> LakeHealth:
        """How the lake is doing."""
        return self._health.status()

    def watching(self, name: str) -> AbstractContextManager[None]:
        """Note what becomes of somebody else's work on the lake: a failure is in the status."""
        return self._health.task(name)

    # By hand: each says what would be done, or does it

    def joinable(self, dataset: str | None = None) -> list[Joined]:
        """Return what ``compact`` would do now."""
        return [
            compaction.summary(table, group)
            for table in self._tables(dataset)
            for group in self._groups(table)
        ]

    def compact(self, dataset: str | None = None) -> list[Joined]:
        """Join the files of past dates, of one table or all; returns what was done.

        Raises:
            LakeError: Something could not be joined; what could has been.
        """
        with self._alone(), self._health.task("compaction"):
            return self._compact(dataset)

    def expired(self, dataset: str | None = None) -> list[Dropped]:
        """Return what ``retain`` would drop now, by table and oldest first."""
        return [
            retention.summary(table, group)
            for table in self._tables(dataset)
            for group in self._expired(table)
        ]

    def retain(self, dataset: str | None = None) -> list[Dropped]:
        """Drop the dates whose time is over, of one table or all; returns what was dropped.

        Raises:
            LakeError: The disk refuses; each table has lost all that it was to lose, or nothing.
        """
        with self._alone(), self._health.task("retention"):
            return self._retain(dataset)

    def left_over(self, dataset: str | None = None) -> list[LeftOver]:
        """Return what ``vacuum`` would remove now.

        Raises:
            LakeError: The disk refuses.
        """
        with self._alone():
            return [file for table in self._settled(dataset) for file in self._left_over(table)]

    def vacuum(self, dataset: str | None = None) -> list[LeftOver]:
        """Remove files that nobody needs, of one table or all; returns what is gone.

        Raises:
            LakeError: The disk refuses; the rest is found again.
        """
        with self._alone(), self._health.task("vacuum"):
            return self._vacuum(dataset)

    def verify(self, before: int | None = None, dataset: str | None = None) -> Verification:
        """Read a slice of the lake, the files first that were not for longest.

        Args:
            before: Leave out files that were verified at or after this instant, µs; None is none.
            dataset: Files of one table; None is of all.

        Raises:
            LakeError: The disk refuses.
        """
        with self._alone(), self._health.task("verification"):
            return self._verification.slice(before, list(self._settled(dataset)))

    def repair(self, dataset: str | None = None) -> Repair:
        """Make files again that are known to be damaged, of one table or all.

        Raises:
            LakeError: The disk refuses.
        """
        with self._alone(), self._health.task("repair"):
            return self._repair(dataset)

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL_SECONDS):
                self.step()
        except StoreClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - the process can't go on half alive
            self._on_failure(error)

    def step(self) -> None:
        """Do whatever is due, once.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        now = self._clock.monotonic()
        day = (self._clock.now() - self._config.hot_window_us - DAILY_DELAY_US) // DAY_US
        if now >= self._next and day > self._day:
            if self._succeeds(self.retain, self.compact, self.vacuum):
                self._day = day
                self._health.note_upkept()
            else:
                self._next = now + RETRY_SECONDS
        if now >= self._next_slice:
            self._next_slice = now + VERIFY_SECONDS
            self._succeeds(self.verify)

    def _succeeds(self, *tasks: Callable[[], object]) -> bool:
        """Do some tasks, each whatever has become of the others; return whether all went well."""
        well = True
        for task in tasks:
            try:
                task()
            except StoreClosedError:
                raise
            except Exception:  # noqa: BLE001 - it is in the status, and tried again
                well = False
        return well

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Do one task at a time.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        while not self._working.acquire(timeout=ALONE_POLL_SECONDS):
            self._require_running()
        try:
            self._require_running()
            yield
        finally:
            self._working.release()

    def _require_running(self) -> None:
        if self._stopping.is_set():
            raise StoreClosedError("the server is shutting down")

    def _tables(self, dataset: str | None) -> list[LakeTable]:
        tables = self._parts.tables
        return list(tables.values()) if dataset is None else [tables[dataset]]

    def _settled(self, dataset: str | None) -> Iterator[LakeTable]:
        """Yield tables as they are on disk, whatever an earlier failure has left in doubt."""
        for table in self._tables(dataset):
            self._require_running()
            table.settle()
            self._parts.readers.show(table)
            yield table

    # Compaction

    def _groups(self, table: LakeTable) -> list[tuple[LakeFile, ...]]:
        name = table.dataset.name
        seen = table.index.visible(self._parts.readers.base(name))
        today = self._clock.now() // DAY_US * DAY_US
        return [
            group
            for group in compaction.groups_to_join(seen, table.dataset, today)
            if not any(self._verification.is_damaged(table, file) for file in group)
        ]

    def _compact(self, dataset: str | None) -> list[Joined]:
        done: list[Joined] = []
        failures: list[LakeError] = []
        for table in self._settled(dataset):
            groups = self._groups(table)
            facts = table.ledger() if groups else {}
            for group in groups:
                self._require_running()
                try:
                    done.append(compaction.join_group(table, group, facts, self._joined))
                except LakeFullError:
                    raise
                except LakeError as error:
                    failures.extend(self._examined(table, group, error))
                finally:
                    self._parts.readers.show(table)
                if len(failures) > FAILURES_MAX:
                    raise failures[0]
        if failures:
            raise failures[0]
        return done

    def _joined(self, task: JoinTask) -> WrittenFile:
        return self._parts.join(task, self._stopping)

    def _examined(
        self, table: LakeTable, group: Sequence[LakeFile], error: LakeError
    ) -> list[LakeError]:
        """Read what could not be joined: damage has a name of its own in the status."""
        paths = [file.path for file in group]
        reports = self._verification.read({table.dataset.name: paths})
        return [] if any(report.damage for report in reports) else [error]

    # Retention

    def _expired(self, table: LakeTable) -> list[tuple[LakeFile, ...]]:
        if self._config.retention_us is None:
            return []
        cutoff = self._clock.now() - self._config.retention_us
        return retention.expired(table, self._parts.readers.base(table.dataset.name), cutoff)

    def _retain(self, dataset: str | None) -> list[Dropped]:
        dropped: list[Dropped] = []
        for table in self._settled(dataset):
            groups = self._expired(table)
            if not groups or self._config.retention_us is None:
                continue
            told = [retention.summary(table, group) for group in groups]
            try:
                cutoff = self._clock.now() - self._config.retention_us
                retention.drop(table, groups, cutoff)
            finally:
                self._parts.readers.show(table)
            dropped.extend(told)
        return dropped

    # Vacuum

    def _left_over(self, table: LakeTable) -> list[LeftOver]:
        in_use = self._parts.readers.in_use(table.dataset.name)
        delay = max(self._config.vacuum_delay_us, vacuum.DELAY_US_MIN)
        return vacuum.left_over(table, in_use, self._clock.now() - delay)

    def _vacuum(self, dataset: str | None) -> list[LeftOver]:
        removed: list[LeftOver] = []
        for table in self._settled(dataset):
            removed.extend(vacuum.remove(table.root, self._left_over(table), self._disk))
        return removed

    # Repair

    def _repair(self, dataset: str | None) -> Repair:
        maker = LakeRepair(
            self._config.lake,
            self._parts.segments,
            lambda task: self._parts.write(task, self._stopping),
            self._joined,
            self._disk,
        )
        self._verification.read({})
        repaired: list[Repaired] = []
        left: list[FileReport] = []
        for table in self._settled(dataset):
            files = {file.path: file for file in table.index}
            for report in self._damaged(table):
                try:
                    if report.path not in files:
                        raise LakeError(report.advice)
                    repaired.append(maker.repair(table, files[report.path]))
                except (LakeFullError, StoreClosedError):
                    raise
                except (LakeError, JournalError) as error:
                    left.append(replace(report, advice=str(error)))
                finally:
                    self._parts.readers.show(table)
        self._verification.read({})  # what was exchanged is forgotten
        return Repair(tuple(repaired), tuple(left))

    def _damaged(self, table: LakeTable) -> list[FileReport]:
        name = table.dataset.name
        return [one.report for one in self._verification.damage if one.report.dataset == name]
