"""What lies in the data directory: who may read it, keys, the journal, and leftovers.

Every function judges plain values; ``probes`` reads them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from flight_server.keys import KeyRecord, Scope
from storage.journal_chain import JournalFile, breaks
from storage.ports import MICROSECONDS
from tickflightd.doctor.findings import Finding, fail, ok, warn
from tickflightd.tls import Certificate, expiry_warning

OPEN_TO_OTHERS: Final = 0o077
DAY: Final = 86_400 * MICROSECONDS
EXPIRES_SOON: Final = 14 * DAY
"""How long before its end a key is worth replacing, µs."""
UNUSED_AFTER: Final = 30 * DAY
"""A key that nobody has used this long after it was made is one too many."""
_MIB: Final = 1 << 20
_LISTED_MAX: Final = 5


def permissions(modes: Mapping[str, int]) -> list[Finding]:
    """Judge the mode bits of files that hold secrets, by name."""
    findings = [
        fail(
            "permissions",
            f"{name} has mode {mode:04o}: others on this machine can read its secrets",
            f"chmod 600 {name}",
        )
        for name, mode in modes.items()
        if mode & OPEN_TO_OTHERS
    ]
    private = ", ".join(modes) or "nothing secret is there yet"
    return findings or [ok("permissions", f"only the owner reads secrets ({private})")]


def certificate(shown: Certificate | None, now: int) -> Finding:
    """Judge what the service encrypts with, known to work; None is in the clear. ``now`` in µs."""
    if shown is None:
        return ok("certificate", "the service answers in the clear, on this machine alone")
    warning = expiry_warning(shown, now)
    if warning is not None:
        return warn("certificate", warning, "clients turn away once it has expired")
    left = shown.days_left(now)
    return ok("certificate", f"for {shown.name}, and valid for another {left} days")


def keys(records: Collection[KeyRecord], used: Collection[str] | None, now: int) -> list[Finding]:
    """Judge the keys of models, the service's own left out.

    Args:
        records: Every key.
        used: Ids of those that were ever used; None when that is not recorded.
        now: µs since 1970.
    """
    valid = [
        one
        for one in records
        if one.revoked_at is None and (one.expires_at is None or one.expires_at > now)
    ]
    # A key made for a few days ends as it was meant to; nobody has to be told.
    ending = [one for one in records if one.revoked_at is None and _was_to_last(one)]
    expired = [one for one in ending if one not in valid]
    soon = [one for one in ending if one in valid and (one.expires_at or 0) - now < EXPIRES_SOON]
    old = [one for one in valid if one.created_at < now - UNUSED_AFTER]
    unused = [] if used is None else [one for one in old if one.id not in used]
    findings = [
        warn("keys", f"expired: {_named(expired)}", "`tickflightd keys rotate ID` replaces a key"),
        warn("keys", f"end within 14 days: {_named(soon)}", "`tickflightd keys rotate ID` in time"),
        warn(
            "keys", f"made long ago, never used: {_named(unused)}", "`tickflightd keys revoke ID`"
        ),
    ]
    found = [one for one, named in zip(findings, (expired, soon, unused), strict=True) if named]
    admins = sum(Scope.ADMIN in one.scopes for one in valid)
    return [*found, ok("keys", f"{len(valid)} valid, {admins} of them with the scope admin")]


def _was_to_last(record: KeyRecord) -> bool:
    return record.expires_at is not None and record.expires_at - record.created_at > EXPIRES_SOON


def _named(records: Sequence[KeyRecord]) -> str:
    names = [f"{one.model_id} ({one.id})" for one in records[:_LISTED_MAX]]
    more = len(records) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def journal(files: Sequence[JournalFile], now: int) -> list[Finding]:
    """Judge the journal by its files and their headers; records are not read."""
    if not files:
        return [ok("journal", "there is no journal yet")]
    findings = [
        fail("journal", broken, "run `tickflightd journal verify`, then `journal repair`")
        for broken in breaks(files)
    ]
    newest = max((one.header.hour for one in files if one.header is not None), default=0)
    if newest > now:
        ahead = (newest - now) / MICROSECONDS
        text = f"the newest journal file is {ahead:,.0f} s ahead of the clock"
        findings.append(warn("journal", text, "set the clock: it was ahead once, or is behind now"))
    if findings:
        return findings
    size = sum(one.size for one in files) / _MIB
    return [ok("journal", f"{len(files)} files, {size:,.0f} MiB, oldest {files[0].path.name}")]


def leftovers(
    *, spools: int, spool_bytes: int, scratch: Sequence[str], stale_key: bool
) -> list[Finding]:
    """Judge what past runs left behind while no service runs."""
    findings = []
    if spools:
        text = f"{spools} spool files with {spool_bytes / _MIB:,.1f} MiB wait to be sent"
        findings.append(warn("leftovers", text, "start the service: its sources send them first"))
    if scratch:
        text = f"half-made files of a killed process: {', '.join(scratch[:_LISTED_MAX])}"
        findings.append(warn("leftovers", text, "delete them; nothing reads them"))
    if stale_key:
        text = "local.key is there without a service: that one was killed"
        findings.append(warn("leftovers", text, "nothing: the next start replaces it"))
    return findings or [ok("leftovers", "nothing was left behind")]
