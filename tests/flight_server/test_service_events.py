"""What a service's events say about it."""

from flight_server.events import RECENT, Failure, summed_up

NOW = 1_790_000_000_000_000
MINUTE = 60_000_000


def event(
    at: int, name: str, level: str = "info", detail: str | None = None, service: str = "ingest.demo"
) -> dict[str, object]:
    return {
        "ts_event": NOW + at,
        "service": service,
        "event": name,
        "level": level,
        "detail": detail,
    }


def test_the_newest_event_is_the_state() -> None:
    told = summed_up([event(-3, "running"), event(-2, "failed", "error", "no such key")], NOW)
    assert told["ingest.demo"].state == "failed"
    assert told["ingest.demo"].since == NOW - 2
    assert told["ingest.demo"].detail == "no such key"


def test_a_remark_of_a_running_service_does_not_begin_its_running_anew() -> None:
    events = [event(-9, "running"), event(-5, "running", "error", "3 rows lost")]
    told = summed_up(events, NOW)["ingest.demo"]
    assert told.since == NOW - 9
    assert told.last_error == Failure(NOW - 5, "3 rows lost")


def test_a_new_run_begins_anew() -> None:
    told = summed_up([event(-9, "running"), event(-5, "running")], NOW)["ingest.demo"]
    assert told.since == NOW - 5


def test_restarts_of_the_last_day_are_counted_and_older_ones_forgotten() -> None:
    events = [
        event(-RECENT - MINUTE, "restarting", "warning", "long ago"),
        event(-2 * MINUTE, "restarting", "error", "its process was killed by SIGKILL"),
        event(-MINUTE, "restarting", "warning", "connection reset"),
        event(0, "running"),
    ]
    told = summed_up(events, NOW)["ingest.demo"]
    assert told.restarts == 2
    assert told.last_error == Failure(NOW - MINUTE, "connection reset")
    old = summed_up(events[:1], NOW)["ingest.demo"]
    assert (old.restarts, old.last_error) == (0, None)


def test_each_service_is_told_of_by_name() -> None:
    events = [event(-2, "running"), event(-1, "stopped", service="ingest.a")]
    assert list(summed_up(events, NOW)) == ["ingest.a", "ingest.demo"]
