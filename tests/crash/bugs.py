"""Seeded bugs of the storage core: what the checks of this directory must catch.

A bug is a change to a running process. ``apply`` makes it by assigning attributes through the
function it is given, ``setattr`` in a process of its own or one that undoes itself in a test.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from storage import journal_file, journal_making, recovery, rollover
from storage.errors import JournalError, JournalFullError
from storage.hot_memory import HotMemory
from storage.journal import Journal
from storage.journal_file import Header, JournalReader, JournalWriter, Record
from storage.journal_making import Appended
from storage.journal_record import Intact
from storage.lake.files import FileIndex
from storage.lake.table import LakeTable
from storage.ports import SystemDisk
from storage.producers import AppendStream
from storage.rollover import Rollover
from storage.segments import Segment

Put = Callable[[Any, str, Any], None]
Bug = Callable[[Put], None]


# In writing


def acks_before_the_commit(put: Put) -> None:
    commit = Journal._commit

    def early(self: Journal, groups: Sequence[Sequence[Appended]]) -> None:
        for mark in (mark for group in groups for part in group for mark in part.marks):
            mark.stream.settle(mark)
        commit(self, groups)

    put(Journal, "_commit", early)


def commits_without_a_sync(put: Put) -> None:
    connect = journal_file.connect

    def careless(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    put(journal_file, "connect", careless)


def does_not_sync_directories(put: Put) -> None:
    put(SystemDisk, "sync_directory", lambda _self, _path: None)


def drops_the_marks_of_a_batch(put: Put) -> None:
    put(journal_making, "_durable_marks", lambda _parts: {})


def marks_one_batch_too_many(put: Put) -> None:
    marks = journal_making._durable_marks

    def too_many(parts: Sequence[Appended]) -> dict[str, int]:
        return {name: seq + 1 for name, seq in marks(parts).items()}

    put(journal_making, "_durable_marks", too_many)


def begins_the_next_file_a_position_late(put: Put) -> None:
    create = JournalWriter.__init__

    def late(self: JournalWriter, path: Path, header: Header) -> None:
        shift = int(header.number > 1)
        positions = {name: at + shift for name, at in header.positions.items()}
        create(self, path, replace(header, positions=positions))

    put(JournalWriter, "__init__", late)


def seals_a_record_that_is_not_there(put: Put) -> None:
    seal = JournalWriter.seal

    def one_too_many(self: JournalWriter) -> None:
        self.records += 1
        seal(self)

    put(JournalWriter, "seal", one_too_many)


def miscounts_the_file_before(put: Put) -> None:
    create = JournalWriter.__init__

    def short(self: JournalWriter, path: Path, header: Header) -> None:
        create(self, path, replace(header, previous_records=max(0, header.previous_records - 1)))

    put(JournalWriter, "__init__", short)


def appends_what_is_sent_again(put: Put) -> None:
    put(AppendStream, "_is_resend", lambda _self, _seq: False)


def loses_what_it_puts_aside(put: Put) -> None:
    submit = Journal.submit
    put(Journal, "submit", lambda self, group: submit(self, group[:1]))


def introduces_no_string_twice(put: Put) -> None:
    begin = Journal._open

    def remembering(self: Journal, header: Header) -> None:
        known = self._maker
        begin(self, header)
        self._maker = known

    put(Journal, "_open", remembering)


def takes_a_full_disk_for_done(put: Put) -> None:
    def write(_self: Journal, action: Callable[[], None]) -> None:
        try:
            action()
        except JournalFullError:
            return

    put(Journal, "_when_there_is_room", write)


def goes_on_after_a_failed_sync(put: Put) -> None:
    commit = JournalWriter.commit

    def regardless(self: JournalWriter, records: list[Record]) -> None:
        try:
            commit(self, records)
        except JournalError:
            return

    put(JournalWriter, "commit", regardless)


# In recovering


def trusts_every_record(put: Put) -> None:
    put(journal_file, "intact", lambda _number, _row: Intact.ALL)


def trusts_every_log(put: Put) -> None:
    put(recovery, "require_sound_log", lambda _path: None)


def forgets_marks_when_it_recovers(put: Put) -> None:
    records = JournalReader.records

    def unmarked(self: JournalReader) -> Iterator[Record]:
        return (replace(record, marks={}) for record in records(self))

    put(JournalReader, "records", unmarked)
    header = JournalReader._header

    def unmarked_header(self: JournalReader, found: list[tuple[str, bytes]]) -> Header:
        return replace(header(self, found), marks={})

    put(JournalReader, "_header", unmarked_header)


# In rolling over


def flips_before_the_lake_has_it(put: Put) -> None:
    commit = Rollover._commit

    def early(self: Rollover, segment: Segment, part: Any) -> None:
        self._parts.memory.flip(segment.end)
        commit(self, segment, part)

    put(Rollover, "_commit", early)


def flips_a_position_short(put: Put) -> None:
    flip = HotMemory.flip

    def short(self: HotMemory, bases: Mapping[str, int]) -> None:
        flip(self, {name: max(self.base(name), base - 1) for name, base in bases.items()})

    put(HotMemory, "flip", short)


def rolls_again_what_is_rolled(put: Put) -> None:
    def always(_table: LakeTable, segment: Segment) -> bool:
        first, end = segment.span(_table.dataset.name)
        return first < end

    put(rollover, "_is_due", always)


def shows_files_before_rows_leave(put: Put) -> None:
    put(FileIndex, "visible", lambda self, _base: self)


BUGS: Final[Mapping[str, Bug]] = {
    bug.__name__: bug
    for bug in (
        acks_before_the_commit,
        commits_without_a_sync,
        does_not_sync_directories,
        drops_the_marks_of_a_batch,
        marks_one_batch_too_many,
        begins_the_next_file_a_position_late,
        seals_a_record_that_is_not_there,
        miscounts_the_file_before,
        appends_what_is_sent_again,
        loses_what_it_puts_aside,
        introduces_no_string_twice,
        takes_a_full_disk_for_done,
        goes_on_after_a_failed_sync,
        trusts_every_record,
        trusts_every_log,
        forgets_marks_when_it_recovers,
        flips_before_the_lake_has_it,
        flips_a_position_short,
        rolls_again_what_is_rolled,
        shows_files_before_rows_leave,
    )
}
