"""How often something may happen: calls of a key, failed log-ins from an address."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from math import ceil
from typing import Any, Final, final
from urllib.parse import unquote

from flight_server.errors import BusyError
from flight_server.identity import Identity
from storage.ports import Clock

FAILED_LOGINS_BURST: Final = 20
"""Failed log-ins an address may have at once: a fleet restarted with an old key stays below."""
FAILED_LOGINS_PER_SECOND: Final = 0.2
"""And from then on: one in five seconds, which no guesser gets anywhere with."""
ADDRESSES_KEPT: Final = 1_024
"""Addresses remembered, so that a stranger with many costs no memory; the longest silent goes."""
ADDRESSES_SHOWN: Final = 20
"""How many of them ``status`` lists, those with most failures first."""
KEY_BUCKETS_MAX: Final = 4_096
"""As many as keys are cached; the bucket longest unused is full again by the time it goes."""
_SUBNET_BITS: Final = 64
"""Whoever has one IPv6 address has all of its subnet."""


@final
class TokenBucket:
    """Lets ``burst`` through at once and ``per_second`` in the long run. Not thread-safe.

    Args:
        per_second: Tokens that come back each second.
        burst: Tokens it holds at most, and at first.
        now: Monotonic seconds.
    """

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._updated = now

    def wait(self, now: float) -> float:
        """Seconds until there is a token; 0 when there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now
        return max(0.0, (1 - self._tokens) / self._per_second)

    def take(self, now: float) -> float:
        """Take a token if there is one; returns ``wait`` as it was before."""
        wait = self.wait(now)
        if wait == 0:
            self._tokens -= 1
        return wait


@final
class KeyRates:
    """Holds each key to the rate it was made with; keys without one are not held at all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, caller: Identity) -> int:
        """Count a call; returns how long to wait when the key is over its rate, ms, else 0."""
        rate = caller.calls_per_second
        if rate is None:
            return 0
        now = self._clock.monotonic()
        with self._lock:
            wait = self._bucket(caller.key_id, rate, now).take(now)
        return _milliseconds(wait)

    def _bucket(self, key_id: str, rate: int, now: float) -> TokenBucket:
        bucket = self._buckets.get(key_id)  # a key keeps the rate it was made with
        if bucket is None:
            if len(self._buckets) >= KEY_BUCKETS_MAX:
                self._buckets.popitem(last=False)
            # A second's worth at once: models ask in bursts, on the tick.
            bucket = self._buckets[key_id] = TokenBucket(rate, rate, now)
        self._buckets.move_to_end(key_id)
        return bucket


@dataclass(slots=True)
class _Failures:
    bucket: TokenBucket
    count: int
    first: int
    last: int


@final
class FailedLogins:
    """Counts failed log-ins by address, and says which addresses have had too many.

    A limit never touches a key that is in use: it only keeps an address from having *unknown*
    credentials looked up. Loopback is counted but not limited, because all of the machine shares
    it, and a new key has to work there at once whatever a broken script beside it does.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()

    def require_below_limit(self, address: str) -> None:
        """Raise ``BusyError`` when ``address`` has failed too often of late."""
        with self._lock:
            failures = self._addresses.get(address)
            wait = failures.bucket.wait(self._clock.monotonic()) if failures is not None else 0.0
        if wait > 0 and _is_limited(address):
            wait_ms = _milliseconds(wait)
            message = f"too many failed log-ins from this address; retry in {wait_ms} ms"
            raise BusyError(message, retry_after_ms=wait_ms)

    def note(self, address: str) -> bool:
        """Count a failure; returns whether it is within the limit, and so worth a line of log."""
        now, instant = self._clock.monotonic(), self._clock.now()
        with self._lock:
            failures = self._addresses.get(address)
            if failures is None:
                if len(self._addresses) >= ADDRESSES_KEPT:
                    self._addresses.popitem(last=False)
                bucket = TokenBucket(FAILED_LOGINS_PER_SECOND, FAILED_LOGINS_BURST, now)
                failures = self._addresses[address] = _Failures(bucket, 0, instant, instant)
            self._addresses.move_to_end(address)
            failures.count += 1
            failures.last = instant
            return failures.bucket.take(now) == 0

    def report(self) -> list[dict[str, Any]]:
        """Return the addresses with most failures: how many, first and last instant in µs."""
        now = self._clock.monotonic()
        with self._lock:
            most = sorted(self._addresses.items(), key=lambda item: -item[1].count)
            return [
                {
                    "address": address,
                    "failures": failures.count,
                    "first": failures.first,
                    "last": failures.last,
                    "limited": failures.bucket.wait(now) > 0 and _is_limited(address),
                }
                for address, failures in most[:ADDRESSES_SHOWN]
            ]


def _milliseconds(seconds: float) -> int:
    return ceil(seconds * 1_000)


def address_of(peer: str) -> str:
    """Return the address in what gRPC calls a peer, ``ipv4:192.0.2.7:5021``.

    Of IPv6 the subnet; anything that isn't an IP address, such as a Unix socket, is ``local``.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "local"
    text = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address) or address.is_loopback:
        return str(address)
    return str(IPv6Network((address, _SUBNET_BITS), strict=False))


def _is_limited(address: str) -> bool:
    """Loopback is not, and neither is a place that strangers and friends share the name of."""
    try:
        return not ip_address(address.partition("/")[0]).is_loopback
    except ValueError:
        return False
