"""Progress bars for imports and replays, where there is a terminal to show them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ingest.files import ImportProgress
from ingest.replay import ReplayProgress


@contextmanager
def showing_progress() -> Iterator[Callable[[ImportProgress], None]]:
    """Show one bar a file and stage on stderr; yields what to call with news."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _bars(*columns) as bars:
        tasks = {}

        def show(news: ImportProgress) -> None:
            of = (news.path, news.stage)
            if of not in tasks:
                description = f"{news.stage.value} {news.path.name}"
                tasks[of] = bars.add_task(description, total=news.bytes_total)
            bars.update(tasks[of], completed=news.bytes_done)

        yield show


@contextmanager
def showing_replay() -> Iterator["ReplayScreen"]:
    """Show how far a replay is, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with _bars(*columns) as bars:
        yield ReplayScreen(bars)


class ReplayScreen:
    """Takes news of a replay."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._reading: dict[Path, TaskID] = {}
        self._playing: TaskID | None = None

    def reading(self, path: Path, rows: int) -> None:
        """Show that so many rows of a file were read through."""
        if path not in self._reading:
            self._reading[path] = self._bars.add_task(f"reading {path.name}", total=None)
        self._bars.update(self._reading[path], completed=rows)

    def playing(self, news: ReplayProgress) -> None:
        """Show which instant the replay has come to."""
        if self._playing is None:
            self._playing = self._bars.add_task("playing", total=news.rows_total)
        at = datetime.fromtimestamp(news.at / 1_000_000, UTC)
        self._bars.update(
            self._playing, completed=news.rows, description=f"playing {at:%Y-%m-%d %H:%M:%SZ}"
        )


def _bars(*columns: ProgressColumn) -> Progress:
    # On stderr: stdout is the answer, which a program may read.
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
