"""A progress bar for imports, where there is a terminal to show it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ingest.files import ImportProgress


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
    # On stderr: stdout is the answer, which a program may read.
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def show(news: ImportProgress) -> None:
            of = (news.path, news.stage)
            if of not in tasks:
                description = f"{news.stage.value} {news.path.name}"
                tasks[of] = bars.add_task(description, total=news.bytes_total)
            bars.update(tasks[of], completed=news.bytes_done)

        yield show
