"""The lake, looked at and put in order: by the running service, or by reading its files."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tickflight
from storage.errors import LakeError
from storage.lake.layout import table_root
from storage.lake.scrub import FileReport, ScrubTask, scrub
from storage.schemas import DATASETS
from tickflightd.errors import ConfigurationError, TickflightdError

NICENESS: Final = 19
"""The lowest priority: whoever verifies without the service may be sharing its machine."""


@dataclass(slots=True)
class Verified:
    """What a verification found.

    Attributes:
        files: How many were read.
        rows: In them.
        bytes: Of them.
        damaged: Those that are not what was committed.
    """

    files: int = 0
    rows: int = 0
    bytes: int = 0
    damaged: list[FileReport] = field(default_factory=list)

    def add(self, report: FileReport) -> None:
        """Count one more file."""
        if report.damage is not None:
            self.damaged.append(report)
        if report.bytes or report.damage is not None:  # of a log, only damage counts
            self.files += 1
            self.rows += report.rows
            self.bytes += report.bytes


def require_dataset(name: str | None) -> None:
    """Check the name of a table.

    Raises:
        ConfigurationError: There is no such dataset.
    """
    if name is not None and name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ConfigurationError(f"there is no dataset {name!r}; the datasets are {known}")


def verified_by_service(
    client: tickflight.Client, dataset: str | None, show: Callable[[int, int], None]
) -> Verified:
    """Have the service read every file of its lake, or of one table.

    Args:
        client: With a key that may.
        dataset: The table; None is all.
        show: Called with the files read so far, and those left.

    Raises:
        TickflightError: The service refused, failed, or went away.
    """
    found = Verified()
    order: dict[str, Any] = {} if dataset is None else {"dataset": dataset}
    while True:
        slice_ = client.action("verify", order)
        order["before"] = slice_["before"]
        found.files += slice_["files"]
        found.rows += slice_["rows"]
        found.bytes += slice_["bytes"]
        found.damaged += map(FileReport.from_json, slice_["damaged"])
        show(found.files, slice_["left"])
        if not slice_["left"]:
            return found


def verified_here(lake: Path, dataset: str | None, show: Callable[[int, int], None]) -> Verified:
    """Read every file of a lake, or of one table, changing nothing; see ``verified_by_service``.

    Raises:
        TickflightdError: The disk refuses.
    """
    os.nice(NICENESS)
    found = Verified()
    try:
        for report in _reports(lake, dataset):
            found.add(report)
            show(found.files, 0)
    except (LakeError, OSError) as error:
        raise TickflightdError(str(error)) from error
    return found


def _reports(lake: Path, dataset: str | None) -> Iterator[FileReport]:
    for name, about in DATASETS.items():
        if dataset in (None, name) and table_root(lake, about).is_dir():
            yield from scrub(ScrubTask(str(lake), name))
