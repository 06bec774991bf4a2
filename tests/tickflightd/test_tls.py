"""TLS: which certificates are served with, and that everything works behind one."""

import datetime as dt
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyarrow import flight

import tickflight
from tickflightd import settings, tls
from tickflightd.errors import ConfigurationError
from tickflightd.settings import PREFIX
from tickflightd.testing import RunningService, own_environment, tickflightd

DAY = dt.timedelta(days=1)
MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Files:
    """Where a certificate and its key lie, both PEM."""

    certificate: Path
    key: Path


Maker = Callable[..., Files]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def made(name: str = "service", **options: object) -> Files:
        return make_certificate(tmp_path / name, **options)  # type: ignore[arg-type]

    return made


def make_certificate(
    directory: Path,
    *,
    names: tuple[str, ...] = ("127.0.0.1",),
    begins: dt.timedelta = -DAY,
    ends: dt.timedelta = 90 * DAY,
    by_authority: bool = False,
    password: bytes | None = None,
) -> Files:
    """Write a certificate for ``names`` and its key; times count from now."""
    directory.mkdir()
    now = dt.datetime.now(tz=dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = ec.generate_private_key(ec.SECP256R1()) if by_authority else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(_called("a service"))
        .issuer_name(_called("an authority" if by_authority else "a service"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    files = Files(directory / "service.crt", directory / "service.key")
    signed = builder.sign(authority, hashes.SHA256())
    files.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    protection = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    )
    return files


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class TestPair:
    def test_a_good_pair_is_known_by_name_and_end(self, make: Maker) -> None:
        files = make(names=("feed.example.com", "192.0.2.7"))
        loaded = tls.load(files.certificate, files.key)
        assert loaded.name == "feed.example.com"
        assert loaded.chain == files.certificate.read_bytes()
        now = int(dt.datetime.now(tz=dt.UTC).timestamp()) * MICROSECONDS
        assert loaded.days_left(now) in (89, 90)

    def test_one_signed_by_an_authority_we_do_not_know_is_fine(self, make: Maker) -> None:
        files = make(by_authority=True)
        assert tls.load(files.certificate, files.key).name == "127.0.0.1"

    def test_its_key_shows_nowhere(self, make: Maker) -> None:
        files = make()
        assert "PRIVATE" not in repr(tls.load(files.certificate, files.key))

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"ends": -DAY / 2}, "has expired: replace it"),
            ({"begins": DAY}, "not valid yet"),
            ({"names": ()}, "for no name"),
            ({"password": b"hunter2"}, "unencrypted private key"),
        ],
    )
    def test_a_bad_one_is_refused_in_one_sentence(
        self, make: Maker, options: dict[str, object], reason: str
    ) -> None:
        files = make(**options)
        with pytest.raises(ConfigurationError, match=reason) as refused:
            tls.load(files.certificate, files.key)
        assert "\n" not in str(refused.value)

    def test_a_key_of_another_certificate_is_refused(self, make: Maker) -> None:
        one, other = make("one"), make("other")
        with pytest.raises(ConfigurationError, match="the unencrypted private key it was made"):
            tls.load(one.certificate, other.key)

    @pytest.mark.parametrize("content", [b"", b"no certificate", bytes(range(256)) * 40])
    def test_what_is_no_pem_is_refused(self, make: Maker, content: bytes) -> None:
        files = make()
        files.certificate.write_bytes(content)
        with pytest.raises(ConfigurationError, match="both PEM"):
            tls.load(files.certificate, files.key)

    @pytest.mark.parametrize("mode", [0o604, 0o640, 0o666])
    def test_a_key_that_others_can_read_is_refused(self, make: Maker, mode: int) -> None:
        files = make()
        files.key.chmod(mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            tls.load(files.certificate, files.key)

    @pytest.mark.parametrize("name", ["certificate", "key"])
    def test_a_file_that_is_not_there_is_named(self, make: Maker, name: str) -> None:
        files = replace(make(), **{name: Path("/nowhere/at-all")})
        with pytest.raises(ConfigurationError, match="/nowhere/at-all can't be read"):
            tls.load(files.certificate, files.key)

    @pytest.mark.parametrize(("days", "warnings"), [(13, 1), (1, 1), (16, 0)])
    def test_the_last_two_weeks_are_worth_a_warning(
        self, make: Maker, days: int, warnings: int
    ) -> None:
        files = make(ends=days * DAY)
        now = int(dt.datetime.now(tz=dt.UTC).timestamp()) * MICROSECONDS
        warning = tls.expiry_warning(tls.load(files.certificate, files.key), now)
        assert [warning].count(None) == 1 - warnings


class TestSettings:
    @pytest.fixture
    def chosen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tls.Certificate | None]:
        for name in os.environ:
            if name.startswith(PREFIX):
                monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)

        def chosen(**values: object) -> tls.Certificate | None:
            for name, value in values.items():
                monkeypatch.setenv(f"{PREFIX}{name}", str(value))
            return tls.server_certificate(settings.load())

        return chosen

    def test_nothing_set_is_in_the_clear(
        self, chosen: Callable[..., tls.Certificate | None]
    ) -> None:
        assert chosen() is None

    def test_a_pair_and_an_address_that_says_so_go_together(
        self, chosen: Callable[..., tls.Certificate | None], make: Maker
    ) -> None:
        files = make()
        found = chosen(
            FLIGHT_URI="grpc+tls://127.0.0.1:8815", TLS_CERT=files.certificate, TLS_KEY=files.key
        )
        assert found is not None
        assert found.path == files.certificate

    @pytest.mark.parametrize(
        ("uri", "given", "reason"),
        [
            ("grpc+tls://127.0.0.1:8815", (), "there is no certificate"),
            ("grpc+tls://127.0.0.1:8815", ("TLS_CERT",), "both or neither"),
            ("grpc+tls://127.0.0.1:8815", ("TLS_KEY",), "both or neither"),
            ("grpc://127.0.0.1:8815", ("TLS_CERT", "TLS_KEY"), r"grpc\+tls://127.0.0.1:8815"),
        ],
    )
    def test_anything_half_done_is_refused(
        self,
        chosen: Callable[..., tls.Certificate | None],
        make: Maker,
        uri: str,
        given: tuple[str, ...],
        reason: str,
    ) -> None:
        files = make()
        paths = {"TLS_CERT": files.certificate, "TLS_KEY": files.key}
        with pytest.raises(ConfigurationError, match=reason):
            chosen(FLIGHT_URI=uri, **{name: paths[name] for name in given})


