"""What an examination finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works; somebody should look when there is time."""
    FAIL = "fail"
    """It does not work, or what is acknowledged is not safe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: Which check found it.
        level: How bad it is.
        text: A plain sentence.
        advice: What to do about it; empty when there is nothing to do.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, advice: str) -> Finding:
    """Return a finding that somebody should look at."""
    return Finding(check, Level.WARN, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding(check, Level.FAIL, text, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst finding."""
    severity = list(Level)
    return max((finding.level for finding in findings), key=severity.index, default=Level.OK)
