"""What commands that read files of ticks have in common."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from tickflightd.cli.shared import Command
from tickflightd.errors import ConfigurationError, ImportFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator


def about_ticks(command: Command) -> Command:
    """Add the files, and what has to be known to read them as ticks."""
    added = (
        click.argument(
            "files",
            nargs=-1,
            required=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
        ),
        click.option("--symbol", required=True, help="What people will ask for, such as SPY."),
        click.option("--contract", help="What traded, where it differs from the symbol."),
        click.option(
            "--map",
            "pairs",
            multiple=True,
            metavar="FIELD=COLUMN",
            help="Such as price=px; repeat.",
        ),
        click.option(
            "--tz", "timezone", help="Zone of times that name none, such as America/New_York."
        ),
    )
    for add in reversed(added):
        command = add(command)
    return command


def mapping_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return columns by field, out of ``FIELD=COLUMN``."""
    mapping = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise click.BadParameter(f"{pair!r}: write FIELD=COLUMN, such as price=px")
        mapping[field] = column
    return mapping


@contextmanager
def errors_of_ingest() -> "Iterator[None]":
    """Turn errors of ``ingest`` about options and files into ours."""
    from ingest import errors as theirs

    try:
        yield
    except (theirs.ConfigurationError, theirs.ColumnMappingError) as error:
        raise ConfigurationError(str(error)) from error
    except theirs.IngestError as error:
        raise ImportFailedError(str(error)) from error