@pytest.mark.slow
class TestService:
    @pytest.fixture
    def files(self, make: Maker) -> Files:
        # For another name than the address: what is behind a tunnel, or serves at 0.0.0.0.
        return make(names=("feed.example.com",))

    def start(self, tmp_path: Path, files: Files, **values: str) -> RunningService:
        directory = tmp_path / "running"
        directory.mkdir()
        chosen = {
            "FLIGHT_URI": "grpc+tls://127.0.0.1:0",
            "TLS_CERT": str(files.certificate),
            "TLS_KEY": str(files.key),
        }
        return RunningService(directory, **{**chosen, **values})

    def test_roles_commands_and_clients_all_work_behind_it(
        self, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with self.start(tmp_path, files) as service:
            assert service.uri.startswith("grpc+tls://127.0.0.1:")
            status = subprocess.run(
                [str(Path(sys.executable).with_name("tickflight")), "status"],
                env=service.environment,
                cwd=service.directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )  # by the key file
            key, uri = service.demo_key, service.uri
            with tickflight.connect(
                uri, key, tls_root_certs=files.certificate, tls_server_name="feed.example.com"
            ) as client:
                newest = client.latest("MNQ", limit=5).arrow()  # the demo wrote through TLS
            monkeypatch.chdir(service.directory)
            with tickflight.connect(uri, key) as beside:  # trusts what the key file names
                assert beside.latest("MNQ", limit=5).arrow().num_rows == 5
        assert newest.num_rows == 5
        assert status.returncode == 0, status.stderr

    def test_a_client_that_does_not_trust_it_or_does_not_encrypt_gets_nothing(
        self, tmp_path: Path, files: Files, make: Maker
    ) -> None:
        with self.start(tmp_path, files, DEMO="0") as service:
            options = flight.FlightCallOptions(timeout=10)
            plain = service.uri.replace("grpc+tls", "grpc")
            other = make("other", names=("feed.example.com",)).certificate.read_bytes()
            for client in (
                flight.connect(service.uri, tls_root_certs=other),
                flight.connect(service.uri, tls_root_certs=files.certificate.read_bytes()),
                flight.connect(plain),
            ):
                with client, pytest.raises((flight.FlightError, pa.ArrowException, OSError)):
                    list(client.do_action(flight.Action("status", b""), options))

    def test_it_may_serve_beyond_this_machine(self, tmp_path: Path, files: Files) -> None:
        with self.start(tmp_path, files, FLIGHT_URI="grpc+tls://0.0.0.0:0", DEMO="0") as service:
            port = int(service.uri.rpartition(":")[2])
            with socket.create_connection(("127.0.0.2", port), timeout=10):
                pass
            key = json.loads(service.run("keys", "create", "m", "--json").stdout)["key"]
            with tickflight.connect(
                f"grpc+tls://127.0.0.1:{port}",
                key,
                tls_root_certs=files.certificate,
                tls_server_name="feed.example.com",
            ) as client:
                assert client.symbols() == ()

    def test_an_expired_certificate_is_wrong_configuration(
        self, tmp_path: Path, make: Maker
    ) -> None:
        files = make(ends=-DAY / 2)
        environment = own_environment(
            FLIGHT_URI="grpc+tls://127.0.0.1:0",
            TLS_CERT=str(files.certificate),
            TLS_KEY=str(files.key),
        )
        for command in ("up", "flight"):
            done = tickflightd(command, environment=environment, cwd=tmp_path)
            assert done.returncode == 2
            assert "has expired" in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "data").exists()
