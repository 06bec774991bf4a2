"""Keeps one table up until it is killed: joins its dates, drops the oldest, joins again."""

import sys
from pathlib import Path

from storage.lake import retention
from storage.lake.compaction import JoinTask, compact, join
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.ports import SystemDisk
from storage.schemas import TICKS


def main(root: Path, cutoff: int) -> None:
    """Do it all once, and say so."""
    table = LakeTable(root, TICKS, SystemDisk())
    table.refresh()
    table.came = lambda file: 0  # type: ignore[method-assign]  # noqa: ARG005
    print("begun", flush=True)  # noqa: T201 - who kills us waits for it

    def joined(task: JoinTask) -> WrittenFile:
        return join(task, SystemDisk())

    for _ in compact(table, table.position, joined, lambda _: None):
        pass
    groups = retention.expired(table, table.position, cutoff)
    if groups:
        retention.drop(table, groups, cutoff)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
