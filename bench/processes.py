"""Everything the service is measured with runs in processes of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRODUCERS = 4
FEED_RATE = 10_000
FEED_BATCH_ROWS = 100


@contextmanager
def bare_server(table_rows: int, parquet: Path | None = None) -> Iterator[str]:
    """Run the floor's server; yield its URI.

    Args:
        table_rows: Length of the table it has ready.
        parquet: A file it reads and sends when asked to.
    """
    command = [sys.executable, "-m", "bench.floors", str(table_rows)]
    with subprocess.Popen(
        [*command, *([] if parquet is None else [str(parquet)])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def feeding(uri: str, key: str, seconds: float) -> Iterator[None]:
    """Let a producer send at the rate of a live feed."""
    name = f"feed{time.time_ns()}"
    feed = start_producer(uri, key, name, FEED_BATCH_ROWS, seconds=seconds, rate=FEED_RATE)
    try:
        yield
    finally:
        feed.terminate()
        feed.wait()


def produce(
    uri: str, key: str, name: str, rows: int, **limits: float | None
) -> Sequence[dict[str, float]]:
    """Let several producers send batches of ``rows`` until done; return what each saw."""
    started = [start_producer(uri, key, f"{name}-{n}", rows, **limits) for n in range(PRODUCERS)]
    return [finished(process) for process in started]


def start_producer(
    uri: str, key: str, name: str, rows: int, **limits: float | None
) -> "subprocess.Popen[str]":
    """Start one producer; ``limits`` are the options of ``bench.producer``."""
    options = [f"--{option}={value}" for option, value in limits.items() if value is not None]
    return start("bench.producer", key, uri, name, f"--rows={rows}", *options)


def start(module: str, key: str, *words: str) -> "subprocess.Popen[str]":
    """Start a program of ours that takes the key on standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"{key}\n")
    process.stdin.flush()
    return process


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for the end; return the JSON of the last line printed."""
    output = process.communicate()[0]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result
