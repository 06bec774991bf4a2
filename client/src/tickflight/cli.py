"""The command ``tickflight``: a look at the market from a shell.

Exit codes: 0 done, 1 the server could not or would not, 2 wrong usage or configuration. ``status``
exits with 1 also when a part of the service is in trouble, so that a script can wait or warn.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import tickflight
from tickflight.bars import add_bars
from tickflight.client import DEFAULT_TIMEOUT_SECONDS, Client
from tickflight.completeness import add_coverage, add_gaps
from tickflight.connection import Connection
from tickflight.errors import ConfigurationError, TickflightError
from tickflight.exporting import add_export
from tickflight.screen import (
    DONE,
    FAILED,
    MISUSED,
    Answer,
    add_format,
    completeness,
    positive,
    rows_text,
    screen_table,
    to_seconds,
)
from tickflight.settings import read_env_file, resolve
from tickflight.tables import Format, byte_size, printable
from tickflight.tail import add_tail

_INSTANT_OPTIONS: Final = frozenset({"--from", "--to", "--start", "--end"})
_AGO: Final = re.compile(r"-\d+[smhd]")
_EPILOG: Final = """\
The API key is read from TICKFLIGHT_API_KEY, from .env in the working directory, or from the key
file of a service on this machine (TICKFLIGHT_DATA_DIR, default ./data). There is no option for it:
what stands on a command line can be read by every user of the machine and stays in the history.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    answer = Answer("")
    options = _parser().parse_args(_with_instants(sys.argv[1:] if arguments is None else arguments))
    try:
        with _connect(options.uri) as client:
            answer = options.run(client, options)
        if answer.text:
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


def _with_instants(arguments: Sequence[str]) -> list[str]:
    """Tie instants such as -7d to their options: on their own they look like options."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] in _INSTANT_OPTIONS and _AGO.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


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
    latest.add_argument("--limit", type=positive, default=10, help="rows per symbol (10)")
    latest.add_argument("--dataset", default="ticks", help="ticks, quotes, depth, … (ticks)")
    add_format(latest)
    latest.set_defaults(run=_latest)

    symbols = commands.add_parser("symbols", help="what the server holds")
    symbols.add_argument("--dataset", help="this one alone")
    add_format(symbols)
    symbols.set_defaults(run=_symbols)

    status = commands.add_parser(
        "status", help="how the server and its sources are; exits with 1 when one is in trouble"
    )
    status.add_argument("--json", action="store_true", help="the server's whole answer")
    status.set_defaults(run=_status)

    add_tail(commands.add_parser("tail", help="rows as they come; Ctrl-C ends it"))
    add_bars(commands.add_parser("bars", help="open, high, low, close and volume of intervals"))
    add_gaps(commands.add_parser("gaps", help="which rows are missing, and why"))
    add_coverage(commands.add_parser("coverage", help="how complete symbols are, day by day"))
    add_export(commands.add_parser("export", help="rows into a Parquet, CSV or Arrow file"))
    return parser


def _connect(uri: str | None) -> Client:
    environment = read_env_file(Path(".env")) | os.environ
    return Client(Connection(resolve(uri, None, environment)), timeout=DEFAULT_TIMEOUT_SECONDS)


def _latest(client: Client, options: argparse.Namespace) -> Answer:
    result = client.latest(options.symbols, dataset=options.dataset, limit=options.limit)
    text = rows_text(result.schema.names, result.arrow().to_pylist(), options.format)
    if options.format is not Format.TABLE:
        return Answer(text)
    return Answer("\n".join(filter(None, (text, completeness(result.coverage)))))


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
    return Answer(rows_text(["dataset", "symbol", "rows", "first", "last"], rows, options.format))


def _status(client: Client, options: argparse.Namespace) -> Answer:
    status = client.status()
    code = FAILED if status.troubled else DONE
    if options.json:
        return Answer(json.dumps(dict(status.raw), indent=2), code)
    services = [(one.name, one.state, to_seconds(one.since), one.detail) for one in status.services]
    datasets = [(one.name, one.rows, byte_size(one.bytes)) for one in status.datasets]
    parts = [f"{client.uri}  version {status.version or 'unknown'}"]
    parts.append(screen_table(["service", "state", "since", "detail"], services))
    if datasets:
        parts.append(screen_table(["dataset", "rows", "size"], datasets))
    # Once more and whole: a table on a narrow screen cuts the sentence that matters.
    troubles = [printable(f"{one.name} is {one.state}: {one.detail}") for one in status.troubled]
    if troubles:
        parts.append("\n".join(troubles))
    return Answer("\n\n".join(parts), code)


def _complain(error: TickflightError, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"tickflight: {line}", file=sys.stderr)  # noqa: T201 - the complaint
    return code


if __name__ == "__main__":
    sys.exit(main())
