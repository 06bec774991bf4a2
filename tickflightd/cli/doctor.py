"""``tickflightd doctor``: whether or not the service runs."""

from itertools import chain
from typing import TYPE_CHECKING, Final

import rich_click as click

from tickflightd.cli.shared import json_option, print_json
from tickflightd.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickflightd.doctor import Finding

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option(
    "--tastytrade", is_flag=True, help="Log in to the configured tastytrade account, too."
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, tastytrade: bool, as_json: bool) -> None:
    """Examine this machine, the settings and the service, and say what to do.

    Exit code 0: nothing worse than a warning; 1: something does not work.
    """
    from storage.ports import SystemClock
    from tickflightd.doctor import Level, examine, worst

    findings = []
    for finding in chain(examine(SystemClock()), _feed() if tastytrade else ()):
        findings.append(finding)
        if not as_json:
            _print(finding)
    level = worst(findings)
    if as_json:
        print_json({"level": level.value, "findings": [_fields(one) for one in findings]})
    ctx.exit(EXIT_FAILED if level is Level.FAIL else EXIT_DONE)


def _feed() -> "Iterator[Finding]":
    from tickflightd.doctor import feeds

    return feeds.tastytrade()


def _print(finding: "Finding") -> None:
    level = click.style(f"{finding.level.value:4}", fg=_COLOURS[finding.level.value])
    click.echo(f"{level}  {finding.check:11}  {finding.text}")
    if finding.advice:
        click.echo(f"{'':19}→ {finding.advice}")


def _fields(finding: "Finding") -> dict[str, object]:
    return {
        "check": finding.check,
        "level": finding.level.value,
        "text": finding.text,
        "advice": finding.advice,
    }
