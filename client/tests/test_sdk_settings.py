"""Where the server is and which key opens it."""

import json
from pathlib import Path

import pytest

import tickflight
from tickflight.settings import DEFAULT_URI, read_env_file, resolve

KEY = "tf_abc_hush"


def leave_key(directory: Path, *, uri: str = "grpc://127.0.0.1:9915", mode: int = 0o600) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "local.key"
    path.write_text(json.dumps({"uri": uri, "key": KEY}))
    path.chmod(mode)
    return path


class TestOrder:
    def test_an_argument_wins_over_the_environment(self) -> None:
        environment = {"TICKFLIGHT_FLIGHT_URI": "grpc://b:1", "TICKFLIGHT_API_KEY": "tf_b_b"}
        settings = resolve("grpc://a:1", "tf_a_a", environment)
        assert (settings.uri, settings.api_key) == ("grpc://a:1", "tf_a_a")
        settings = resolve(None, None, environment)
        assert (settings.uri, settings.api_key) == ("grpc://b:1", "tf_b_b")

    def test_the_default_address_is_this_machine(self) -> None:
        assert resolve(None, KEY, {}).uri == DEFAULT_URI == "grpc://127.0.0.1:8815"

    def test_without_any_key_the_error_says_what_to_set(self) -> None:
        with pytest.raises(tickflight.ConfigurationError, match="TICKFLIGHT_API_KEY"):
            tickflight.connect()

    @pytest.mark.parametrize("place", ["data", "data/demo"])
    def test_a_service_on_this_machine_lends_its_key(self, tmp_path: Path, place: str) -> None:
        leave_key(tmp_path / place)
        settings = resolve(None, None, {})
        assert (settings.uri, settings.api_key) == ("grpc://127.0.0.1:9915", KEY)

    def test_the_data_directory_says_where_that_key_is(self, tmp_path: Path) -> None:
        leave_key(tmp_path / "elsewhere")
        environment = {"TICKFLIGHT_DATA_DIR": str(tmp_path / "elsewhere")}
        assert resolve(None, None, environment).api_key == KEY

    def test_a_local_key_is_only_offered_to_its_own_address(self, tmp_path: Path) -> None:
        leave_key(tmp_path / "data")
        assert resolve("grpc://127.0.0.1:9915", None, {}).api_key == KEY
        with pytest.raises(tickflight.ConfigurationError, match="no API key"):
            resolve("grpc://example.org:8815", None, {})


class TestTrust:
    """What a client trusts where the server shows a certificate."""

    URI = "grpc+tls://127.0.0.1:9915"

    def leave(self, directory: Path) -> None:
        path = leave_key(directory, uri=self.URI)
        trust = {"root_certs": "/etc/service.crt", "server_name": "feed.example.com"}
        path.write_text(json.dumps(json.loads(path.read_text()) | trust))

    def test_a_service_on_this_machine_says_what_to_trust_in_it(self, tmp_path: Path) -> None:
        self.leave(tmp_path / "data")
        settings = resolve(None, None, {})
        assert settings.tls_root_certs == Path("/etc/service.crt")
        assert settings.tls_server_name == "feed.example.com"

    def test_it_does_so_for_whoever_brings_a_key_of_his_own(self, tmp_path: Path) -> None:
        self.leave(tmp_path / "data")
        settings = resolve(self.URI, "tf_a_a", {})
        assert (settings.api_key, settings.tls_server_name) == ("tf_a_a", "feed.example.com")

    def test_it_does_not_for_another_address(self, tmp_path: Path) -> None:
        self.leave(tmp_path / "data")
        settings = resolve("grpc+tls://example.org:8815", "tf_a_a", {})
        assert (settings.tls_root_certs, settings.tls_server_name) == (None, None)

    def test_an_argument_wins_over_the_environment(self) -> None:
        environment = {"TICKFLIGHT_TLS_ROOT_CERTS": "/b.pem"}
        assert resolve(self.URI, KEY, environment).tls_root_certs == Path("/b.pem")
        chosen = resolve(self.URI, KEY, environment, tls_root_certs="/a.pem", tls_server_name="a")
        assert (chosen.tls_root_certs, chosen.tls_server_name) == (Path("/a.pem"), "a")

    def test_certificates_that_can_not_be_read_are_named(self) -> None:
        with pytest.raises(tickflight.ConfigurationError, match=r"/nowhere/roots\.pem"):
            tickflight.connect(self.URI, KEY, tls_root_certs="/nowhere/roots.pem")


class TestRefusals:
    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_a_key_file_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        leave_key(tmp_path / "data", mode=mode)
        with pytest.raises(tickflight.ConfigurationError, match="chmod 600"):
            resolve(None, None, {})

    @pytest.mark.parametrize("content", ["", "tf_abc_hush", '{"key": "tf_abc_hush"}', "[]"])
    def test_a_broken_key_file_is_refused_without_showing_it(
        self, tmp_path: Path, content: str
    ) -> None:
        path = leave_key(tmp_path / "data")
        path.write_text(content)
        with pytest.raises(tickflight.ConfigurationError, match="not a key file") as caught:
            resolve(None, None, {})
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("uri", ["127.0.0.1:8815", "http://a:1", "grpc://", "grpc://u:p@a:1"])
    def test_an_address_that_cannot_be_right_is_refused(self, uri: str) -> None:
        with pytest.raises(tickflight.ConfigurationError):
            resolve(uri, KEY, {})

    @pytest.mark.parametrize("key", [" ", "tf_a\n_hush", "tf_ä_hush", "tf_a hush"])
    def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(self, key: str) -> None:
        with pytest.raises(tickflight.ConfigurationError) as caught:
            resolve(None, key, {})
        assert "hush" not in str(caught.value)

    def test_certificates_that_cannot_be_read_are_named(self, tmp_path: Path) -> None:
        missing = tmp_path / "ca.pem"
        with pytest.raises(tickflight.ConfigurationError, match=r"ca\.pem"):
            tickflight.connect("grpc+tls://a:1", KEY, tls_root_certs=missing)


def test_the_key_is_in_no_repr() -> None:
    settings = resolve(None, KEY, {})
    client = tickflight.connect("grpc://127.0.0.1:1", KEY)
    for shown in (repr(settings), repr(client), str(client.__dict__)):
        assert "hush" not in shown
    assert repr(client) == "<Client grpc://127.0.0.1:1>"


class TestEnvFile:
    def test_names_values_comments_quotes_and_exports_are_understood(self, tmp_path: Path) -> None:
        path = tmp_path / ".env"
        path.write_text(
            "# a comment\n\nA=1\nexport B = two \nC='a # b' # c\n"
            'D="x"\nE=y # z\nF=\nG=a#b\nnoise\n'
        )
        assert read_env_file(path) == {
            "A": "1",
            "B": "two",
            "C": "a # b",
            "D": "x",
            "E": "y",
            "F": "",
            "G": "a#b",
        }

    def test_no_file_sets_nothing(self, tmp_path: Path) -> None:
        assert read_env_file(tmp_path / ".env") == {}

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(tickflight.ConfigurationError, match=r"\.env can't be read"):
            read_env_file(tmp_path / ".env")
