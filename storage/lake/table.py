"""One table of the lake. The only user of delta-rs, and what makes its commits durable.

A commit of delta-rs is atomic, but it syncs nothing. So after each the new log entry and the log's
directory are synced, and only then is the commit believed. What a life finds in the log when it
begins may never have been synced: the newest entry is written again and synced first. An entry cut
short by a power failure was never believed; it is put aside.

The log is never cleaned up, since it holds the digests of all files. So checkpoints, which delta-rs
can't make durable either, only save time: where one is damaged, all are dropped.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Schema,
    Transaction,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from storage.errors import LakeCorruptError, LakeError
from storage.lake import layout
from storage.lake.actions import data_files, facts_of, statistics, values_of, written
from storage.lake.files import FileIndex, LakeFile
from storage.lake.log import LOG, METADATA, Log
from storage.lake.outside import errors_as_ours
from storage.lake.writer import WrittenFile
from storage.ports import Disk
from storage.schemas import Dataset

PART: Final = "tickflight"
"""Application transaction that counts the parts of a table."""
POSITION: Final = "tickflight.position"
"""Application transaction: rows with a position below it are in the lake."""
EPOCH: Final = "tickflight.epoch"
"""Application transaction: the life of the server that wrote the newest part's rows."""
RETENTION: Final = "tickflight.retention"
"""Application transaction: days since 1970 below which rows were dropped."""
TICKS_PART: Final = "tickflight.ticks_part"
"""Application transaction of the table of bars: the newest part of ticks they are made of."""
CHECKPOINT_COMMITS: Final = 64
"""Commits between checkpoints: reading as many entries of a log takes some 20 ms."""

