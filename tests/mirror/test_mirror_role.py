"""The mirror as a role of its own, beside the others."""

from pathlib import Path

import pytest

import tickflight
from tests.mirror.conftest import RedisServer, redis_server, until
from tickflightd.testing import RunningService, own_environment, tickflightd

SECRET = "wr0ng-and-s3cret"


def with_password(store: RedisServer, password: str) -> str:
    return store.url.replace("unix://", f"unix://:{password}@")


def state(service: RunningService) -> tuple[str, str]:
    """Return the state of the mirror and what it says."""
    with tickflight.connect(service.uri, service.demo_key) as client:
        found = {one.name: (one.state, one.detail) for one in client.status().services}
    return found.get("mirror", ("untold", ""))


@pytest.mark.slow
def test_the_demo_is_mirrored_where_redis_is_named(tmp_path: Path) -> None:
    with (
        redis_server("--requirepass", SECRET) as store,
        RunningService(tmp_path, DEMO="1", REDIS_URL=with_password(store, SECRET)) as service,
    ):
        assert set(service.roles()) == {"flight", "ingest demo", "mirror"}
        until(lambda: state(service)[0] == "running")
        with store.client(SECRET) as admin:
            until(lambda: admin.exists("tickflight:ticks:MNQ", "tickflight:quotes:MNQ") == 2)
            before = admin.hget("tickflight:ticks:MNQ", "ts_event")
            until(lambda: admin.hget("tickflight:ticks:MNQ", "ts_event") != before)
        assert service.stop() == 0
        assert SECRET not in service.log
        assert SECRET not in service.output


@pytest.mark.slow
def test_a_redis_that_is_away_keeps_nobody_from_starting(tmp_path: Path) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:1/0"
    with RunningService(tmp_path, DEMO="1", REDIS_URL=url) as service:
        until(lambda: state(service)[0] == "degraded")
        assert state(service)[1] == "Redis at 127.0.0.1:1: it can't be reached"
        assert service.stop() == 0
        assert SECRET not in service.log


def test_the_role_says_what_it_misses(tmp_path: Path) -> None:
    done = tickflightd("mirror", environment=own_environment(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("tickflightd: set TICKFLIGHT_REDIS_URL")


def test_a_url_with_options_nobody_knows_is_refused_in_a_sentence(tmp_path: Path) -> None:
    environment = own_environment(REDIS_URL=f"redis://:{SECRET}@127.0.0.1/0?nonsense=1")
    done = tickflightd("mirror", environment=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "TICKFLIGHT_REDIS_URL can't be used" in done.stderr
    assert SECRET not in done.stderr
