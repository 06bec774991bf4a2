"""The journal of this data directory, looked at and put in order by whoever runs the service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from storage.errors import JournalError, LakeError
from storage.journal_repair import Repaired, repair
from storage.journal_verify import FileReport, verify
from storage.lake.layout import table_root
from storage.lake.table import LakeTable
from storage.ports import SystemClock, SystemDisk
from storage.schemas import DATASETS
from tickflightd import directory
from tickflightd.errors import TickflightdError

ADVICE: Final = (
    "`tickflightd journal verify` lists what is damaged; with the service stopped,"
    " `tickflightd journal repair` keeps all that is intact and says what is not"
)


def verified(place: Path) -> Iterator[FileReport]:
    """Yield a report of each journal file of a data directory, changing nothing.

    Raises:
        TickflightdError: The journal can't be read.
    """
    try:
        yield from verify(place / "journal")
    except JournalError as error:
        raise TickflightdError(str(error)) from error


def repaired(place: Path, lake: Path) -> Repaired:
    """Put the journal of a data directory in order that no service uses.

    Args:
        place: The data directory.
        lake: Directory of the lake's tables, which tell what the journal need not have.

    Raises:
        AlreadyRunningError: A service uses it.
        TickflightdError: It can't be done; the journal is as it was.
    """
    disk = SystemDisk()
    with directory.owned(place, directory.FLIGHT_LOCK):
        try:
            rolled = _rolled(lake, disk)
            return repair(place / "journal", rolled, clock=SystemClock(), disk=disk)
        except (JournalError, LakeError) as error:
            raise TickflightdError(str(error)) from error


def _rolled(lake: Path, disk: SystemDisk) -> dict[str, int]:
    """Return below which position the lake holds every row, by dataset."""
    positions = {}
    for name, dataset in DATASETS.items():
        root = table_root(lake, dataset)
        if root.is_dir():
            table = LakeTable(root, dataset, disk)
            table.refresh()
            positions[name] = table.position
    return positions
