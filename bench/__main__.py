"""Measure the running service: ``python -m bench [ingest] [latest] …``, or ``soak``."""

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from bench import soak
from bench.bulk import loading, raw_range, restart
from bench.burst import burst
from bench.disturbance import Watch
from bench.live import live
from bench.measure import Measure
from bench.measures import ingest, latest
from bench.report import print_table, write_page
from bench.rollover import rollover
from bench.year import year

REST_SECONDS = 60.0
"""After which the load average of a minute has forgotten most of ours."""
SUITES: Mapping[str, Callable[[Path, argparse.Namespace], Iterator[Measure]]] = {
    "ingest": lambda home, options: ingest(home, options.seconds),
    "latest": lambda home, options: latest(home, options.calls),
    "live": lambda home, options: live(home, options.seconds),
    "range": lambda home, options: raw_range(home, options.rows),
    "import": lambda home, options: loading(home, options.rows),
    "restart": lambda home, options: restart(home, options.rows),
    "rollover": lambda home, options: rollover(home, options.rows),
    "year": lambda home, options: year(home, options.ticks),
    "burst": lambda home, options: burst(home, options.seconds),
}


def main() -> None:
    """Run what the command line names; JSON lines on stdout, a table on stderr."""
    parser = _parser()
    options = parser.parse_args()
    if options.names == ["soak"]:
        soak.run(options.minutes, options.directory)
        return
    unknown = set(options.names) - set(SUITES)
    if unknown:
        parser.error(f"there is no {min(unknown)}; there are {', '.join(SUITES)}, or soak alone")
    measures, watch = [], Watch()
    for measure in _measured(options):
        print(json.dumps({**asdict(measure), "ratio": measure.ratio}), flush=True)
        measures.append(measure)
    print_table(measures)
    if options.write is not None:
        time.sleep(REST_SECONDS)
        write_page(options.write, measures, _command(options), watch.seen())


def _command(options: argparse.Namespace) -> str:
    """Return what was typed, without the places it names."""
    sizes = ("seconds", "calls", "rows", "ticks")
    return shlex.join(
        ["python", "-m", "bench", *options.names]
        + [f"--{size}={getattr(options, size)}" for size in sizes]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join((*SUITES, "soak")))
    parser.add_argument("--seconds", type=float, default=20.0, help="of ingest, live and burst")
    parser.add_argument("--calls", type=int, default=2_000, help="of latest")
    parser.add_argument(
        "--rows", type=int, default=3_000_000, help="of range, import, restart and rollover"
    )
    parser.add_argument(
        "--ticks", type=int, default=100_000, help="a day, of year: a million is a busy future"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of soak")
    parser.add_argument("--directory", type=Path, default=None, help="where the data goes")
    parser.add_argument("--write", type=Path, default=None, help="a page for the documentation")
    return parser


def _measured(options: argparse.Namespace) -> Iterator[Measure]:
    """Run each suite in a directory of its own."""
    for name in options.names or SUITES:
        with tempfile.TemporaryDirectory(dir=options.directory) as home:
            yield from SUITES[name](Path(home), options)


if __name__ == "__main__":
    main()
