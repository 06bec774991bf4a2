"""Measure the running service: ``python -m bench [ingest] [latest]`` or ``soak --minutes 30``."""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import soak
from bench.measures import Measure, ingest, latest
from bench.service import Service, running


def main() -> None:
    """Run what the command line names; JSON lines on stdout, a table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ingest|latest")
    parser.add_argument("--seconds", type=float, default=20.0, help="of ingest, each batch size")
    parser.add_argument("--calls", type=int, default=2_000, help="of latest")
    parser.add_argument("--minutes", type=float, default=30.0, help="of soak")
    parser.add_argument("--directory", type=Path, default=None, help="where the data goes")
    args = parser.parse_args()
    if args.names == ["soak"]:
        soak.run(args.minutes, args.directory)
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as place:
        directory = Path(place)
        suites: dict[str, Callable[[Service], Iterator[Measure]]] = {
            "ingest": lambda service: ingest(service, args.seconds, directory),
            "latest": lambda service: latest(service, args.calls),
        }
        unknown = set(args.names) - set(suites)
        if unknown:
            parser.error(f"there is no {min(unknown)}; there are {', '.join(suites)}")
        measures = []
        for name in args.names or suites:
            home = directory / name
            home.mkdir()
            with running(home) as service:
                for measure in suites[name](service):
                    print(json.dumps({**asdict(measure), "ratio": measure.ratio}), flush=True)
                    measures.append(measure)
    _print_table(measures)


def _print_table(measures: list[Measure]) -> None:
    title = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    table = Table(title=title)
    for column in ("measured", "ours", "floor", "ratio", "details"):
        table.add_column(column, justify="left" if column in ("measured", "details") else "right")
    for measure in measures:
        details = ", ".join(f"{name} {value:,.2f}" for name, value in measure.details.items())
        table.add_row(
            measure.name,
            f"{measure.value:,.2f} {measure.unit}",
            f"{measure.floor:,.2f} ({measure.floor_is})",
            f"{measure.ratio:.2f}",
            details,
        )
    Console(file=sys.stderr).print(table)


if __name__ == "__main__":
    main()
