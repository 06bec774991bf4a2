"""The certificate the service shows, looked at before anybody connects.

A pair that gRPC can't use it reports as "failed to bind", and a certificate that has expired it
serves without a word; so the pair goes through a TLS handshake with itself first, in memory.
"""

import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storage.ports import MICROSECONDS
from tickflightd.errors import ConfigurationError
from tickflightd.settings import Settings

TLS_SCHEME: Final = "grpc+tls"
EXPIRY_WARNING_DAYS: Final = 14
"""How long before its end a certificate is worth a warning: time to order another."""
_DAY_SECONDS: Final = 86_400
_HANDSHAKE_STEPS: Final = 8
"""A handshake in memory takes three; more means that neither side gets on."""
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, known to work.

    Attributes:
        path: Where the certificate lies; clients of this machine trust it as it is.
        chain: The certificate and those between it and its authority, PEM.
        key: The private key, PEM.
        name: A name the certificate is for; clients of this machine expect it, whatever address
            they connect to.
        ends_at: When it expires, µs since 1970, UTC.
    """

    path: Path
    chain: bytes
    key: bytes = field(repr=False)
    name: str
    ends_at: int

    def days_left(self, now: int) -> int:
        """Return the whole days until it expires."""
        return (self.ends_at - now) // (_DAY_SECONDS * MICROSECONDS)


def server_certificate(settings: Settings) -> Certificate | None:
    """Return what to serve with; ``None`` is in the clear.

    Raises:
        ConfigurationError: Address, certificate and key don't go together, or can't be used.
    """
    is_tls = settings.flight_uri.startswith(f"{TLS_SCHEME}://")
    paths = (settings.tls_cert, settings.tls_key)
    if paths == (None, None):
        if is_tls:
            raise ConfigurationError(
                f"TICKFLIGHT_FLIGHT_URI begins with {TLS_SCHEME}, and there is no certificate:"
                " set TICKFLIGHT_TLS_CERT and TICKFLIGHT_TLS_KEY"
            )
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ConfigurationError(
            "TICKFLIGHT_TLS_CERT and TICKFLIGHT_TLS_KEY belong together: set both or neither"
        )
    if not is_tls:
        raise ConfigurationError(
            "there is a certificate, but TICKFLIGHT_FLIGHT_URI is not encrypted: write it as"
            f" {TLS_SCHEME}://{settings.flight_host}:{settings.flight_port}"
        )
    return load(settings.tls_cert, settings.tls_key)


def load(certificate: Path, key: Path) -> Certificate:
    """Read a pair of PEM files and prove that it works today.

    Raises:
        ConfigurationError: It doesn't; one sentence says why.
    """
    chain = _read("TICKFLIGHT_TLS_CERT", certificate)
    secret = _read("TICKFLIGHT_TLS_KEY", key)
    if stat.S_IMODE(key.stat().st_mode) & 0o077:
        raise ConfigurationError(f"TICKFLIGHT_TLS_KEY={key} can be read by others: chmod 600 it")
    shown = _handshake(certificate, key)
    names = [value for _, value in shown.get("subjectAltName", ())]
    if not names:
        raise ConfigurationError(
            f"TICKFLIGHT_TLS_CERT={certificate} is for no name: clients look at its"
            " subjectAltName, so have one made with it"
        )
    ends_at = int(ssl.cert_time_to_seconds(str(shown["notAfter"]))) * MICROSECONDS
    return Certificate(certificate.absolute(), chain, secret, str(names[0]), ends_at)


def expiry_warning(certificate: Certificate, now: int) -> str | None:
    """Return a sentence if the certificate expires soon; ``now`` in µs."""
    days = certificate.days_left(now)
    if days >= EXPIRY_WARNING_DAYS:
        return None
    return f"the certificate {certificate.path} expires in {days} days: replace it and restart"


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name}={path} can't be read: {error.strerror}") from error


def _handshake(certificate: Path, key: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the certificate as a client sees it that trusts nothing else."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        server.load_cert_chain(certificate, key, password=_refuse_password)
        client.load_verify_locations(certificate)
        return _shown(server, client)
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(_why_unusable(certificate, error)) from error
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"TICKFLIGHT_TLS_CERT={certificate} and TICKFLIGHT_TLS_KEY={key} can't be used: they"
            " must be a certificate and the unencrypted private key it was made with, both PEM"
        ) from error


def _refuse_password() -> str:
    raise ValueError("the key is encrypted")


def _shown(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> dict[str, tuple[tuple[str, str], ...]]:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = set(ends)
    for _ in range(_HANDSHAKE_STEPS):
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.discard(end)
        if not waiting:
            break
    return dict(ends[0].getpeercert() or {})  # type: ignore[arg-type]


def _why_unusable(certificate: Path, error: ssl.SSLCertVerificationError) -> str:
    reasons = {
        _EXPIRED: "has expired: replace it",
        _NOT_YET_VALID: "is not valid yet: see whether the machine's clock is right",
    }
    reason = reasons.get(error.verify_code, f"is not accepted by clients ({error.verify_message})")
    return f"TICKFLIGHT_TLS_CERT={certificate} {reason}"
