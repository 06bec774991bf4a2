"""The root of the command line, and the commands that run the service."""

from typing import TYPE_CHECKING

import rich_click as click

from tickflightd.cli.doctor import doctor
from tickflightd.cli.imports import imports
from tickflightd.cli.journal import journal
from tickflightd.cli.keys import keys
from tickflightd.cli.lake import lake
from tickflightd.cli.rollover import rollover
from tickflightd.cli.shared import Command, Commands, load_settings

if TYPE_CHECKING:
    from tickflightd.settings import Settings


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tickflight-server", message="tickflightd %(version)s")
def main() -> None:
    """Keep one trustworthy copy of your market data and serve it as Apache Arrow.

    Settings come from TICKFLIGHT_… variables, then from .env in the working directory.
    """


main.add_command(doctor)
main.add_command(imports)
main.add_command(journal)
main.add_command(keys)
main.add_command(rollover)
main.add_command(lake)


@main.command()
def up() -> None:
    """Run the whole service, every role supervised; Ctrl-C stops it."""
    from tickflightd import up as service

    service.up(load_settings())


def _supervised(command: Command) -> Command:
    """Add the option by which ``up`` tells its roles whom to die with."""
    return click.option("--supervisor", type=int, hidden=True)(command)


def _role_settings(supervisor: int | None) -> "Settings":
    from tickflightd import processes, settings

    if supervisor is None:
        return load_settings()
    processes.die_with(supervisor)
    return settings.load()  # the supervisor has made its remarks


@main.command()
@_supervised
def flight(supervisor: int | None) -> None:
    """Run the Flight server alone; it owns the data directory."""
    settings = _role_settings(supervisor)
    from tickflightd import flight_process

    flight_process.run(settings)


@main.command()
@click.argument("source", type=click.Choice(["demo"]))
@_supervised
def ingest(source: str, supervisor: int | None) -> None:
    """Run one SOURCE alone, writing to the Flight server of TICKFLIGHT_FLIGHT_URI.

    demo is a synthetic market in real time.
    """
    settings = _role_settings(supervisor)
    from tickflightd import ingest_process

    ingest_process.run(source, settings)
