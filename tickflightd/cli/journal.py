"""``tickflightd journal …``: works on the data directory itself."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import rich_click as click

from tickflightd.cli.shared import json_option, load_settings, print_json
from tickflightd.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from storage.journal_repair import Repaired
    from storage.journal_rewrite import Lost
    from storage.journal_verify import FileReport


@click.group()
def journal() -> None:
    """Verify and repair the journal: what was acknowledged and is not in the lake yet."""


@journal.command()
@json_option
@click.pass_context
def verify(ctx: click.Context, *, as_json: bool) -> None:
    """Read every record of the journal and say which are not as they were written.

    Changes nothing, and works whether or not the service runs. Exit code 1: something is damaged.
    """
    from tickflightd.journal import ADVICE, verified

    reports = []
    for report in verified(_place()):
        reports.append(report)
        if not as_json:
            click.echo(_line(report))
    damaged = any(report.damage for report in reports)
    if as_json:
        print_json({"ok": not damaged, "files": [_fields(report) for report in reports]})
    elif damaged:
        click.echo(f"tickflightd: {ADVICE}", err=True)
    elif not reports:
        click.echo("there is no journal yet")
    ctx.exit(EXIT_FAILED if damaged else EXIT_DONE)


@journal.command()
@json_option
def repair(*, as_json: bool) -> None:
    """Put a damaged journal in order: keep all that is intact, tell what is lost.

    The service has to be stopped. The journal as it was stays beside the new one; nothing is
    deleted. Lost rows become rows of the dataset gaps.
    """
    from tickflightd import directory
    from tickflightd.journal import repaired

    settings = load_settings()
    done = repaired(directory.prepare(settings.data_directory), settings.lake_directory)
    if as_json:
        print_json(_answer(done))
    else:
        _print(done)


def _place() -> "Path":
    from tickflightd import directory

    return directory.prepare(load_settings().data_directory)


def _line(report: "FileReport") -> str:
    held = f"{report.path.name}  {report.records:,} records  {report.rows:,} rows"
    damage = report.damage
    if damage is None:
        return f"{held}  OK"
    record = "" if damage.record is None else f", record {damage.record}"
    offset = "" if damage.offset is None else f", byte {damage.offset}"
    return f"{held}  DAMAGED{record}{offset}: {damage.detail}"


def _fields(report: "FileReport") -> dict[str, object]:
    damage = report.damage
    return {
        "file": str(report.path),
        "records": report.records,
        "rows": report.rows,
        "ok": damage is None,
        "record": damage and damage.record,
        "byte": damage and damage.offset,
        "detail": damage and damage.detail,
    }


def _print(done: "Repaired") -> None:
    if done.evidence is None:
        click.echo("nothing is damaged, so nothing was changed")
        return
    for report in done.damaged:
        click.echo(_line(report))
    for name in done.left_out:
        click.echo(f"{name}  left out: nothing in it is needed, or can be read")
    for lost in done.lost:
        click.echo(_loss(lost))
    if not done.damaged:
        click.echo("a repair that was cut short is finished now")
    elif not done.lost:
        click.echo("no acknowledged row is known to be lost")
    click.echo(f"the journal as it was: {done.evidence}")


def _loss(lost: "Lost") -> str:
    rows = "an unknown number of" if lost.rows is None else f"{lost.rows:,}"
    span = f"arrived between {_instant(lost.after)} and {_instant(lost.before)}"
    return f"{lost.file}  LOST {rows} rows of {lost.dataset} that {span}; see the dataset gaps"


def _answer(done: "Repaired") -> dict[str, object]:
    return {
        "repaired": done.evidence is not None,
        "evidence": done.evidence and str(done.evidence),
        "damaged": [_fields(report) for report in done.damaged],
        "rewritten": done.rewritten,
        "left_out": done.left_out,
        "rows": done.rows,
        "lost": [
            {
                "file": lost.file,
                "dataset": lost.dataset,
                "rows": lost.rows,
                "after": _instant(lost.after),
                "before": _instant(lost.before),
            }
            for lost in done.lost
        ],
    }


def _instant(instant: int) -> str:
    return datetime.fromtimestamp(instant / 1_000_000, UTC).isoformat(timespec="seconds")
