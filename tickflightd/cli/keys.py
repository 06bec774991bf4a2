"""``tickflightd keys …``: works on the data directory itself, whether or not a service runs."""

import datetime as dt
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from tickflightd.cli.shared import json_option, load_settings, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flight_server.keys import KeyRecord, KeyStore, NewKey


@click.group()
def keys() -> None:
    """Make, list and revoke API keys, whether or not the service runs."""


@keys.command()
@click.argument("model")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="What it may do; repeat.")
@click.option(
    "--symbol", "symbols", multiple=True, metavar="SYMBOL", help="What it may read; repeat."
)
@click.option("--expires", metavar="DURATION", help="When it ends, such as 90d; default: never.")
@click.option("--rate", type=int, metavar="N", help="Calls a second it may make; default: any.")
@json_option
def create(
    *,
    model: str,
    scopes: tuple[str, ...],
    symbols: tuple[str, ...],
    expires: str | None,
    rate: int | None,
    as_json: bool,
) -> None:
    """Make a key for MODEL and show it, this once.

    Scopes are read:realtime and read:history (the default), sql, write and admin. Without --symbol
    the key reads every symbol.
    """
    from tickflightd import access

    with _opened() as store:
        new = access.create_for_model(
            store, model, scopes, symbols=symbols, expires=expires, rate=rate
        )
    _print_new(new, as_json=as_json)


@keys.command("list")
@json_option
def list_keys(*, as_json: bool) -> None:
    """List the keys, dead ones too; the service's own are left out."""
    from tickflightd import access

    place = _place()
    with access.key_store(place) as store:
        records = [record for record in store.list() if not access.is_own(record)]
    used = access.last_used(place)
    if as_json:
        print_json({"keys": [_fields(record, used.get(record.id)) for record in records]})
    elif not records:
        click.echo("no keys yet: tickflightd keys create MODEL")
    for record in [] if as_json else records:
        click.echo(_line(record, used.get(record.id)))


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(*, key_id: str) -> None:
    """Refuse the key ID from now on."""
    with _opened() as store:
        store.revoke(key_id)
    click.echo(f"revoked {key_id}: a running service refuses it within 5 s")


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
def rotate(*, key_id: str, as_json: bool) -> None:
    """Replace the key ID by a new one with the same rights, shown this once."""
    with _opened() as store:
        new = store.rotate(key_id)
    _print_new(new, as_json=as_json)


@keys.command()
@json_option
def repair(*, as_json: bool) -> None:
    """Put a damaged control.db in order: keep all keys and files that are intact.

    The service has to be stopped. A key that is lost is refused from then on; the database as it
    was stays beside the new one.
    """
    from tickflightd import access

    done = access.repaired(_place())
    if as_json:
        evidence = done and str(done.evidence)
        kept, lost = (done.kept, done.lost) if done else ({}, {})
        print_json({"evidence": evidence, "kept": dict(kept), "lost": dict(lost)})
    elif done is None:
        click.echo("nothing is damaged, so nothing was changed")
    else:
        for table, rows in done.kept.items():
            lost_rows = done.lost[table]
            told = "an unknown number of" if lost_rows is None else f"{lost_rows:,}"
            click.echo(f"{table}  {rows:,} rows kept, {told} lost")
        click.echo(f"the database as it was: {done.evidence}")


@contextmanager
def _opened() -> "Iterator[KeyStore]":
    from tickflightd import access

    with access.key_store(_place()) as store:
        yield store


def _place() -> "Path":
    from tickflightd import directory

    return directory.prepare(load_settings().data_directory)


def _print_new(new: "NewKey", *, as_json: bool) -> None:
    if as_json:
        print_json({"id": new.id, "key": new.key})
        return
    click.echo(f"id   {new.id}\nkey  {new.key}")
    click.echo(
        "Copy it now: it can't be shown again. Models use it as TICKFLIGHT_API_KEY.", err=True
    )


def _fields(record: "KeyRecord", used: dt.date | None) -> dict[str, object]:
    return {
        "id": record.id,
        "model": record.model_id,
        "state": _state(record),
        "scopes": sorted(record.scopes),
        "symbols": None if record.symbols is None else sorted(record.symbols),
        "created": _instant(record.created_at),
        "expires": _instant(record.expires_at),
        "revoked": _instant(record.revoked_at),
        "rate": record.calls_per_second,
        "last_used": None if used is None else used.isoformat(),
    }


def _line(record: "KeyRecord", used: dt.date | None) -> str:
    scopes = " ".join(sorted(record.scopes))
    symbols = "all symbols" if record.symbols is None else ",".join(sorted(record.symbols))
    expires = f"expires {_instant(record.expires_at)}" if record.expires_at else "never expires"
    told = [record.id, f"{_state(record):7}", record.model_id, scopes, symbols, expires]
    if record.calls_per_second is not None:
        told.append(f"{record.calls_per_second} calls/s")
    told.append(f"last used {used}" if used else "never used")
    return "  ".join(told)


def _state(record: "KeyRecord") -> str:
    from storage.ports import SystemClock

    if record.revoked_at is not None:
        return "revoked"
    expired = record.expires_at is not None and record.expires_at <= SystemClock().now()
    return "expired" if expired else "valid"


def _instant(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    epoch = dt.datetime.fromtimestamp(0, tz=dt.UTC)
    instant = epoch + dt.timedelta(microseconds=microseconds)
    return instant.isoformat(timespec="seconds")
