"""What ``up`` prints once the service answers: the line for machines, and a block for people."""

import shlex
import sys
from pathlib import Path
from typing import Final

from tickflightd.settings import PREFIX, Settings
from tickflightd.tls import Certificate

SAMPLE_ROWS: Final = 5
_TLS: Final = ', tls_root_certs=open("{path}", "rb").read(), override_hostname="{name}"'
_QUERY: Final = (
    "import json, os, pyarrow.flight as flight; "
    'client = flight.connect("{uri}"{tls}); '
    'header = (b"authorization", b"Bearer " + os.environb[b"{prefix}API_KEY"]); '
    "options = flight.FlightCallOptions(headers=[header]); "
    'ticket = {{"op": "latest", "symbols": ["{symbol}"], "limit": {rows}}}; '
    "reader = client.do_get(flight.Ticket(json.dumps(ticket)), options); "
    'print(*reader.read_all().to_pylist(), sep="\\n")'
)


def ready_line(uri: str) -> str:
    """Return the one line scripts wait for."""
    return f"ready flight={uri}"


def welcome(
    settings: Settings, uri: str, demo_key: str | None, certificate: Certificate | None = None
) -> str:
    """Return the block for people.

    Args:
        settings: What the service was started with.
        uri: Where it answers.
        demo_key: A key to show, if it opens nothing but synthetic data.
        certificate: What it shows, if it does.
    """
    lines = ["", f"  tickflight serves Apache Arrow Flight at {uri}"]
    if demo_key is None:
        lines += _how_to_get_a_key()
    else:
        lines += _demo(settings, uri, demo_key, certificate)
    return "\n".join([*lines, "", "  Stop with Ctrl-C.", ""])


def _how_to_get_a_key() -> list[str]:
    create = f"    {_tool('tickflightd')} keys create MODEL"
    return ["", "  Make a key for each model that reads it:", "", create]


def _demo(settings: Settings, uri: str, key: str, certificate: Certificate | None) -> list[str]:
    symbol = "MNQ" if "MNQ" in settings.symbols else settings.symbols[0]
    tls = _TLS.format(path=certificate.path, name=certificate.name) if certificate else ""
    query = _QUERY.format(uri=uri, tls=tls, prefix=PREFIX, symbol=symbol, rows=SAMPLE_ROWS)
    environment = f"{PREFIX}API_KEY={key}"
    default = Settings.model_fields["flight_uri"].default
    elsewhere = "" if uri == default else f" {PREFIX}FLIGHT_URI={uri}"
    return [
        f"  demo feed: {', '.join(settings.symbols)} (synthetic)",
        f"  API key:   {key}   (reads the demo, valid for 7 days)",
        "",
        "  Try it in a second terminal:",
        "",
        f"    {environment}{elsewhere} {_tool('tickflight')} latest {symbol}",
        "",
        "  or with nothing but pyarrow:",
        "",
        f"    {environment} {_tool('python')} -c {shlex.quote(query)}",
    ]


def _tool(name: str) -> str:
    """Return how to call a program of this environment from where we were started."""
    program = Path(sys.prefix) / "bin" / name
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))
