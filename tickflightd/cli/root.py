"""The root of the command line, and the commands that run the service."""

import rich_click as click

from tickflightd.cli.doctor import doctor
from tickflightd.cli.imports import imports
from tickflightd.cli.ingest import ingest
from tickflightd.cli.journal import journal
from tickflightd.cli.keys import keys
from tickflightd.cli.lake import lake
from tickflightd.cli.rollover import rollover
from tickflightd.cli.shared import Commands, load_settings, role_settings, supervised


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
main.add_command(ingest)
main.add_command(journal)
main.add_command(keys)
main.add_command(rollover)
main.add_command(lake)


@main.command()
def up() -> None:
    """Run the whole service, every role supervised; Ctrl-C stops it."""
    from tickflightd import up as service

    service.up(load_settings())


@main.command()
@supervised
def flight(supervisor: int | None) -> None:
    """Run the Flight server alone; it owns the data directory."""
    settings = role_settings(supervisor)
    from tickflightd import flight_process

    flight_process.run(settings)


@main.command()
@supervised
def mirror(supervisor: int | None) -> None:
    """Keep the newest tick, quote and gamma of each symbol in the Redis of TICKFLIGHT_REDIS_URL.

    A hash each: tickflight:ticks:MNQ, tickflight:quotes:MNQ, tickflight:gex:NQ_NDX.
    """
    settings = role_settings(supervisor)
    from tickflightd import mirror_process

    mirror_process.run(settings)