_NO_HOOKS: Final = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
_CONFIGURATION: Final = {
    # Nobody but us, and nothing by itself: what it would write is not durable.
    "delta.checkpointInterval": "1000000000",
    "delta.enableExpiredLogCleanup": "false",
}


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What the commit of a part says about it.

    Attributes:
        part: Its number.
        first: Position of its first row.
        end: Position after its last row.
        epoch: The life of the server that wrote the rows.
        committed: When, µs.
        files: Its data files, as they were committed.
    """

    part: int
    first: int
    end: int
    epoch: int
    committed: int
    files: tuple[WrittenFile, ...]


class LakeTable:
    """The lake's table of one dataset. It is created by its first commit.

    One thread at a time commits; any thread reads ``index`` and the counters. After a commit that
    failed, the next one reads the table again first.

    Args:
        root: The table's directory, see ``layout.table_root``.
        dataset: What it holds.
        disk: Where it lies.
    """

    def __init__(self, root: Path, dataset: Dataset, disk: Disk) -> None:
        self.root = root
        self.dataset = dataset
        self.index = FileIndex(-1)
        self.part = 0
        self.position = 0
        self.epoch = 0
        self._disk = disk
        self._log = Log(root, disk)
        self._table: DeltaTable | None = None
        self._changing = threading.RLock()
        self._checkpoint = 0
        self._in_doubt = False
        self._modified: Mapping[str, int] = {}

    def __repr__(self) -> str:
        return f"<LakeTable {self.dataset.name} part {self.part}, {len(self.index)} files>"

    def refresh(self) -> None:
        """Read the table as it is on disk, and see to it that all of that is durable.

        To be called before anything else, and again after a commit that failed: whether it took
        place is known only then. Reads nothing but the log.

        Raises:
            LakeCorruptError: The log can't be read.
            LakeError: The disk refuses.
        """
        with self._changing, errors_as_ours(self.root):
            self._table = None
            self._log.settle()
            self._table = self._opened()
            self._read()
            self._in_doubt = False

    def settle(self) -> None:
        """Read the table again where a commit has failed: whether it took place is known then.

        Raises:
            LakeError: See ``refresh``.
        """
        with self._changing:
            self._settle()

    def peek(self) -> None:
        """Read the table as it is on disk and change nothing, for whoever doesn't own it.

        An entry of the log that was cut short is as good as not there.

        Raises:
            LakeCorruptError: The log can't be read.
            LakeError: The disk refuses.
        """
        with self._changing, errors_as_ours(self.root):
            newest = self._log.newest_whole()
            try:
                self._table = None if newest < 0 else DeltaTable(self.root, version=newest)
            except DeltaError as error:
                raise _unreadable(self.root, error) from error
            self._read()

    def commit_part(
        self,
        part: int,
        first: int,
        end: int,
        epoch: int,
        files: Sequence[WrittenFile],
        transactions: Mapping[str, int] | None = None,
    ) -> None:
        """Add the next part; durable and visible in ``index`` once this returns.

        Where it fails, ``refresh`` tells whether the part is there: ``part`` has its number then.

        Args:
            part: Its number, one above that of the newest.
            first: Position of its first row.
            end: Position after its last row; below it all rows are in the lake now. A part of rows
                that never had positions repeats the position of the table.
            epoch: The life of the server that wrote the rows.
            files: May be none: a part whose rows were all left out counts, too.
            transactions: Further counters to set.

        Raises:
            LakeFullError: There is no room.
            LakeError: It is not the next part, or the disk refuses.
        """
        with self._changing:
            self._settle()
            if part != self.part + 1 or end < self.position:
                raise LakeError(
                    f"{self.root}: part {part} up to position {end} can't follow part {self.part} "
                    f"up to position {self.position}; read the table again"
                )
            marks = {PART: part, POSITION: end, EPOCH: epoch, **(transactions or {})}
            about = {"part": part, "first": first, "end": end, "epoch": epoch}
            self._commit(files, (), marks, about)

    def replace(
        self,
        removed: Iterable[LakeFile],
        added: Sequence[WrittenFile],
        *,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        same_rows: bool = False,
    ) -> None:
        """Take files out and put others in, in one commit; the files themselves stay on disk.

        Args:
            removed: Files of ``index``.
            added: Files that were written.
            transactions: Counters to set.
            metadata: Told with the commit.
            same_rows: Whether the table holds the same rows afterwards, as Delta wants to know;
                they keep the time at which the newest of them came.

        Raises:
            LakeFullError: There is no room.
            LakeError: A file to remove is not there, or the disk refuses.
        """
        with self._changing:
            self._settle()
            removed = tuple(removed)
            gone = {file.path for file in removed} - {file.path for file in self.index}
            if gone:
                raise LakeError(f"{self.root}: no file {min(gone)}; read the table again")
            self._commit(added, removed, transactions or {}, metadata or {}, same_rows=same_rows)

    def counter(self, name: str) -> int | None:
        """Return what an application transaction was last set to."""
        with self._changing, errors_as_ours(self.root):
            self._settle()
            return None if self._table is None else self._table.transaction_version(name)

    def came(self, file: LakeFile) -> int:
        """Return when the newest row of a file came into the table, µs.

        Of one that has left the table meanwhile: now.
        """
        return self._modified.get(file.path, time.time_ns() // 1_000)

    def parts(self, after: int = 0) -> list[PartRecord]:
        """Return what the commits of the parts above number ``after`` say, oldest first."""
        found = []
        for entry in self._log.newest_first():
            about = entry.about
            if "part" not in about:
                continue
            if about["part"] <= after:
                break
            record = PartRecord(
                about["part"],
                about["first"],
                about["end"],
                about["epoch"],
                entry.committed,
                tuple(written(path, facts) for path, facts in about["files"].items()),
            )
            found.append(record)
        return found[::-1]

    def ledger(self) -> dict[str, WrittenFile]:
        """Return what was committed about each file of ``index``, by path."""
        known: dict[str, WrittenFile] = {}
        index = self.index
        wanted = {file.path for file in index}
        for entry in self._log.newest_first(index.version):
            for path, facts in entry.about.get("files", {}).items():
                if path in wanted and path not in known:
                    known[path] = written(path, facts)
            if len(known) == len(wanted):
                break
        return known

    def replaced_by(self, path: str) -> tuple[str, ...]:
        """Return the paths of what was taken out by the commit that brought a file."""
        for entry in self._log.newest_first(self.index.version):
            if path in entry.about.get("files", {}):
                return entry.removed
        return ()

    def removed_since(self, instant: int) -> set[str]:
        """Return the paths of files that were taken out at or after an instant, µs."""
        removed: set[str] = set()
        with self._changing, errors_as_ours(self.root):
            self._settle()
            for entry in self._log.newest_first():
                if entry.committed < instant:
                    break
                removed.update(entry.removed)
        return removed

    def left_over_of_log(self) -> list[Path]:
        """Return files beside the log that nobody needs: of failed commits, and old checkpoints."""
        with self._changing, errors_as_ours(self.root):
            return [*self._log.left_over(), *self._log.old_checkpoints()]

    # Committing

    def _commit(
        self,
        added: Sequence[WrittenFile],
        removed: Sequence[LakeFile],
        transactions: Mapping[str, int],
        about: Mapping[str, Any],
        *,
        same_rows: bool = False,
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        came_ms = now_ms
        if same_rows and removed:
            came_ms = max(self.came(file) for file in removed) // 1_000
        adds = [self._add(file, came_ms, changes=not same_rows) for file in added]
        removes = [self._remove(file, now_ms, changes=not same_rows) for file in removed]
        told = {
            **about,
            "actions": len(adds) + len(removes) + len(transactions),
            "files": {file.path: facts_of(file) for file in added},
        }
        properties = CommitProperties(
            custom_metadata={METADATA: told},
            max_commit_retries=0,
            app_transactions=[Transaction(name, value) for name, value in transactions.items()],
        )
        with self._in_doubt_after_failure(), errors_as_ours(self.root):
            self._write(adds, removes, properties)
            self._log.sync_newest()
            table = self._table
            if table is None:
                self._table = self._opened()
            else:
                table.update_incremental()
            self._read()
            self._checkpoint_sometimes()

    def _write(
        self,
        adds: list[AddAction],
        removes: list[RemoveAction],
        properties: CommitProperties,
    ) -> None:
        schema = Schema.from_arrow(layout.lake_schema(self.dataset))
        partition_by = list(self.dataset.partition_by)
        if self._table is None:
            if self._log.newest() >= 0:
                raise LakeError(f"{self.root}: the table is there, but was not read yet")
            self._disk.make_directory(self.root / LOG)
            create_table_with_add_actions(
                str(self.root),
                schema,
                adds,
                partition_by=partition_by,
                configuration=_CONFIGURATION,
                commit_properties=properties,
                post_commithook_properties=_NO_HOOKS,
            )
            return
        self._gain_columns(self._table)
        self._table.create_write_transaction(
            [*adds, *removes],
            mode="append",
            schema=self._table.schema(),
            partition_by=partition_by,
            commit_properties=properties,
            post_commithook_properties=_NO_HOOKS,
        )

    def _gain_columns(self, table: DeltaTable) -> None:
        """Add the columns that the dataset has gained since the table was created."""
        known = {field.name for field in table.schema().fields}
        wanted = Schema.from_arrow(layout.lake_schema(self.dataset)).fields
        missing = [field for field in wanted if field.name not in known]
        if missing:
            table.alter.add_columns(missing, post_commithook_properties=_NO_HOOKS)
            self._log.sync_newest()
            table.update_incremental()

    def _add(self, file: WrittenFile, now_ms: int, *, changes: bool) -> AddAction:
        place = layout.FilePath.parse(file.path)
        values = layout.partition_values(self.dataset, place.symbol, place.date)
        return AddAction(file.path, file.bytes, values, now_ms, changes, statistics(file))

    def _remove(self, file: LakeFile, now_ms: int, *, changes: bool) -> RemoveAction:
        values: dict[str, str | None] = dict(
            layout.partition_values(self.dataset, file.symbol, file.date)
        )
        return RemoveAction(file.path, changes, now_ms, file.bytes, values)

    @contextmanager
    def _in_doubt_after_failure(self) -> Iterator[None]:
        """Have the table read again after a failure: what is in the log is not known any more."""
        try:
            yield
        except BaseException:
            self._in_doubt = True
            raise

    def _settle(self) -> None:
        if self._in_doubt:
            self.refresh()

    def _checkpoint_sometimes(self) -> None:
        """Write a checkpoint now and then; the commit stands, whatever becomes of it."""
        table = self._table
        if table is None or table.version() < self._checkpoint + CHECKPOINT_COMMITS:
            return
        self._checkpoint = table.version()
        try:
            table.create_checkpoint()
            self._log.sync_checkpoints()
        except (OSError, DeltaError):
            self._log.drop_checkpoints()

    # Reading

    def _opened(self) -> DeltaTable | None:
        if self._log.newest() < 0:
            return None
        try:
            return DeltaTable(self.root)
        except DeltaError:
            self._log.drop_checkpoints()
        try:
            return DeltaTable(self.root)
        except DeltaError as error:
            raise _unreadable(self.root, error) from error

    def _read(self) -> None:
        table = self._table
        if table is None:
            self.index, self.part, self.position, self.epoch = FileIndex(-1), 0, 0, 0
            return
        actions = pa.table(table.get_add_actions(flatten=True))
        files = data_files(actions)
        self._modified = dict(
            zip(
                values_of(actions, "path"),
                (1_000 * instant for instant in values_of(actions, "modification_time")),
                strict=True,
            )
        )
        days = table.transaction_version(RETENTION) or 0
        self.index = FileIndex(
            table.version(),
            files,
            retained_from=days * layout.DAY_US,
            follows=table.transaction_version(TICKS_PART) or 0,
        )
        self.part = table.transaction_version(PART) or 0
        self.position = table.transaction_version(POSITION) or 0
        self.epoch = table.transaction_version(EPOCH) or 0


def _unreadable(root: Path, error: DeltaError) -> LakeCorruptError:
    detail = f"the log can't be read: {str(error).partition(chr(10))[0]}"
    return LakeCorruptError(root / LOG, detail)
