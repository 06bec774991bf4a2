"""Where the server is and which key opens it.

An argument wins over the environment. When neither names a key, the key that ``tickflightd up``
leaves for users of its own machine is taken: a notebook beside the service then needs no set-up.
That key is only ever offered to the address it was made for.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tickflight.errors import ConfigurationError

DEFAULT_URI: Final = "grpc://127.0.0.1:8815"
TLS_SCHEME: Final = "grpc+tls"
SCHEMES: Final = frozenset({"grpc", "grpc+tcp", TLS_SCHEME, "grpc+unix"})
_MAX_ENV_BYTES: Final = 1 << 20  # a .env is a page of text; a larger file is a mistake
_MAX_KEY_FILE_BYTES: Final = 1 << 16  # likewise


@dataclass(frozen=True, slots=True)
class Settings:
    """What it takes to reach a server; the key stays out of ``repr``.

    Attributes:
        uri: Where it answers.
        api_key: The key.
        tls_root_certs: A PEM file of what to trust, where the server's certificate is not signed
            by a public authority.
        tls_server_name: The name to expect in the certificate, where it is not the address's.
    """

    uri: str
    api_key: str = field(repr=False)
    tls_root_certs: Path | None = None
    tls_server_name: str | None = None


def resolve(
    uri: str | None,
    api_key: str | None,
    environment: Mapping[str, str] | None = None,
    *,
    tls_root_certs: str | Path | None = None,
    tls_server_name: str | None = None,
) -> Settings:
    """Settle address, key and what to trust from arguments, environment and local key file.

    Raises:
        ConfigurationError: there is no key, or address or key can't be right.
    """
    environment = os.environ if environment is None else environment
    uri = uri or environment.get("TICKFLIGHT_FLIGHT_URI") or None
    api_key = api_key or environment.get("TICKFLIGHT_API_KEY") or None
    roots = tls_root_certs or environment.get("TICKFLIGHT_TLS_ROOT_CERTS") or None
    certs = None if roots is None else Path(roots)
    local = None
    if api_key is None or (_is_tls(uri) and certs is None):
        local = _local_settings(environment)
        if local is not None and uri not in (None, local.uri):
            local = None  # it speaks of another service
    if local is not None:
        uri, api_key = local.uri, api_key or local.api_key
        certs, tls_server_name = (
            certs or local.tls_root_certs,
            tls_server_name or local.tls_server_name,
        )
    if api_key is None:
        raise ConfigurationError(
            "no API key: set TICKFLIGHT_API_KEY or pass api_key=…"
            " (`tickflightd keys create NAME` makes one)"
        )
    checked = _checked_uri(uri or DEFAULT_URI), _checked_key(api_key)
    return Settings(*checked, tls_root_certs=certs, tls_server_name=tls_server_name)


def _is_tls(uri: str | None) -> bool:
    return uri is not None and uri.startswith(f"{TLS_SCHEME}://")


def read_env_file(path: Path) -> dict[str, str]:
    """Read ``NAME=value`` lines as the service does: comments, ``export`` and quotes understood.

    Returns:
        What the file sets, empty when there is none.

    Raises:
        ConfigurationError: the file is there and can't be read.
    """
    text = _read_text(path, _MAX_ENV_BYTES)
    values: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or name.startswith("#"):
            continue
        if value[:1] in ("'", '"'):
            value = value[1:].partition(value[0])[0]
        else:
            value = value.partition(" #")[0].rstrip()
        values[name] = value
    return values


def _checked_uri(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"the address must begin with {', '.join(sorted(SCHEMES))}, as {DEFAULT_URI} does"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the address must not hold a credential; pass api_key=…")
    if parts.scheme != "grpc+unix" and not parts.hostname:
        raise ConfigurationError(f"the address names no host: write it as {DEFAULT_URI}")
    return uri


def _checked_key(api_key: str) -> str:
    """A key that fits in a header; what is wrong with it is said without showing it."""
    api_key = api_key.strip()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigurationError(
            "the API key holds characters a key can't have: copy it again, it looks like tf_…_…"
        )
    return api_key


def _local_settings(environment: Mapping[str, str]) -> Settings | None:
    data = Path(environment.get("TICKFLIGHT_DATA_DIR") or "data")
    for path in (data / "local.key", data / "demo" / "local.key"):
        text = _read_text(path, _MAX_KEY_FILE_BYTES, secret=path)
        if text is not None:
            return _parse_key_file(path, text)
    return None


def _parse_key_file(path: Path, text: str) -> Settings:
    try:
        content = json.loads(text)
        certs = content.get("root_certs")
        return Settings(
            str(content["uri"]),
            str(content["key"]),
            None if certs is None else Path(str(certs)),
            content.get("server_name"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not chained: the cause would show the text, and the text is the key.
        raise ConfigurationError(
            f"{path} is not a key file; restart the service to have it written anew"
        ) from None


def _read_text(path: Path, limit: int, *, secret: Path | None = None) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            if secret is not None and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigurationError(f"{path} can be read by others: chmod 600 {path}")
            text = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} can't be read: {type(error).__name__}") from None
    if len(text) > limit:
        raise ConfigurationError(f"{path} is larger than {limit} bytes, which can't be right")
    return text
