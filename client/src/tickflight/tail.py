"""The command ``tail``: rows as they come, a line each."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, Protocol, final

from tickflight.lines import Lines
from tickflight.screen import Answer, add_format, has_colour, positive, screen_width, to_seconds
from tickflight.tables import Format, csv_text, json_lines, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import pyarrow as pa

    from tickflight.client import Client
    from tickflight.coverage import Gap
    from tickflight.live import Live

POLL_SECONDS: Final = 0.2
"""How often the main thread looks whether the reader has ended; an interrupt it hears at once."""


def add_tail(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tail``."""
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL")
    parser.add_argument("--dataset", default="ticks", help="ticks, quotes, depth, gex, … (ticks)")
    parser.add_argument(
        "--start", metavar="WHEN", help="begin with what there is since then: -5m, ISO 8601"
    )
    parser.add_argument("--limit", type=positive, metavar="ROWS", help="end after so many rows")
    add_format(parser)
    parser.set_defaults(run=run_tail)


def run_tail(client: Client, options: argparse.Namespace) -> Answer:
    """Print rows until the limit or Ctrl-C, which is how one usually ends this."""
    printer = _printer(options.format, options.dataset)
    with client.live(
        options.symbols,
        dataset=options.dataset,
        start=options.start,
        on_gap=lambda gap: printer.notice(gap_sentence(gap)),
    ) as live:
        _follow(live, printer, options.limit)
    return Answer("")


def gap_sentence(gap: Gap) -> str:
    """Return what there is to say of a gap that has opened or closed."""
    whose = f"{gap.symbol or 'all symbols'} of {gap.source}"
    if gap.end is None:
        return f"rows are missing: {whose} since {to_seconds(gap.start)} ({gap.reason})"
    span = f"{to_seconds(gap.start)} to {to_seconds(gap.end)}"
    if gap.state == "filled":
        return f"rows have come after all: {whose}, {span}"
    return f"rows are missing: {whose}, {span} ({gap.reason})"


def _follow(live: Live, printer: _Printer, limit: int | None) -> None:
    """Read in a thread of its own: one that waits for the network hears no interrupt."""
    failures: list[Exception] = []

    def read() -> None:
        try:
            for batch in _limited(live, limit):
                printer.rows(batch)
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    reader = threading.Thread(target=read, name="tickflight-tail", daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(POLL_SECONDS)
    except KeyboardInterrupt:
        live.close()
        reader.join()
        return
    if failures:
        raise failures[0]


def _limited(live: Live, limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in live:
        if left is None:
            yield batch
            continue
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


class _Printer(Protocol):
    """Prints rows, and tells people what else there is to know."""

    def rows(self, batch: pa.RecordBatch) -> None: ...

    def notice(self, text: str) -> None: ...


def _printer(form: Format, dataset: str) -> _Printer:
    match form:
        case Format.TABLE:
            return _Screen(dataset)
        case Format.CSV:
            return _Csv()
        case Format.JSON:
            return _Json()


@final
class _Screen:
    def __init__(self, dataset: str) -> None:
        self._lines = Lines(dataset, has_colour=has_colour())

    def rows(self, batch: pa.RecordBatch) -> None:
        _print("\n".join(self._lines.of(batch, screen_width())))

    def notice(self, text: str) -> None:
        _print(self._lines.notice(text))


@final
class _Csv:
    def __init__(self) -> None:
        self._is_headed = False

    def rows(self, batch: pa.RecordBatch) -> None:
        text = csv_text(batch.schema.names, (list(row.values()) for row in batch.to_pylist()))
        _print(text.partition("\n")[2] if self._is_headed else text)
        self._is_headed = True

    def notice(self, text: str) -> None:
        _warn(text)


@final
class _Json:
    def rows(self, batch: pa.RecordBatch) -> None:
        _print(json_lines(batch.to_pylist()))

    def notice(self, text: str) -> None:
        _warn(text)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the answer


def _warn(text: str) -> None:
    # Programs read rows from stdout, and nothing else.
    print(f"tickflight: {printable(text)}", file=sys.stderr, flush=True)  # noqa: T201 - for people
