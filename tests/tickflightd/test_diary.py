"""The supervisor's diary against a server that may be away."""

import threading
import time

import pytest

import tickflight
from storage.ports import SystemClock
from storage.schemas import SERVICE_EVENTS
from tickflight.testing import FakeServer
from tickflightd import diary
from tickflightd.diary import Diary
from tickflightd.supervisor import RoleEnd

PATIENCE_SECONDS = 30.0
END = RoleEnd("ingest demo", -9, 0.25)


def diary_of(uri: str, key: str) -> Diary:
    return Diary(lambda: tickflight.connect(uri, key), SystemClock())


def rows_of(server: FakeServer, count: int) -> list[dict[str, object]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        rows = server.rows(SERVICE_EVENTS.name).to_pylist()
        if len(rows) >= count:
            return list(rows)
        assert time.monotonic() < deadline, rows
        time.sleep(0.01)


def test_a_restart_is_a_row_under_the_name_of_the_service() -> None:
    with FakeServer(datasets={SERVICE_EVENTS.name: SERVICE_EVENTS.schema}) as server:
        keeper = diary_of(server.uri, server.api_key)
        keeper.note(END)
        (row,) = rows_of(server, 1)
        keeper.close()
    assert row["service"] == "ingest.demo"
    assert (row["event"], row["level"]) == ("restarting", "error")
    assert row["detail"] == "its process was killed by SIGKILL"


def test_each_of_many_is_written_once_and_in_order() -> None:
    with FakeServer(datasets={SERVICE_EVENTS.name: SERVICE_EVENTS.schema}) as server:
        keeper = diary_of(server.uri, server.api_key)
        for code in range(5):
            keeper.note(RoleEnd("flight", code, 0.25))
        rows = rows_of(server, 5)
        keeper.close()
    assert [str(row["detail"])[-1] for row in rows] == list("01234")


def test_noting_never_blocks_however_long_there_is_no_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diary, "ENTRIES_MAX", 2)
    keeper = diary_of("grpc://127.0.0.1:1", "tf_id_secret")

    def note_many() -> None:
        for _ in range(10):
            keeper.note(END)

    noting = threading.Thread(target=note_many)
    noting.start()
    noting.join(PATIENCE_SECONDS)
    assert not noting.is_alive()
    keeper.close()
