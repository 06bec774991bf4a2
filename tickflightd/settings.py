"""The settings: the one module that reads the environment.

Every command finds them the same way: variables with the prefix ``TICKFLIGHT_``, then ``.env`` in
the working directory. What is wrong is said in one sentence; values never appear in a message,
because some are secrets.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from storage.schemas import SYMBOL_PATTERN
from tickflightd import machine
from tickflightd.errors import ConfigurationError
from tickflightd.quantities import parse_bytes, parse_duration, parse_list

PREFIX: Final = "TICKFLIGHT_"
ENV_FILE: Final = Path(".env")
DEMO_DIRECTORY: Final = "demo"
SCHEMES: Final = ("grpc", "grpc+tcp", "grpc+tls")

WITHOUT_EFFECT: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "GEXBOT_BASE_URL",
        "GEXBOT_TICKERS",
        "WEBHOOK_SECRET",
        "WEB_HOST",
        "WEB_PORT",
    )
)
"""Names of the design this version does nothing with: setting one is told, but no mistake."""

_LOOPBACK: Final = ("127.0.0.1", "::1")
_RETENTION_MIN: Final = parse_duration("2d")
"""Longer than the journal keeps rows, which would bring back what was dropped."""
_BYTES_MAX: Final = 1 << 60
"""Beyond any disk."""

_HELP: Final = {
    "bool_parsing": "write 1 or 0",
    "int_parsing": "write a whole number",
    "string_pattern_mismatch": "write debug, info, warning or error",
    "too_short": "write at least one",
}


def _symbols(text: str) -> tuple[str, ...]:
    symbols = parse_list(text)
    for symbol in symbols:
        if SYMBOL_PATTERN.fullmatch(symbol) is None:
            raise ValueError("write symbols such as MNQ,SPY: capitals, digits, '.', '_' and '-'")
    return symbols


def _names(text: str) -> tuple[str, ...]:
    return parse_list(text)


def _memory(text: str) -> int:
    return parse_bytes(text, whole=machine.memory_bytes())


def _size(text: str) -> int:
    if "%" in text:
        raise ValueError("write a size such as 512MiB or 16GiB")
    return parse_bytes(text, whole=_BYTES_MAX)


def _retention(text: str) -> int:
    kept = parse_duration(text)
    if kept < _RETENTION_MIN:
        raise ValueError("write 2d or more")
    return kept


def _lake(text: str) -> Path:
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return Path(unquote(parts.path))
    if "://" in text:
        raise ValueError("write a directory of this machine, such as /srv/lake or file:///srv/lake")
    return Path(text)


def _uri(text: str) -> str:
    parts = urlsplit(text)
    # A port that is no number, or above 65535, raises ValueError by itself.
    if parts.scheme not in SCHEMES or not parts.hostname or parts.port is None:
        raise ValueError("write an address such as grpc://127.0.0.1:8815")
    if parts.path or parts.query or parts.username:
        raise ValueError("write scheme, host and port only, such as grpc://127.0.0.1:8815")
    return text


def _redis(text: str) -> SecretStr:
    parts = urlsplit(text)
    is_socket = parts.scheme == "unix" and parts.path
    if not is_socket and (parts.scheme not in ("redis", "rediss") or not parts.hostname):
        raise ValueError("write an address such as redis://127.0.0.1:6379/0")
    if parts.port == 0:
        raise ValueError("write a port that a server can have")
    return SecretStr(text)


def _api_url(text: str) -> str:
    parts = urlsplit(text)
    loopback = parts.hostname in _LOOPBACK
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise ValueError("write an https:// address: credentials are sent there")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("write scheme, host and port only, such as https://api.tastyworks.com")
    return text


Duration = Annotated[int, BeforeValidator(parse_duration)]
"""Microseconds, written as ``1h``."""
Memory = Annotated[int, BeforeValidator(_memory)]
"""Bytes, written as ``2GiB`` or as a share of the machine's memory, ``30%``."""
Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, written as ``16GiB``."""
Retention = Annotated[int, BeforeValidator(_retention)]
"""Microseconds, written as ``366d``."""
RedisUrl = Annotated[SecretStr, BeforeValidator(_redis)]
"""An address that may hold a password."""
LakeUri = Annotated[Path, BeforeValidator(_lake)]
Symbols = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_symbols)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
ApiUrl = Annotated[str, BeforeValidator(_api_url)]
FlightUri = Annotated[str, BeforeValidator(_uri)]


class Settings(BaseSettings):
    """What the operator chose; ``.env.example`` says what each one means."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",  # unknown names are reported by ``remarks``, with a suggestion
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,  # defaults are values already, not text
    )

    data_dir: Path = Path("data")
    flight_uri: FlightUri = "grpc://127.0.0.1:8815"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_root_certs: Path | None = None
    api_key: SecretStr | None = None
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"

    demo: bool | None = None
    demo_rate: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    symbols: Annotated[Symbols, Field(min_length=1)] = ("MES", "MNQ", "NQ", "SPY", "QQQ", "VIX")
    source_priority: Names = ("tastytrade", "sierra", "import", "demo")

    hot_window: Duration = parse_duration("1h")
    hot_memory_limit: Memory = Field(default_factory=lambda: _memory("30%"))
    journal_limit: Size = _size("16GiB")
    lake_uri: LakeUri | None = None
    retention: Retention = parse_duration("366d")

    redis_url: RedisUrl | None = None

    tt_secret: SecretStr | None = None
    tt_refresh: SecretStr | None = None
    tt_api_url: ApiUrl | None = None
    gexbot_api_key: SecretStr | None = None
    sierra_dir: Path = Path("/mnt/c/SierraChart")
    sierra_symbols: Symbols = ()

    @property
    def configured_sources(self) -> tuple[str, ...]:
        """Live sources the operator has given what they need, whether or not we can run them."""
        present = {
            "tastytrade": self.tt_secret is not None or self.tt_refresh is not None,
            "gexbot": self.gexbot_api_key is not None,
            "sierra": bool(self.sierra_symbols) and self.sierra_dir.is_dir(),
        }
        return tuple(name for name, ready in present.items() if ready)

    def require_complete(self) -> None:
        """Refuse a source that was given half of what it needs.

        Raises:
            ConfigurationError: One is; the message says what is missing.
        """
        if "tastytrade" in self.configured_sources:
            for name in ("tt_secret", "tt_refresh"):
                if getattr(self, name) is None:
                    raise ConfigurationError(
                        f"{PREFIX}{name.upper()} is missing: tastytrade needs both the client"
                        " secret of an OAuth application and the refresh token of a grant"
                    )

    @property
    def demo_enabled(self) -> bool:
        """Whether the synthetic feed runs: asked for, or nothing else is configured."""
        return not self.configured_sources if self.demo is None else self.demo

    @property
    def data_directory(self) -> Path:
        """Where this service keeps everything; synthetic data never shares real data's place."""
        directory = self.data_dir.absolute()
        return directory / DEMO_DIRECTORY if self.demo_enabled else directory

    @property
    def lake_directory(self) -> Path:
        """Where the lake's tables are; those of synthetic data never beside those of real data."""
        if self.lake_uri is None:
            return self.data_directory / "lake"
        directory = self.lake_uri.absolute()
        return directory / DEMO_DIRECTORY if self.demo_enabled else directory

    @property
    def flight_host(self) -> str:
        """The host part of ``flight_uri``."""
        return urlsplit(self.flight_uri).hostname or ""

    @property
    def flight_port(self) -> int:
        """The port part of ``flight_uri``; 0 asks for any free one."""
        return urlsplit(self.flight_uri).port or 0

    def flight_uri_at(self, port: int) -> str:
        """Return ``flight_uri`` with another port."""
        parts = urlsplit(self.flight_uri)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}:{port}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret value, for the log to leave out."""
        values = [getattr(self, name) for name in type(self).model_fields]
        secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        if self.redis_url is not None:
            # Others may show the password without its URL, encoded or not.
            password = urlsplit(self.redis_url.get_secret_value()).password
            secrets += {password, unquote(password)} if password else ()
        return tuple(secrets)


def load() -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: A value can't be used; the message names its variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_sentence, _details(error)))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{ENV_FILE} can't be read: {error}") from None


def _details(error: ValidationError) -> list[Any]:
    # ``include_input`` off: the error would carry what was typed, which may be a secret.
    return list(error.errors(include_input=False, include_url=False, include_context=False))


def _sentence(detail: Mapping[str, Any]) -> str:
    name = f"{PREFIX}{detail['loc'][0]}".upper()
    said = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should ")
    return f"{name} can't be used: {_HELP.get(detail['type'], said)}"


def remarks() -> list[str]:
    """Return a sentence for each variable of our prefix that has no effect."""
    from_file = DotEnvSettingsSource(Settings).env_vars
    return remarks_on({*os.environ, *from_file})


def remarks_on(names: Iterable[str]) -> list[str]:
    """Return a sentence for each of ``names`` that has our prefix and no effect."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    ours = sorted({name.upper() for name in names if name.upper().startswith(PREFIX)} - known)
    return [_remark(name, known) for name in ours]


def _remark(name: str, known: set[str]) -> str:
    if name in WITHOUT_EFFECT:
        return f"{name} has no effect in this version"
    nearest = difflib.get_close_matches(name, known | WITHOUT_EFFECT, n=1, cutoff=0.0)
    return f"{name} is not a setting of tickflight; did you mean {nearest[0]}?"


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a role's process: ours, with some settings fixed.

    Args:
        changes: Values by setting name without the prefix, such as ``FLIGHT_URI``.
    """
    return {**os.environ, **{f"{PREFIX}{name}": value for name, value in changes.items()}}
