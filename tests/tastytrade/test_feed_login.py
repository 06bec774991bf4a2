"""Logging in through the real SDK: frames as it sends them, and refusals in words that help."""

import pytest

from ingest.runner import RunState
from ingest.tastytrade import Patience
from tests.tastytrade.conftest import MNQ, Ledger, Start
from tests.tastytrade.venue import CANARIES, QUOTE_TOKEN, Handshake, Venue


def test_the_real_sdk_logs_in_and_asks_for_what_is_followed(venue: Venue, start: Start) -> None:
    start()
    venue.wait_for_subscription("Trade", MNQ, "SPY", "VIX")
    (connection,) = venue.connections
    assert connection.follows("TimeAndSale", MNQ, "SPY")
    assert not connection.follows("TimeAndSale", "VIX"), "an index is not traded"
    assert connection.follows("Quote", MNQ, "SPY", "VIX")


def test_the_frames_of_the_handshake_are_those_of_the_sdk(venue: Venue, start: Start) -> None:
    """Its version is pinned because we reach into it: what it sends is part of that."""
    start()
    venue.wait_for_subscription("Trade", MNQ)
    (connection,) = venue.connections
    first = [frame for frame in connection.received if frame["type"] != "KEEPALIVE"][:5]
    assert first[0] == {
        "type": "SETUP",
        "channel": 0,
        "keepaliveTimeout": 60,
        "acceptKeepaliveTimeout": 60,
        "version": "0.1-DXF-JS/0.3.0",
    }
    assert first[1] == {"type": "AUTH", "channel": 0, "token": QUOTE_TOKEN}
    assert first[2]["service"] == "FEED"
    assert first[2]["parameters"] == {"contract": "AUTO"}
    assert first[3]["acceptDataFormat"] == "COMPACT"
    assert first[3]["acceptAggregationPeriod"] == 0
    assert first[4]["add"] == [
        {"symbol": MNQ, "type": "TimeAndSale"},
        {"symbol": "SPY", "type": "TimeAndSale"},
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"client_secret": "wrong"}, "invalid_client"), ({"refresh_token": "old"}, "invalid_grant")],
)
def test_refused_credentials_end_the_run_and_say_what_to_do(
    changes: dict[str, str], code: str, venue: Venue, start: Start, ledger: Ledger
) -> None:
    result = start(**changes).ended()
    assert result.state is RunState.FAILED
    assert result.is_refusal
    assert result.restarts == 0
    assert code in str(result.detail)
    assert "TICKFLIGHT_TT_REFRESH" in str(result.detail)
    assert ledger.told()[-1] == f"failed: {result.detail}"
    assert len(venue.requests) == 1, "nobody knocks twice with the wrong key"


def test_an_account_without_market_data_ends_the_run(venue: Venue, start: Start) -> None:
    body = {"error": {"code": "quote_streamer.customer_not_found_error", "message": "no"}}
    venue.manners.failures["/api-quote-tokens"] = (403, body)
    result = start().ended()
    assert result.is_refusal
    assert "quote_streamer.customer_not_found_error" in str(result.detail)


@pytest.mark.parametrize("path", ["/oauth/token", "/api-quote-tokens", "/instruments/futures"])
@pytest.mark.parametrize("answer", [(502, b"<html>Bad gateway</html>"), (403, b"<html>no</html>")])
def test_a_failing_api_is_asked_again(
    path: str, answer: tuple[int, bytes], venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.failures[path] = answer
    start()
    ledger.wait_until_told(f"tastytrade answered {answer[0]} to {path}")
    del venue.manners.failures[path]
    venue.wait_for_subscription("Trade", MNQ)


def test_a_refused_feed_token_is_tried_once_a_connection(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.handshake = Handshake.TOKEN_REFUSED
    start()
    ledger.wait_until_told("does not accept the token")
    first = venue.connections[0]
    assert [frame["type"] for frame in first.received].count("AUTH") == 1
    venue.manners.handshake = Handshake.WELCOME
    venue.wait_for_subscription("Trade", MNQ)


def test_a_handshake_without_an_answer_has_a_deadline(
    venue: Venue, start: Start, ledger: Ledger
) -> None:
    venue.manners.handshake = Handshake.NO_AUTH_STATE
    start(patience=Patience(handshake_seconds=0.1))
    ledger.wait_until_told("did not log us in within")
    venue.manners.handshake = Handshake.WELCOME
    venue.wait_for_subscription("Trade", MNQ)


def test_a_delayed_feed_is_told(venue: Venue, start: Start, ledger: Ledger) -> None:
    venue.manners.delayed = True
    start()
    assert ledger.wait_until_told("delayed")["level"] == "warning"


def test_no_secret_is_in_what_is_told(
    venue: Venue, start: Start, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    venue.manners.failures["/instruments/futures"] = (500, b"")
    start()
    ledger.wait_until_told("answered 500")
    del venue.manners.failures["/instruments/futures"]
    venue.wait_for_subscription("Trade", MNQ)
    venue.abort()
    venue.wait_for(lambda: len(venue.connections) > 1)
    said = "\n".join([caplog.text, *ledger.told()])
    assert "restarting" in said
    assert not [canary for canary in CANARIES if canary in said]
