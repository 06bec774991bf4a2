"""The same model on a replay: what it would have said, through the very same call.

    python -m examples.replay_signals MNQ --start -1h --speed 60

An hour in a minute; --speed 0 is as fast as possible. Rows come in the order in which they were
received, so that the model knows nothing it could not have known then.
"""

import argparse
from contextlib import suppress

import tickflight
from examples.momentum import COLUMNS, DEVIATIONS, Momentum, run


def main() -> None:
    parser = argparse.ArgumentParser(description="A model on a replay.")
    parser.add_argument("symbol")
    parser.add_argument("--start", default="-15m", help="ISO 8601, or how long ago (-15m)")
    parser.add_argument("--end", default="now", help="likewise (now)")
    parser.add_argument("--speed", type=float, default=60.0, help="so many times as fast (60)")
    parser.add_argument(
        "--deviations", type=float, default=DEVIATIONS, help=f"how far is far ({DEVIATIONS})"
    )
    options = parser.parse_args()
    with (
        suppress(KeyboardInterrupt),
        tickflight.connect() as tf,
        tf.live(
            options.symbol,
            start=options.start,
            end=options.end,
            columns=COLUMNS,
            speed=options.speed,
        ) as stream,
    ):
        run(stream, Momentum(options.symbol, options.deviations))


if __name__ == "__main__":
    main()
