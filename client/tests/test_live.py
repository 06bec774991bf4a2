"""Live streams over a server made of lists."""

from collections.abc import Callable

import pyarrow as pa
import pytest

import tickflight
from tickflight.errors import NotFoundError
from tickflight.testing import FakeServer

Ticks = Callable[..., pa.RecordBatch]


def test_what_was_written_comes_before_what_is_written(
    client: tickflight.Client, ticks: Ticks
) -> None:
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 3))
        writer.flush(timeout=20)
        with client.live("MNQ", start="-1h") as stream:
            assert next(stream).num_rows == 3
            writer.write(ticks(3, 2))
            assert next(stream).num_rows == 2
            assert stream.position == tickflight.Position(1, 5)


def test_a_stream_without_a_start_begins_now(client: tickflight.Client, ticks: Ticks) -> None:
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 3))
        writer.flush(timeout=20)
        with client.live("MNQ") as stream:
            writer.write(ticks(3, 1))
            assert next(stream).num_rows == 1


def test_an_end_ends_it(client: tickflight.Client, ticks: Ticks) -> None:
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 3))
    assert [batch.num_rows for batch in client.live("MNQ", start=0, end="now")] == [3]


def test_a_dataset_that_is_not_there_raises_at_once(
    client: tickflight.Client, server: FakeServer
) -> None:
    assert server.streams == 0
    with pytest.raises(NotFoundError):
        client.live("MNQ", dataset="nothing")
