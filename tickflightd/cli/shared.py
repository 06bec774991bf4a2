"""What all commands have in common: settings, JSON for programs, one sentence for a failure."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from tickflightd.errors import TickflightdError
from tickflightd.processes import require_own_packages

if TYPE_CHECKING:
    from tickflightd.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class Commands(click.RichGroup):
    """A group whose commands end with one sentence and an exit code instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command the words name."""
        try:
            require_own_packages()
            return super().invoke(ctx)
        except TickflightdError as error:
            click.echo(f"tickflightd: {error}", err=True)
            ctx.exit(error.exit_code)


def load_settings() -> "Settings":
    """Read the settings and say which variables have no effect."""
    from tickflightd import settings

    loaded = settings.load()
    for remark in settings.remarks():
        click.echo(f"tickflightd: warning: {remark}", err=True)
    return loaded


def supervised(command: Command) -> Command:
    """Add the option by which ``up`` tells its roles whom to die with."""
    return click.option("--supervisor", type=int, hidden=True)(command)


def role_settings(supervisor: int | None) -> "Settings":
    """Read the settings of a role; one that is supervised dies with its supervisor."""
    from tickflightd import processes, settings

    if supervisor is None:
        return load_settings()
    processes.die_with(supervisor)
    return settings.load()  # the supervisor has made its remarks


def json_option(command: Command) -> Command:
    """Add ``--json``, as the keyword ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def print_json(value: Mapping[str, object]) -> None:
    """Print an answer for a program: one line, the last of stdout."""
    click.echo(json.dumps(value))
