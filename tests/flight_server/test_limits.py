"""How often: calls of a key, failed log-ins from an address."""

import pytest

from flight_server.errors import BusyError
from flight_server.identity import Identity, Scope
from flight_server.limits import (
    ADDRESSES_KEPT,
    FAILED_LOGINS_BURST,
    FailedLogins,
    KeyRates,
    TokenBucket,
    address_of,
)
from tests.flight_server.conftest import HandClock

STRANGER = "192.0.2.7"


def key(rate: int | None, key_id: str = "a") -> Identity:
    return Identity(key_id, "model", frozenset({Scope.SQL}), None, None, rate)


class TestTokenBucket:
    def test_a_burst_passes_and_then_one_call_each_interval(self) -> None:
        bucket = TokenBucket(per_second=2, burst=3, now=0.0)
        assert [bucket.take(0.0) for _ in range(4)] == [0, 0, 0, 0.5]
        assert bucket.take(0.5) == 0
        assert bucket.take(0.5) == 0.5

    def test_a_refused_call_costs_nothing(self) -> None:
        bucket = TokenBucket(per_second=1, burst=1, now=0.0)
        bucket.take(0.0)
        waits = [bucket.take(0.5) for _ in range(100)]
        assert set(waits) == {0.5}

    def test_idle_time_never_saves_up_more_than_a_burst(self) -> None:
        bucket = TokenBucket(per_second=1, burst=2, now=0.0)
        assert [bucket.take(1e6) == 0 for _ in range(3)] == [True, True, False]


class TestKeyRates:
    def test_a_key_without_a_rate_is_never_held(self, clock: HandClock) -> None:
        rates = KeyRates(clock)
        assert {rates.take(key(None)) for _ in range(10_000)} == {0}

    def test_a_key_gets_a_second_s_worth_and_is_told_when_to_come_back(
        self, clock: HandClock
    ) -> None:
        rates = KeyRates(clock)
        assert [rates.take(key(5)) for _ in range(6)] == [0, 0, 0, 0, 0, 200]
        clock.sleep(0.21)
        assert rates.take(key(5)) == 0

    def test_keys_do_not_use_up_each_other_s_rate(self, clock: HandClock) -> None:
        rates = KeyRates(clock)
        assert rates.take(key(1, "a")) == 0
        assert rates.take(key(1, "b")) == 0
        assert rates.take(key(1, "a")) > 0


class TestFailedLogins:
    def test_a_stranger_is_refused_once_the_burst_is_spent(self, clock: HandClock) -> None:
        failures = FailedLogins(clock)
        for _ in range(FAILED_LOGINS_BURST):
            failures.require_below_limit(STRANGER)
            assert failures.note(STRANGER)
        with pytest.raises(BusyError, match="retry in 5000 ms") as refused:
            failures.require_below_limit(STRANGER)
        assert refused.value.details() == {"retry_after_ms": 5_000}

    def test_another_address_is_not_touched(self, clock: HandClock) -> None:
        failures = FailedLogins(clock)
        for _ in range(100):
            failures.note(STRANGER)
        failures.require_below_limit("192.0.2.8")

    def test_time_lifts_the_limit(self, clock: HandClock) -> None:
        failures = FailedLogins(clock)
        for _ in range(FAILED_LOGINS_BURST):
            failures.note(STRANGER)
        clock.sleep(5.1)
        failures.require_below_limit(STRANGER)

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "local", "unknown"])
    def test_what_everyone_here_shares_is_counted_but_never_limited(
        self, clock: HandClock, address: str
    ) -> None:
        failures = FailedLogins(clock)
        within = [failures.note(address) for _ in range(FAILED_LOGINS_BURST + 5)]
        assert within.count(False) == 5  # and those write no line of log
        failures.require_below_limit(address)
        (told,) = failures.report()
        assert (told["failures"], told["limited"]) == (FAILED_LOGINS_BURST + 5, False)

    def test_a_flood_of_addresses_takes_no_more_memory(self, clock: HandClock) -> None:
        failures = FailedLogins(clock)
        for n in range(ADDRESSES_KEPT * 2):
            failures.note(f"10.0.{n >> 8}.{n & 255}")
        assert len(failures._addresses) == ADDRESSES_KEPT

    def test_the_report_begins_with_whoever_failed_most(self, clock: HandClock) -> None:
        failures = FailedLogins(clock)
        failures.note("192.0.2.1")
        for _ in range(30):
            failures.note(STRANGER)
        first, second = failures.report()
        assert (first["address"], first["failures"], first["limited"]) == (STRANGER, 30, True)
        assert (second["address"], second["limited"]) == ("192.0.2.1", False)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:5021", "192.0.2.7"),
        ("ipv6:%5B::1%5D:50712", "::1"),
        ("ipv6:[::1]:50712", "::1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:1", "192.0.2.7"),
        ("unix:", "local"),
        ("", "local"),
        ("ipv4:nonsense", "unknown"),
    ],
)
def test_a_peer_is_known_by_its_address_or_its_subnet(peer: str, address: str) -> None:
    assert address_of(peer) == address
