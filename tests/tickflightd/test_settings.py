"""Settings, as an operator writes them."""

import os
import re
from pathlib import Path

import pytest

from tickflightd import machine, settings
from tickflightd.errors import ConfigurationError
from tickflightd.settings import PREFIX, WITHOUT_EFFECT, Settings

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / ".env.example"
EXAMPLE_LINE = re.compile(rf"^#({PREFIX}[A-Z_]+)=(.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and none of our variables set."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_wins_over_the_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / ".env").write_text("TICKFLIGHT_DEMO_RATE=5\nTICKFLIGHT_SYMBOLS=SPY\n")
    monkeypatch.setenv("TICKFLIGHT_DEMO_RATE", "7")
    loaded = settings.load()
    assert (loaded.demo_rate, loaded.symbols) == (7, ("SPY",))


def test_quantities_are_written_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKFLIGHT_HOT_WINDOW", "15m")
    monkeypatch.setenv("TICKFLIGHT_HOT_MEMORY_LIMIT", "64MiB")
    monkeypatch.setenv("TICKFLIGHT_SYMBOLS", " MNQ, SPY ,MNQ,")
    loaded = settings.load()
    assert loaded.hot_window == 15 * 60 * 1_000_000
    assert loaded.hot_memory_limit == 64 * 1_024**2
    assert loaded.symbols == ("MNQ", "SPY")


