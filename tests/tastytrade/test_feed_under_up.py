"""The feed as a role of the service: real processes, configured as an operator would."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tickflight
from tests.tastytrade.conftest import MNQ
from tests.tastytrade.dxfeed_events import quote, time_and_sale
from tests.tastytrade.venue import CANARIES, CLIENT_SECRET, PATIENCE_SECONDS, REFRESH_TOKEN, Venue
from tickflightd.testing import RunningService, own_environment, tickflightd


def within_patience(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def settings(venue: Venue, **changes: str) -> dict[str, str]:
    return {
        "TT_SECRET": CLIENT_SECRET,
        "TT_REFRESH": REFRESH_TOKEN,
        "TT_API_URL": venue.url,
        "LOG_LEVEL": "debug",
        **changes,
    }


@pytest.fixture
def service(venue: Venue, tmp_path: Path) -> Iterator[RunningService]:
    with RunningService(tmp_path, **settings(venue)) as service:
        yield service


def connect(service: RunningService) -> tickflight.Client:
    made = service.run("keys", "create", "tests", "--scope", "read:realtime", "--json")
    assert made.returncode == 0, made.stderr
    key = made.stdout.rpartition('"key": "')[2].partition('"')[0]
    return tickflight.connect(service.uri, key)


def state_of(client: tickflight.Client) -> tuple[str, str]:
    found = [one for one in client.status().services if one.name == "ingest.tastytrade"]
    return (found[0].state, found[0].detail) if found else ("", "")


@pytest.mark.slow
def test_a_configured_account_feeds_the_service_and_no_demo_runs(
    venue: Venue, service: RunningService
) -> None:
    assert set(service.roles()) == {"flight", "ingest tastytrade"}
    venue.wait_for_subscription("Trade", MNQ, "SPY", "VIX")
    tick = time_and_sale(MNQ, time.time_ns() // 1_000_000, price=21_010.25)
    venue.send("TimeAndSale", tick)
    venue.send("Quote", quote("SPY", bidPrice=500.0, askPrice=500.01))
    with connect(service) as client:
        assert within_patience(lambda: client.latest("MNQ").arrow().num_rows == 1)
        (row,) = client.latest("MNQ").arrow().to_pylist()
        assert (row["price"], row["sequence"]) == (21_010.25, tick["index"])
        assert within_patience(lambda: client.latest("SPY", dataset="quotes").arrow().num_rows == 1)
        assert state_of(client)[0] == "running"
    assert service.stop() == 0
    assert not [canary for canary in CANARIES if canary in service.log]


@pytest.mark.slow
def test_refused_credentials_leave_the_service_up_and_are_not_tried_again(
    venue: Venue, tmp_path: Path
) -> None:
    with RunningService(tmp_path, **settings(venue, TT_REFRESH="an-old-token")) as service:
        assert within_patience(lambda: "stays down" in service.log)
        assert list(service.roles()) == ["flight"]
        with connect(service) as client:
            state, detail = state_of(client)
        assert state == "failed"
        assert "invalid_grant" in detail
        assert len(venue.requests) == 1
        assert "an-old-token" not in service.log
        assert service.stop() == 0


@pytest.mark.parametrize("command", [["up"], ["ingest", "tastytrade"]])
def test_half_an_account_is_refused_in_one_sentence(command: list[str], tmp_path: Path) -> None:
    half = own_environment(TT_SECRET="hunter2hunter2", FLIGHT_URI="grpc://127.0.0.1:0")
    done = tickflightd(*command, environment=half, cwd=tmp_path)
    assert done.returncode == 2
    assert "TICKFLIGHT_TT_REFRESH is missing" in done.stderr.splitlines()[-1]
    assert "hunter2" not in done.stderr
