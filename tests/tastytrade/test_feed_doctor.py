"""``tickflightd doctor --tastytrade``: what an account gets, in one line each."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tastytrade.conftest import MNQ
from tests.tastytrade.venue import CANARIES, CLIENT_SECRET, REFRESH_TOKEN, Handshake, Venue
from tickflightd.testing import own_environment, tickflightd

pytestmark = pytest.mark.slow


def findings(directory: Path, **settings: str) -> list[dict[str, Any]]:
    environment = own_environment(FLIGHT_URI="grpc://127.0.0.1:0", DEMO="0", **settings)
    words = ["doctor", "--tastytrade", "--json"]
    done = tickflightd(*words, environment=environment, cwd=directory)
    assert not [canary for canary in CANARIES if canary in done.stdout + done.stderr]
    report = json.loads(done.stdout.splitlines()[-1])
    return [one for one in report["findings"] if one["check"] == "tastytrade"]


def account(venue: Venue) -> dict[str, str]:
    return {
        "TT_SECRET": CLIENT_SECRET,
        "TT_REFRESH": REFRESH_TOKEN,
        "TT_API_URL": venue.url,
        "SYMBOLS": "MNQ,SPY,NOPE",
    }


def test_an_account_that_is_let_in_shows_what_its_symbols_mean(
    venue: Venue, tmp_path: Path
) -> None:
    venue.manners.delayed = True
    good, unknown, delayed = findings(tmp_path, **account(venue))
    assert good["level"] == "ok"
    assert f"MNQ is {MNQ}, SPY is SPY" in good["text"]
    assert "NOPE" in unknown["text"]
    assert (delayed["level"], "delayed" in delayed["text"]) == ("warn", True)
    assert not venue.open_connections


def test_refusals_fail_with_what_to_do(venue: Venue, tmp_path: Path) -> None:
    (wrong,) = findings(tmp_path, **{**account(venue), "TT_SECRET": "wrong-secret"})
    assert (wrong["level"], "invalid_client" in wrong["text"]) == ("fail", True)
    venue.manners.handshake = Handshake.TOKEN_REFUSED
    (refused,) = findings(tmp_path, **account(venue))
    assert "does not accept the token" in refused["text"]
    (none,) = findings(tmp_path)
    assert "TICKFLIGHT_TT_SECRET" in none["text"]
