"""What the running service says of itself, and who has its port."""

from collections.abc import Mapping
from typing import Any, Final

from tickflightd.doctor.findings import Finding, fail, ok, warn

HEALTHY: Final = frozenset({"running", "stopped"})
FAILED: Final = "failed"
MEMORY_SHARE_SOON: Final = 0.9
"""Share of its limit at which memory is about to hold producers back."""
_START: Final = "start it with `tickflightd up`"


def port(address: str, *, taken: bool, ours: bool, owner: str | None) -> Finding:
    """Judge who listens where the service should.

    Args:
        address: Host and port.
        taken: Whether somebody listens there.
        ours: Whether it is a tickflight service that answers.
        owner: The program that listens, where that can be known.
    """
    if not taken:
        return ok("port", f"{address} is free")
    if ours:
        return ok("port", f"{address} is the service's")
    who = owner or "a program of another user"
    advice = "stop it, or choose another port with TICKFLIGHT_FLIGHT_URI"
    return fail("port", f"{address} is taken by {who}", advice)


def absent(address: str, *, owned: bool, reason: str) -> Finding:
    """Judge a service that does not answer.

    Args:
        address: Where it should.
        owned: Whether a process owns the data directory all the same.
        reason: Why there is no answer.
    """
    if not owned:
        return ok("service", f"no service runs here; {_START}")
    text = f"a service owns the data directory and does not answer at {address} ({reason})"
    return fail("service", text, "see its log; it may still be reading its journal")


def service(status: Mapping[str, Any], version: str) -> list[Finding]:
    """Judge the answer of the action ``status``."""
    findings = [_version(status, version)]
    for one in status["services"]:
        if one["state"] in HEALTHY:
            continue
        text = f"{one['name']} is {one['state']}: {one['detail']}"
        if one["state"] == FAILED:
            findings.append(fail("service", text, "no retry mends this: follow the message"))
        else:
            findings.append(warn("service", text, "see the log of the service"))
    used, limit = status["memory"]["used"], status["memory"]["limit"]
    if limit * MEMORY_SHARE_SOON < used <= limit:
        text = f"rows take {used / limit:.0%} of the memory they may"
        advice = "raise TICKFLIGHT_HOT_MEMORY_LIMIT: beyond it rows leave memory for the lake early"
        findings.append(warn("service", text, advice))
    return findings


def _version(status: Mapping[str, Any], version: str) -> Finding:
    running = status["version"]
    text = f"version {running} answers, epoch {status['epoch']}"
    if running != version:
        text = f"version {running} runs, version {version} is installed"
        return warn("service", text, "restart the service")
    return ok("service", text)
