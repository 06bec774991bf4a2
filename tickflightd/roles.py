"""A role: one process of the service, as its supervisor sees it.

A role says on its stdout that it is ready, in one line ``ready NAME=VALUE``; everything else it has
to say goes to stderr, which it shares with the supervisor.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

READY: Final = b"ready "
_CHUNK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Role:
    """How to run one role.

    Attributes:
        name: What log lines and messages call it.
        command: Its command line; never holds a secret, since everybody can list those.
        environment: All its environment variables; may hold secrets.
        stop_seconds: How long it may take to stop before it is killed.
        final_codes: Exit codes after which it stays down: starting it again would not help.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    stop_seconds: float
    final_codes: frozenset[int] = frozenset()


class RoleProcess:
    """One run of a role, from its start to its end."""

    def __init__(self, role: Role, process: asyncio.subprocess.Process) -> None:
        self._role = role
        self._process = process
        self._ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read_stdout())

    @classmethod
    async def start(cls, role: Role) -> "RoleProcess":
        """Start the role, in a session of its own: a terminal's Ctrl-C is for the supervisor."""
        process = await asyncio.create_subprocess_exec(
            *role.command,
            env=role.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(role, process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return self._ready.is_set()

    async def ready(self) -> None:
        """Wait until the role is ready; for ever, if it ends before."""
        await self._ready.wait()

    async def ended(self) -> int:
        """Wait for the end; returns the exit code, negative for a signal."""
        code = await self._process.wait()
        await self._reader
        return code

    async def stop(self) -> int:
        """Ask the role to stop, then insist; returns its exit code."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._role.stop_seconds):
                return await self.ended()
        self.kill()
        return await self.ended()

    def kill(self) -> None:
        """End the role and whatever it has started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _read_stdout(self) -> None:
        """Wait for the ready line, then keep the pipe empty so that the role never blocks on it."""
        stdout = self._process.stdout
        assert stdout is not None, "started with a pipe"  # noqa: S101 - tells mypy
        while not self.is_ready:
            try:
                line = await stdout.readline()
            except ValueError:  # longer than the reader's limit: not the line we wait for
                continue
            if not line:
                return
            if line.startswith(READY):
                self._ready.set()
        while await stdout.read(_CHUNK_BYTES):
            pass
