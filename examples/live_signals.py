"""A model on live ticks: history first, then now, with nothing missing at the seam.

    python -m examples.live_signals MNQ

It fills its window from the last minute, then says what it sees as it comes. Restart the service
meanwhile: it goes on where it was. Ctrl-C ends it.
"""

import argparse
from contextlib import suppress

import tickflight
from examples.momentum import COLUMNS, DEVIATIONS, Momentum, run


def main() -> None:
    parser = argparse.ArgumentParser(description="A model on live ticks.")
    parser.add_argument("symbol")
    parser.add_argument("--start", default="-1m", help="ISO 8601, or how long ago (-1m)")
    parser.add_argument("--end", help="likewise; without one it goes on for ever")
    parser.add_argument(
        "--deviations", type=float, default=DEVIATIONS, help=f"how far is far ({DEVIATIONS})"
    )
    options = parser.parse_args()
    with (
        suppress(KeyboardInterrupt),
        tickflight.connect() as tf,
        tf.live(options.symbol, start=options.start, end=options.end, columns=COLUMNS) as stream,
    ):
        run(stream, Momentum(options.symbol, options.deviations))


if __name__ == "__main__":
    main()
