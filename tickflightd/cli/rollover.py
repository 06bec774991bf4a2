"""``tickflightd rollover``: what is finished goes into the lake now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich_click as click

from tickflightd.cli.shared import json_option, load_settings, print_json


@click.command()
@click.option("--all", "everything", is_flag=True, help="Close the running hour first.")
@json_option
def rollover(*, everything: bool, as_json: bool) -> None:
    """Bring finished hours into the lake now, instead of when their turn comes.

    Returns once they are there, durable and verified. Their rows stay in memory as long as they
    would have otherwise.
    """
    from tickflightd.connection import connected
    from tickflightd.rollover import rolled_over

    with connected(load_settings()) as client, _showing_progress() as show:
        done = rolled_over(client, everything=everything, show=show)
    if as_json:
        print_json({"segments": done.segments, "rows": done.rows, "through": done.through})
    elif done.segments:
        click.echo(f"{done.rows:,} rows of {done.segments} finished journal files are in the lake")
    else:
        click.echo("nothing to do: the lake has every finished hour")


@contextmanager
def _showing_progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("rows into the lake", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
