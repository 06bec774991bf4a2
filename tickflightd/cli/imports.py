"""``tickflightd import …``: files into the running service."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from tickflightd.cli.files import about_ticks, errors_of_ingest, mapping_of
from tickflightd.cli.shared import json_option, load_settings, print_json

if TYPE_CHECKING:
    from ingest.files import ImportReport


@click.group("import")
def imports() -> None:
    """Import files into the running service, each content once."""


@imports.command()
@about_ticks
@json_option
def ticks(
    *,
    files: tuple[Path, ...],
    symbol: str,
    contract: str | None,
    pairs: tuple[str, ...],
    timezone: str | None,
    as_json: bool,
) -> None:
    """Import FILES of ticks: Parquet, CSV (plain, gzip, zstd), Arrow IPC or Feather.

    Columns are found by name: ts_event, price and size must be there; ts_recv, bid, ask, side,
    exchange and condition may. All of it is durable and visible when the command returns; a file
    that is in already is left alone, one that was cut off goes on where it stopped.
    """
    from ingest.files import import_ticks
    from tickflightd import logs
    from tickflightd.cli.progress import showing_progress
    from tickflightd.connection import connected

    mapping = mapping_of(pairs)
    settings = load_settings()
    logs.configure("import", level=settings.log_level, secrets=settings.secrets)
    with errors_of_ingest(), connected(settings) as client, showing_progress() as progress:
        reports = import_ticks(
            client,
            files,
            symbol=symbol,
            contract=contract,
            mapping=mapping,
            timezone=timezone,
            progress=progress,
        )
    for report in reports:
        click.echo(_sentence(report), err=as_json)
    if as_json:
        print_json({"files": [_fields(report) for report in reports]})


def _sentence(report: "ImportReport") -> str:
    told = [f"{report.path}: {report.outcome.value}, {report.rows:,} rows"]
    if report.first_row:
        told.append(f"{report.rows - report.first_row:,} of them now")
    counts = {
        "quarantined": report.quarantined,
        "duplicates": report.duplicates,
        "times cut to µs": report.truncated,
    }
    told += [f"{count:,} {what}" for what, count in counts.items() if count]
    if report.ignored:
        told.append(f"columns not used: {', '.join(report.ignored)}")
    return ", ".join(told) + (f" ({report.note})" if report.note else "")


def _fields(report: "ImportReport") -> dict[str, object]:
    return {
        "path": str(report.path),
        "outcome": report.outcome.value,
        "rows": report.rows,
        "first_row": report.first_row,
        "quarantined": report.quarantined,
        "duplicates": report.duplicates,
        "truncated": report.truncated,
        "mapped": dict(report.mapped),
        "ignored": list(report.ignored),
        "note": report.note,
    }
