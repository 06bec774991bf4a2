"""``tickflightd ingest …``: one source alone, writing to the Flight server."""

from pathlib import Path

import rich_click as click

from tickflightd.cli.files import about_ticks, errors_of_ingest, mapping_of
from tickflightd.cli.shared import load_settings, role_settings, supervised


@click.group()
def ingest() -> None:
    """Run one source alone, writing to the Flight server of TICKFLIGHT_FLIGHT_URI."""


@ingest.command()
@supervised
def demo(supervisor: int | None) -> None:
    """Make up a market in real time."""
    settings = role_settings(supervisor)
    from tickflightd import ingest_process

    ingest_process.run("demo", settings)


@ingest.command()
@supervised
def tastytrade(supervisor: int | None) -> None:
    """Follow the feed of the tastytrade account of TICKFLIGHT_TT_SECRET and TICKFLIGHT_TT_REFRESH.

    Futures in TICKFLIGHT_SYMBOLS are followed by their front month.
    """
    settings = role_settings(supervisor)
    from tickflightd import tastytrade_process

    tastytrade_process.run(settings)


@ingest.command()
@about_ticks
@click.option(
    "--speed",
    type=float,
    default=1.0,
    show_default=True,
    help="So many times as fast as it happened; 0: as fast as possible.",
)
def replay(
    *,
    files: tuple[Path, ...],
    symbol: str,
    contract: str | None,
    pairs: tuple[str, ...],
    timezone: str | None,
    speed: float,
) -> None:
    """Play FILES of ticks as if they were live: Parquet, CSV, Arrow IPC or Feather.

    Rows come in the order of ts_event and as far apart as they were, on a clock that begins now and
    runs SPEED times as fast as ours. They are marked SYNTHETIC, so they never get into a lake that
    holds real rows of the symbol. Columns are found as `import ticks` finds them.
    """
    from ingest.ports import SystemClock
    from ingest.replay import ReplaySource, open_tape
    from tickflightd import ingest_process, logs
    from tickflightd.cli.progress import showing_replay

    mapping = mapping_of(pairs)
    settings = load_settings()
    logs.configure("ingest replay", level=settings.log_level, secrets=settings.secrets)
    with errors_of_ingest(), showing_replay() as screen:
        tape = open_tape(
            files,
            symbol=symbol,
            contract=contract,
            mapping=mapping,
            timezone=timezone,
            report=screen.reading,
        )
        source = ReplaySource(tape, speed=speed, clock=SystemClock(), report=screen.playing)
        ingest_process.play(source, settings)
    untimed = f"; {tape.untimed:,} rows without a time left out" if tape.untimed else ""
    click.echo(f"{source.rows:,} of {tape.rows:,} rows replayed as {symbol}{untimed}")
