"""``tickflightd lake …``: how the lake is, and what is otherwise done by itself, done now."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from tickflightd.cli.shared import Command, json_option, load_settings, print_json
from tickflightd.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from tickflightd.lake import Verified


@click.group()
def lake() -> None:
    """Look at the lake and keep it up.

    The service does all of this by itself: it joins, drops and cleans up once a day, and verifies
    a slice of all files every hour.
    """


def _dataset_option(command: Command) -> Command:
    return click.option("--dataset", metavar="NAME", help="One table; all, unless given.")(command)


def _dry_run_option(command: Command) -> Command:
    return click.option("--dry-run", is_flag=True, help="Only say what would be done.")(command)


@lake.command()
@json_option
def status(*, as_json: bool) -> None:
    """Say how the lake is doing, and how large it is."""
    answer = _asked("lake.status", {})
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['state']} since {_instant(answer['since'])}  {answer['detail']}".rstrip())
    if answer["verified_since"]:
        click.echo(f"every file was verified at {_instant(answer['verified_since'])} or later")
    for one in answer["damaged"]:
        click.echo(_damage(one))
    for table in answer["tables"]:
        click.echo(
            f"{table['dataset']}  {table['files']:,} files  {table['rows']:,} rows"
            f"  {_size(table['bytes'])}  {_day(table['first'])} to {_day(table['last'])}"
        )


@lake.command()
@_dataset_option
@_dry_run_option
@json_option
def compact(*, dataset: str | None, dry_run: bool, as_json: bool) -> None:
    """Join the files of each past symbol, date and source into one."""
    answer = _asked("compact", _order(dataset, dry_run=dry_run))

    def line(one: Mapping[str, Any]) -> str:
        became = "" if one["bytes"] is None else f" → {_size(one['bytes'])}"
        return f"{one['files']:,} files  {_size(one['bytes_before'])}{became}"

    _print(answer, "joined", line, as_json=as_json)


@lake.command()
@_dataset_option
@_dry_run_option
@json_option
def retain(*, dataset: str | None, dry_run: bool, as_json: bool) -> None:
    """Drop the dates that are older than TICKFLIGHT_RETENTION."""
    answer = _asked("retain", _order(dataset, dry_run=dry_run))
    _print(answer, "dropped", lambda one: _size(one["bytes"]), as_json=as_json)


@lake.command()
@_dataset_option
@_dry_run_option
@json_option
def vacuum(*, dataset: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove files from the disk that nobody needs any more.

    They are what was replaced or dropped a day ago or earlier, and what was never finished.
    """
    answer = _asked("vacuum", _order(dataset, dry_run=dry_run))
    if as_json:
        print_json(answer)
        return
    for one in answer["removed"]:
        click.echo(f"{one['dataset']}/{one['path']}  {one['why']}  {_size(one['bytes'])}")
    total = _size(sum(one["bytes"] for one in answer["removed"]))
    verb = "would be removed" if answer["dry_run"] else "removed"
    click.echo(f"{len(answer['removed']):,} files, {total}: {verb}")


@lake.command()
@_dataset_option
@json_option
@click.pass_context
def verify(ctx: click.Context, *, dataset: str | None, as_json: bool) -> None:
    """Read every file of the lake and say which are not as they were written.

    Changes nothing, and works whether or not the service runs. Exit code 1: something is damaged.
    """
    with _showing_progress() as show:
        found = _verified(dataset, show)
    if as_json:
        print_json(_answer(found))
    else:
        for report in found.damaged:
            one = {"dataset": report.dataset, "path": report.path}
            click.echo(_damage({**one, "damage": report.damage, "advice": report.advice}))
        count = f"{len(found.damaged):,} damaged" if found.damaged else "all as they were written"
        click.echo(f"{found.files:,} files, {found.rows:,} rows, {_size(found.bytes)}: {count}")
    ctx.exit(EXIT_FAILED if found.damaged else EXIT_DONE)


@lake.command()
@_dataset_option
@json_option
@click.pass_context
def repair(ctx: click.Context, *, dataset: str | None, as_json: bool) -> None:
    """Make files again that verify has found damaged, as long as what they were made of is there.

    Journal files, and files that were joined, stay for about a day. Exit code 1: some could not be
    made again.
    """
    answer = _asked("repair", {} if dataset is None else {"dataset": dataset})
    if as_json:
        print_json(answer)
    else:
        for one in answer["repaired"]:
            click.echo(f"{one['dataset']}/{one['path']}  made again: {one['became']}")
        for one in answer["left"]:
            click.echo(_damage(one))
        if not answer["repaired"] and not answer["left"]:
            click.echo("nothing to do: no damage is known; `tickflightd lake verify` looks for it")
    ctx.exit(EXIT_FAILED if answer["left"] else EXIT_DONE)


def _verified(dataset: str | None, show: Callable[[int, int], None]) -> "Verified":
    from tickflightd import directory, lake
    from tickflightd.connection import connected

    lake.require_dataset(dataset)
    settings = load_settings()
    runs = directory.is_owned(settings.data_directory, directory.FLIGHT_LOCK)
    if settings.lake_directory.is_dir() and not runs:
        return lake.verified_here(settings.lake_directory, dataset, show)
    with connected(settings) as client:
        return lake.verified_by_service(client, dataset, show)


def _asked(action: str, order: Mapping[str, object]) -> dict[str, Any]:
    from tickflightd.connection import connected

    with connected(load_settings()) as client:
        return client.action(action, order)


def _order(dataset: str | None, *, dry_run: bool) -> dict[str, object]:
    chosen = {} if dataset is None else {"dataset": dataset}
    return {**chosen, "dry_run": dry_run}


def _print(
    answer: Mapping[str, Any],
    done: str,
    line: Callable[[Mapping[str, Any]], str],
    *,
    as_json: bool,
) -> None:
    if as_json:
        print_json(answer)
        return
    found: Sequence[Mapping[str, Any]] = answer[done]
    for one in found:
        place = "  ".join(filter(None, (one["dataset"], one["symbol"], one["date"])))
        click.echo(f"{place}  {one['rows']:,} rows  {line(one)}")
    rows = sum(one["rows"] for one in found)
    verb = f"would be {done}" if answer["dry_run"] else done
    click.echo(f"{len(found):,} dates, {rows:,} rows: {verb}" if found else "nothing to do")


def _answer(found: "Verified") -> dict[str, object]:
    return {
        "ok": not found.damaged,
        "files": found.files,
        "rows": found.rows,
        "bytes": found.bytes,
        "damaged": [report.to_json() for report in found.damaged],
    }


def _damage(one: Mapping[str, Any]) -> str:
    return f"{one['dataset']}/{one['path']}  DAMAGED: {one['damage']}\n  {one['advice']}"


@contextmanager
def _showing_progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("files verified", total=None)
        yield lambda done, left: bar.update(task, completed=done, total=done + left or None)


def _instant(instant: int) -> str:
    return datetime.fromtimestamp(instant / 1_000_000, UTC).isoformat(timespec="seconds")


def _day(instant: int) -> str:
    return _instant(instant)[:10]


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
