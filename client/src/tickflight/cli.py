"""The command ``tickflight``: a look at the market from a shell.

Exit codes: 0 done, 1 the server could not or would not, 2 wrong usage or configuration. ``status``
exits with 1 also when a part of the service is in trouble, so that a script can wait or warn.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import tickflight
from tickflight.client import DEFAULT_TIMEOUT_SECONDS, Client
from tickflight.connection import Connection
from tickflight.coverage import Coverage, CoverageState
from tickflight.errors import ConfigurationError, TickflightError
from tickflight.settings import read_env_file, resolve
from tickflight.tables import Format, Heading, byte_size, csv_text, json_lines, printable, table

DONE: Final = 0
FAILED: Final = 1
MISUSED: Final = 2

_UNBOUNDED_COLUMNS: Final = 100_000  # output that goes to a program is not cut to a screen
_EPILOG: Final = """\
The API key is read from TICKFLIGHT_API_KEY, from .env in the working directory, or from the key
file of a service on this machine (TICKFLIGHT_DATA_DIR, default ./data). There is no option for it:
what stands on a command line can be read by every user of the machine and stays in the history.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints, and its exit code."""

    text: str
    code: int = DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with _connect(options.uri) as client:
            answer: Answer = options.run(client, options)
        print(answer.text, flush=True)  # noqa: T201 - the answer
    except ConfigurationError as error:
        return _complain(error, MISUSED)
    except TickflightError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain when it flushes again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tickflight",
        description="Live and historical market data from a tickflight server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=tickflight.__version__)
    parser.add_argument("--uri", help="the server; default TICKFLIGHT_FLIGHT_URI")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    latest = commands.add_parser("latest", help="the newest rows of symbols, oldest first")
    latest.add_argument("symbols", nargs="+", metavar="SYMBOL")
    latest.add_argument("--limit", type=_positive, default=10, help="rows per symbol (10)")
    latest.add_argument("--dataset", default="ticks", help="ticks, quotes, depth, … (ticks)")
    _add_format(latest)
    latest.set_defaults(run=_latest)

    symbols = commands.add_parser("symbols", help="what the server holds")
    symbols.add_argument("--dataset", help="this one alone")
    _add_format(symbols)
    symbols.set_defaults(run=_symbols)

    status = commands.add_parser(
        "status", help="how the server and its sources are; exits with 1 when one is in trouble"
    )
    status.add_argument("--json", action="store_true", help="the server's whole answer")
    status.set_defaults(run=_status)
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        type=Format,
        choices=list(Format),
        default=Format.TABLE,
        metavar="{" + ",".join(Format) + "}",
        help="table for people, csv or json (one object a line) for programs",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _connect(uri: str | None) -> Client:
    environment = read_env_file(Path(".env")) | os.environ
    return Client(Connection(resolve(uri, None, environment)), timeout=DEFAULT_TIMEOUT_SECONDS)


def _latest(client: Client, options: argparse.Namespace) -> Answer:
    result = client.latest(options.symbols, dataset=options.dataset, limit=options.limit)
    text = _rows(result.schema.names, result.arrow().to_pylist(), options.format)
    if options.format is not Format.TABLE:
        return Answer(text)
    return Answer("\n".join(filter(None, (text, _completeness(result.coverage)))))


def _symbols(client: Client, options: argparse.Namespace) -> Answer:
    rows: list[dict[str, object]] = [
        {
            "dataset": one.dataset,
            "symbol": one.symbol,
            "rows": one.rows,
            "first": one.first,
            "last": one.last,
        }
        for one in client.symbols(options.dataset)
    ]
    return Answer(_rows(["dataset", "symbol", "rows", "first", "last"], rows, options.format))


def _status(client: Client, options: argparse.Namespace) -> Answer:
    status = client.status()
    code = FAILED if status.troubled else DONE
    if options.json:
        return Answer(json.dumps(dict(status.raw), indent=2), code)
    services = [
        (one.name, one.state, _to_seconds(one.since), one.detail) for one in status.services
    ]
    datasets = [(one.name, one.rows, byte_size(one.bytes)) for one in status.datasets]
    parts = [f"{client.uri}  version {status.version or 'unknown'}"]
    parts.append(_table(["service", "state", "since", "detail"], services))
    if datasets:
        parts.append(_table(["dataset", "rows", "size"], datasets))
    # Once more and whole: a table on a narrow screen cuts the sentence that matters.
    troubles = [printable(f"{one.name} is {one.state}: {one.detail}") for one in status.troubled]
    if troubles:
        parts.append("\n".join(troubles))
    return Answer("\n\n".join(parts), code)


def _to_seconds(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M:%SZ}"


def _rows(names: list[str], rows: list[dict[str, object]], form: Format) -> str:
    values = [[row[name] for name in names] for row in rows]
    match form:
        case Format.TABLE:
            return _table(names, values)
        case Format.CSV:
            return csv_text(names, values)
        case Format.JSON:
            return json_lines(rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    to_screen = sys.stdout.isatty()
    bounded = to_screen or os.environ.get("COLUMNS")
    width = shutil.get_terminal_size().columns if bounded else _UNBOUNDED_COLUMNS
    colour = to_screen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    heading = Heading.BOLD if colour else Heading.PLAIN
    return table(names, rows, width=width, heading=heading)


def _completeness(coverage: Coverage) -> str:
    """What is to be known about the rows: nothing is said of those that were verified."""
    notes = []
    for symbol, one in coverage.symbols.items():
        if one.state is not CoverageState.VERIFIED:
            gaps = f", {one.gap_count} gaps" if one.gap_count else ""
            bad = f", {one.quarantined} quarantined" if one.quarantined else ""
            notes.append(f"{symbol}: {one.state}{gaps}{bad}")
    return "\n".join(notes)


def _complain(error: TickflightError, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"tickflight: {line}", file=sys.stderr)  # noqa: T201 - the complaint
    return code


if __name__ == "__main__":
    sys.exit(main())
