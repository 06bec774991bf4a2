"""Keeps roles running: starts them in order, restarts what crashes, stops them in reverse order.

The life of one role:

    starting ──ready──▶ running ──ends──▶ waiting ──backoff──▶ starting …
        │                     └──ends for good──▶ down, until the service itself is started again
        └──ends──▶ waiting, and after ``START_ATTEMPTS_MAX`` such ends the supervisor gives up:
                   what has never worked is no crash but a fault somebody must look at.
"""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from tickflightd.errors import EXIT_USAGE, ConfigurationError, RoleFailedError
from tickflightd.roles import Role, RoleProcess

START_ATTEMPTS_MAX: Final = 3
"""Two could be bad luck, such as a port that is only just becoming free."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a role is started again.

    Attributes:
        first_seconds: After the first crash; short, because the feed is being missed.
        longest_seconds: The doubling stops here; an operator who mends something sees it work soon.
        stable_seconds: After a run as long as this, the next crash counts as the first.
    """

    first_seconds: float = 0.25
    longest_seconds: float = 15.0
    stable_seconds: float = 60.0

    def seconds(self, crashes: int) -> float:
        """Return the wait after that many crashes in a row: doubled each time, then jittered.

        Without jitter, roles that died of the same cause would all come back at once, again and
        again.
        """
        longest = min(self.longest_seconds, self.first_seconds * 2 ** min(crashes - 1, 16))
        return random.uniform(longest / 2, longest)  # noqa: S311 - no secret depends on it


@dataclass(frozen=True, slots=True)
class RoleEnd:
    """A role that ended by itself and is started again.

    Attributes:
        role: Its name.
        code: Its exit code, negative for a signal.
        wait_seconds: How long it is until it is started again.
    """

    role: str
    code: int
    wait_seconds: float

    @property
    def detail(self) -> str:
        """What happened, in words."""
        if self.code < 0:
            return f"its process was killed by {_signal(-self.code)}"
        return f"its process ended with exit code {self.code}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Supervisor:
    """Runs roles until it is told to stop.

    Args:
        roles: In the order to start them; each starts when the one before is ready.
        on_ready: Called once, when every role is ready for the first time.
        on_end: Called whenever a role has ended by itself and will be started again.
        backoff: How fast crashed roles come back.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        on_ready: Callable[[], None],
        on_end: Callable[[RoleEnd], None] = lambda _: None,
        backoff: Backoff | None = None,
    ) -> None:
        self._roles = tuple(roles)
        self._on_ready = on_ready
        self._on_end = on_end
        self._backoff = backoff or Backoff()
        self._stop = asyncio.Event()
        # The mutable state: the run of each role that has one at the moment.
        self._running: dict[str, RoleProcess] = {}

    def stop(self) -> None:
        """Begin an orderly stop; ``run`` returns when it is done."""
        self._stop.set()

    def kill(self) -> None:
        """End every role at once; ``run`` returns right after."""
        self._stop.set()
        for process in self._running.values():
            process.kill()

    async def run(self) -> None:
        """Run the roles until ``stop``.

        Raises:
            ConfigurationError: A role refused its configuration before it was ready.
            RoleFailedError: A role never came up.
        """
        keepers: list[asyncio.Task[None]] = []
        stopped = asyncio.create_task(self._stop.wait())
        try:
            for role in self._roles:
                up = asyncio.Event()
                keepers.append(asyncio.create_task(self._keep(role, up)))
                if not await self._reached(up, stopped, keepers):
                    return
            self._on_ready()
            await self._reached(asyncio.Event(), stopped, keepers)
        finally:
            self._stop.set()
            await self._end(keepers)
            await stopped

    async def _reached(
        self, goal: asyncio.Event, stopped: asyncio.Task[bool], keepers: list[asyncio.Task[None]]
    ) -> bool:
        """Wait for the goal; False when told to stop before, the error when a keeper gave up."""
        reached = asyncio.create_task(goal.wait())
        try:
            await asyncio.wait({reached, stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
        for keeper in keepers:
            if keeper.done():
                keeper.result()
        return goal.is_set() and not stopped.done()

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        """Stop roles in reverse order: what writes goes before what it writes to."""
        for role, keeper in reversed(list(zip(self._roles, keepers, strict=False))):
            if role.name in self._running:
                await self._running[role.name].stop()
            await asyncio.wait({keeper})

    async def _keep(self, role: Role, up: asyncio.Event) -> None:
        """Run one role over and over until the stop."""
        crashes = 0
        clock = asyncio.get_running_loop()
        while not self._stop.is_set():
            started = clock.time()
            code = await self._run_once(role, up)
            if self._stop.is_set():
                return
            if clock.time() - started >= self._backoff.stable_seconds:
                crashes = 0
            crashes += 1
            if not up.is_set():
                _give_up(role, code, crashes)
            if code in role.final_codes:
                _log.error("role stays down: its own message says why", child=role.name)
                await self._stop.wait()
                return
            wait = self._backoff.seconds(crashes)
            _log.error("role ended, restarting", child=role.name, code=code, wait=round(wait, 2))
            self._on_end(RoleEnd(role.name, code, wait))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stop.wait()

    async def _run_once(self, role: Role, up: asyncio.Event) -> int:
        """Run a role to its end; returns its exit code."""
        try:
            process = await RoleProcess.start(role)
        except OSError as error:  # no memory or no process left: as bad as a crash, and as passing
            _log.error("role can't be started", child=role.name, error=str(error))
            return os.EX_OSERR
        self._running[role.name] = process
        if self._stop.is_set():  # told to stop while starting, when there was nothing to stop yet
            process.kill()
        _log.info("role started", child=role.name, pid=process.pid)
        readiness = asyncio.create_task(self._note_ready(role, process, up))
        try:
            return await process.ended()
        finally:
            readiness.cancel()
            del self._running[role.name]

    async def _note_ready(self, role: Role, process: RoleProcess, up: asyncio.Event) -> None:
        await process.ready()
        _log.info("role ready", child=role.name)
        up.set()


def _give_up(role: Role, code: int, attempts: int) -> None:
    """Raise if a role that has never been ready is not worth another attempt."""
    if code == EXIT_USAGE:
        raise ConfigurationError(f"the role {role.name} can't start: its own message says why")
    if attempts >= START_ATTEMPTS_MAX:
        raise RoleFailedError(
            f"the role {role.name} ended {attempts} times before it was ready"
            f" (last exit code {code}): its log lines above say why"
        )
