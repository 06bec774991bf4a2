"""The supervisor with small real processes as roles."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tickflightd.errors import ConfigurationError, RoleFailedError
from tickflightd.roles import Role, RoleProcess
from tickflightd.supervisor import START_ATTEMPTS_MAX, Backoff, RoleEnd, Supervisor

FAST = Backoff(first_seconds=0.01, longest_seconds=0.05)
PATIENCE_SECONDS = 30.0

OBEDIENT = """
import signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
print("ready it=up", flush=True)
stop.wait()
with open(sys.argv[1], "a") as file:
    file.write(sys.argv[2] + " stopped\\n")
"""
DEAF = """
import signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready it=up", flush=True)
threading.Event().wait()
"""
CHATTY = """
import threading
print("x" * 300_000, flush=True)
print("ready it=up", flush=True)
for _ in range(100):
    print("y" * 10_000, flush=True)
open({marker!r}, "w").close()
threading.Event().wait()
"""


def role(name: str, code: str, *arguments: str, stop_seconds: float = 10.0) -> Role:
    command = (sys.executable, "-c", code, *arguments)
    return Role(name, command, dict(os.environ), stop_seconds)


def run(supervise: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await supervise

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def supervised(roles: list[Role], meanwhile: Callable[[Supervisor], Awaitable[None]]) -> None:
    """Run roles; once all are ready do something, which has to end with a stop."""
    ready = asyncio.Event()
    supervisor = Supervisor(roles, on_ready=ready.set, backoff=FAST)
    running = asyncio.create_task(supervisor.run())
    readiness = asyncio.create_task(ready.wait())
    await asyncio.wait({running, readiness}, return_when=asyncio.FIRST_COMPLETED)
    if readiness.done():
        await meanwhile(supervisor)
    readiness.cancel()
    await running


def pids(supervisor: Supervisor) -> dict[str, int]:
    return {name: process.pid for name, process in supervisor._running.items()}


def test_roles_stop_in_the_reverse_of_their_order(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    roles = [role(name, OBEDIENT, str(diary), name) for name in ("flight", "ingest")]

    async def stop(supervisor: Supervisor) -> None:
        supervisor.stop()

    run(supervised(roles, stop))
    assert diary.read_text() == "ingest stopped\nflight stopped\n"


def test_a_crashed_role_comes_back_and_the_others_keep_running(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    roles = [role(name, OBEDIENT, str(diary), name) for name in ("flight", "ingest")]

    async def crash(supervisor: Supervisor) -> None:
        before = pids(supervisor)
        os.kill(before["flight"], 9)
        await until(lambda: pids(supervisor).get("flight", before["flight"]) != before["flight"])
        assert pids(supervisor)["ingest"] == before["ingest"]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await supervisor._running["flight"].ready()
        supervisor.stop()

    run(supervised(roles, crash))
    assert diary.read_text() == "ingest stopped\nflight stopped\n"


def test_a_role_that_will_not_stop_is_killed() -> None:
    async def stop(supervisor: Supervisor) -> None:
        supervisor.stop()

    run(supervised([role("deaf", DEAF, stop_seconds=0.1)], stop))


def test_kill_ends_even_a_role_with_a_long_time_to_stop() -> None:
    async def kill(supervisor: Supervisor) -> None:
        supervisor.kill()

    run(supervised([role("deaf", DEAF, stop_seconds=3_600)], kill))


def test_a_stop_while_a_role_starts_leaves_no_process() -> None:
    async def stop_at_once() -> None:
        supervisor = Supervisor([role("deaf", DEAF)], on_ready=lambda: None, backoff=FAST)
        running = asyncio.create_task(supervisor.run())
        await asyncio.sleep(0)  # the role is being started
        await asyncio.sleep(0)
        supervisor.stop()
        await running
        assert supervisor._running == {}

    run(stop_at_once())


def test_a_role_that_never_comes_up_ends_the_supervisor(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    broken = role("broken", f"open({str(diary)!r}, 'a').write('x'); raise SystemExit(1)")
    with pytest.raises(RoleFailedError, match="broken"):
        run(Supervisor([broken], on_ready=lambda: None, backoff=FAST).run())
    assert len(diary.read_text()) == START_ATTEMPTS_MAX


def test_a_role_that_refuses_its_configuration_is_not_tried_again(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    wrong = role("wrong", f"open({str(diary)!r}, 'a').write('x'); raise SystemExit(2)")
    with pytest.raises(ConfigurationError, match="wrong"):
        run(Supervisor([wrong], on_ready=lambda: None, backoff=FAST).run())
    assert diary.read_text() == "x"


def test_a_later_role_failing_stops_the_earlier_ones(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    roles = [role("flight", OBEDIENT, str(diary), "flight"), role("wrong", "raise SystemExit(2)")]
    with pytest.raises(ConfigurationError):
        run(Supervisor(roles, on_ready=lambda: None, backoff=FAST).run())
    assert diary.read_text() == "flight stopped\n"


def test_what_a_role_prints_never_blocks_it(tmp_path: Path) -> None:
    marker = tmp_path / "printed it all"
    chatty = role("chatty", CHATTY.format(marker=str(marker)), stop_seconds=5.0)

    async def wait(supervisor: Supervisor) -> None:
        await until(marker.exists)
        supervisor.stop()

    run(supervised([chatty], wait))


def test_whoever_listens_hears_of_a_crash_and_not_of_a_stop(tmp_path: Path) -> None:
    ends: list[RoleEnd] = []
    heard = asyncio.Event()

    async def crash() -> None:
        def hear(end: RoleEnd) -> None:
            ends.append(end)
            heard.set()

        ready = asyncio.Event()
        steady = role("steady", OBEDIENT, str(tmp_path / "diary"), "steady")
        supervisor = Supervisor([steady], on_ready=ready.set, on_end=hear, backoff=FAST)
        running = asyncio.create_task(supervisor.run())
        await ready.wait()
        os.kill(pids(supervisor)["steady"], signal.SIGKILL)
        await heard.wait()
        supervisor.stop()
        await running

    run(crash())
    (end,) = ends
    assert (end.role, end.code, end.detail) == ("steady", -9, "its process was killed by SIGKILL")


def test_an_end_is_told_in_words() -> None:
    assert RoleEnd("flight", 1, 0.5).detail == "its process ended with exit code 1"
    assert RoleEnd("flight", -99, 0.5).detail == "its process was killed by signal 99"


def test_no_secret_is_in_the_repr_of_a_role() -> None:
    shown = Role("flight", ("true",), {"TICKFLIGHT_API_KEY": "tf_id_secret"}, 1.0)
    assert "secret" not in repr(shown)


def test_a_process_started_in_its_own_session_is_deaf_to_our_terminal() -> None:
    async def session() -> int:
        process = await RoleProcess.start(role("deaf", DEAF))
        await process.ready()
        try:
            return os.getsid(process.pid)
        finally:
            process.kill()
            await process.ended()

    assert asyncio.run(session()) != os.getsid(0)


@pytest.mark.parametrize("crashes", [1, 2, 5, 50, 5_000])
def test_the_backoff_grows_is_jittered_and_never_passes_its_limit(crashes: int) -> None:
    backoff = Backoff(first_seconds=1.0, longest_seconds=20.0)
    full = min(20.0, 2.0 ** min(crashes - 1, 30))
    waits = {backoff.seconds(crashes) for _ in range(20)}
    assert all(full / 2 <= wait <= full for wait in waits)
    assert len(waits) > 1


def test_a_role_that_ends_for_good_stays_down_and_the_others_run(tmp_path: Path) -> None:
    marker = tmp_path / "runs"
    refused = (
        "import sys; open(sys.argv[1], 'a').write('x'); print('ready it=up', flush=True);"
        " import time; time.sleep(0.2); sys.exit(2)"
    )
    final = replace(role("feed", refused, str(marker)), final_codes=frozenset({2}))
    roles = [role("flight", OBEDIENT, str(tmp_path / "diary"), "flight"), final]

    async def wait_for_the_end(supervisor: Supervisor) -> None:
        await until(lambda: list(pids(supervisor)) == ["flight"])
        await asyncio.sleep(10 * FAST.longest_seconds)
        assert marker.read_text() == "x"
        assert list(pids(supervisor)) == ["flight"]
        supervisor.stop()

    run(supervised(roles, wait_for_the_end))