def test_memory_is_a_share_of_the_machine_by_default() -> None:
    assert settings.load().hot_memory_limit == round(machine.memory_bytes() * 0.3)


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("HOT_WINDOW", "an hour", "1h"),
        ("HOT_WINDOW", "0h", "1h"),
        ("HOT_MEMORY_LIMIT", "lots", "2GiB"),
        ("HOT_MEMORY_LIMIT", "200%", "more than there is"),
        ("JOURNAL_LIMIT", "30%", "16GiB"),
        ("LAKE_URI", "s3://bucket/lake", "a directory of this machine"),
        ("REDIS_URL", "127.0.0.1:6379", "redis://127.0.0.1:6379/0"),
        ("REDIS_URL", "redis://", "redis://127.0.0.1:6379/0"),
        ("REDIS_URL", "redis://127.0.0.1:88150", "0-65535"),
        ("DEMO", "perhaps", "write 1 or 0"),
        ("DEMO_RATE", "fast", "write a whole number"),
        ("DEMO_RATE", "0", "greater than or equal to 1"),
        ("SYMBOLS", "mnq", "MNQ,SPY"),
        ("SYMBOLS", ",", "at least one"),
        ("LOG_LEVEL", "loud", "debug, info, warning or error"),
        ("TT_API_URL", "http://api.example.com", "https://"),
        ("TT_API_URL", "https://api.example.com/v2", "scheme, host and port only"),
        ("FLIGHT_URI", "127.0.0.1:8815", "grpc://127.0.0.1:8815"),
        ("FLIGHT_URI", "grpc://127.0.0.1", "grpc://127.0.0.1:8815"),
        ("FLIGHT_URI", "grpc://127.0.0.1:8815/path", "scheme, host and port only"),
        ("FLIGHT_URI", "grpc://127.0.0.1:88150", "0-65535"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_variable(
    name: str, value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TICKFLIGHT_{name}", value)
    with pytest.raises(ConfigurationError) as refusal:
        settings.load()
    said = str(refusal.value)
    assert said.startswith(f"TICKFLIGHT_{name} can't be used: ")
    assert advice in said
    assert "\n" not in said


def test_no_message_shows_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKFLIGHT_TT_SECRET", "hunter2hunter2")
    monkeypatch.setenv("TICKFLIGHT_DEMO", "hunter2hunter2")
    with pytest.raises(ConfigurationError) as refusal:
        settings.load()
    assert "hunter2" not in f"{refusal.value!r} {refusal.value.__cause__!r}"


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1", "rediss://user:pass@cache.example.com:6380/1", "unix:///run/redis.sock"],
)
def test_redis_is_named_by_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKFLIGHT_REDIS_URL", url)
    loaded = settings.load()
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == url
    assert url not in repr(loaded)


def test_the_password_of_redis_is_known_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "redis://:p%40ss@127.0.0.1:6379"
    monkeypatch.setenv("TICKFLIGHT_REDIS_URL", url)
    assert set(settings.load().secrets) == {url, "p%40ss", "p@ss"}


def test_secrets_are_hidden_in_the_repr_and_known_to_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TICKFLIGHT_TT_SECRET", "hunter2hunter2")
    monkeypatch.setenv("TICKFLIGHT_API_KEY", "tf_id_secret")
    loaded = settings.load()
    assert "hunter2" not in repr(loaded)
    assert "tf_id" not in repr(loaded)
    assert set(loaded.secrets) == {"hunter2hunter2", "tf_id_secret"}


def test_a_file_that_is_no_text_is_one_sentence(elsewhere: Path) -> None:
    (elsewhere / ".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"\.env can't be read"):
        settings.load()


def test_a_misspelt_variable_is_told_with_the_nearest_name(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKFLIGHT_DATADIR", "x")
    (elsewhere / ".env").write_text("TICKFLIGHT_DEMO_RATES=5\nOTHER=1\n")
    assert settings.remarks() == [
        "TICKFLIGHT_DATADIR is not a setting of tickflight; did you mean TICKFLIGHT_DATA_DIR?",
        "TICKFLIGHT_DEMO_RATES is not a setting of tickflight; did you mean TICKFLIGHT_DEMO_RATE?",
    ]


def test_a_variable_without_effect_is_told_without_a_suggestion() -> None:
    assert settings.remarks_on(["TICKFLIGHT_WEB_PORT", "PATH"]) == [
        "TICKFLIGHT_WEB_PORT has no effect in this version"
    ]


def test_every_name_either_has_an_effect_or_is_said_to_have_none() -> None:
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert not known & WITHOUT_EFFECT


class TestDemo:
    def test_it_runs_when_nothing_is_configured(self) -> None:
        assert settings.load().demo_enabled

    @pytest.mark.parametrize("name", ["TT_SECRET", "TT_REFRESH", "GEXBOT_API_KEY"])
    def test_a_configured_source_turns_it_off(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"TICKFLIGHT_{name}", "hunter2hunter2")
        assert not settings.load().demo_enabled

    def test_sierra_counts_when_its_directory_is_there(
        self, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TICKFLIGHT_SIERRA_SYMBOLS", "NQ")
        monkeypatch.setenv("TICKFLIGHT_SIERRA_DIR", str(elsewhere / "SierraChart"))
        assert settings.load().configured_sources == ()
        (elsewhere / "SierraChart").mkdir()
        assert settings.load().configured_sources == ("sierra",)

    def test_it_can_be_asked_for_beside_a_source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TICKFLIGHT_TT_SECRET", "hunter2hunter2")
        monkeypatch.setenv("TICKFLIGHT_DEMO", "1")
        assert settings.load().demo_enabled

    def test_it_keeps_its_data_apart(
        self, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert settings.load().data_directory == elsewhere / "data" / "demo"
        monkeypatch.setenv("TICKFLIGHT_DEMO", "0")
        assert settings.load().data_directory == elsewhere / "data"


class TestLake:
    def test_it_is_beside_the_journal_unless_told(self, elsewhere: Path) -> None:
        assert settings.load().lake_directory == elsewhere / "data" / "demo" / "lake"

    def test_that_of_the_demo_stays_apart_wherever_it_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TICKFLIGHT_LAKE_URI", "file:///srv/my%20lake")
        assert settings.load().lake_directory == Path("/srv/my lake/demo")
        monkeypatch.setenv("TICKFLIGHT_DEMO", "0")
        assert settings.load().lake_directory == Path("/srv/my lake")


class TestExample:
    def test_it_lists_every_setting_and_no_other(self) -> None:
        listed = [name for name, _ in EXAMPLE_LINE.findall(EXAMPLE.read_text())]
        assert sorted(listed) == sorted(f"{PREFIX}{name}".upper() for name in Settings.model_fields)

    def test_every_line_shows_the_default(self, elsewhere: Path) -> None:
        default = settings.load()
        (elsewhere / ".env").write_text(EXAMPLE_LINE.sub(r"\1=\2", EXAMPLE.read_text()))
        assert settings.load() == default

    def test_every_setting_has_a_comment_before_it(self) -> None:
        lines = EXAMPLE.read_text().splitlines()
        settings_of = [i for i, line in enumerate(lines) if EXAMPLE_LINE.match(line)]
        for i in settings_of:
            assert lines[i - 1].startswith("#"), lines[i]
