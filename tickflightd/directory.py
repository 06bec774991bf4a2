"""The data directory: who owns it, and the files ``up`` leaves there for commands."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tickflightd import machine
from tickflightd.errors import AlreadyRunningError, ConfigurationError

UP_LOCK: Final = "up.lock"
FLIGHT_LOCK: Final = "flight.lock"
LOCAL_KEY: Final = "local.key"
HANDOVER_SECONDS: Final = 1.0
"""How long a killed service's last process may take to vanish; its successor waits that long."""
POLL_SECONDS: Final = 0.05
_PRIVATE_MODE: Final = 0o600


def prepare(directory: Path) -> Path:
    """Make the data directory ready for use; returns it.

    Raises:
        ConfigurationError: It is on a file system we can't work on, or can't be written.
    """
    machine.require_local_disk(directory)
    machine.require_writable(directory)
    return directory


@contextmanager
def owned(directory: Path, lock: str) -> Iterator[None]:
    """Own ``directory`` for one purpose until the block ends; the kernel frees it if we die.

    Raises:
        AlreadyRunningError: Another process owns it.
    """
    descriptor = os.open(directory / lock, os.O_RDWR | os.O_CREAT, _PRIVATE_MODE)
    try:
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise AlreadyRunningError(
                    f"a service is running on {directory} already: stop it, or give this one its"
                    " own TICKFLIGHT_DATA_DIR and TICKFLIGHT_FLIGHT_URI"
                )
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_owned(directory: Path, lock: str) -> bool:
    """Whether a process owns ``directory`` for a purpose right now, or may; changes nothing."""
    try:
        descriptor = os.open(directory / lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # another user's, who alone could tell
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class LocalAccess:
    """How commands on this machine reach the running service.

    Attributes:
        uri: Where it answers.
        key: A key that opens everything.
        root_certs: Its certificate, where it has one: what clients have to trust.
        server_name: The name in that certificate, whatever address it is reached at.
    """

    uri: str
    key: str = field(repr=False)
    root_certs: Path | None = None
    server_name: str | None = None


def write_local_access(directory: Path, access: LocalAccess) -> None:
    """Leave ``access`` for commands of the same user; readers see the old file or the new one."""
    path = directory / LOCAL_KEY
    scratch = directory / f".{LOCAL_KEY}.{secrets.token_hex(8)}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        content = {"uri": access.uri, "key": access.key}
        if access.root_certs is not None and access.server_name is not None:
            content |= {"root_certs": str(access.root_certs), "server_name": access.server_name}
        json.dump(content, file)
    # Not synced: after a power cut no service is running that the file could speak of.
    scratch.replace(path)


def read_local_access(directory: Path) -> LocalAccess | None:
    """Return what the running service left, or nothing when none has.

    Raises:
        ConfigurationError: The file is there and can't be read.
    """
    path = directory / LOCAL_KEY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return LocalAccess(
            uri=content["uri"],
            key=content["key"],
            root_certs=Path(content["root_certs"]) if "root_certs" in content else None,
            server_name=content.get("server_name"),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} can't be read: run the command as the user the service runs as, or set"
            " TICKFLIGHT_API_KEY"
        ) from error


def remove_local_access(directory: Path) -> None:
    """Take back what ``write_local_access`` left."""
    (directory / LOCAL_KEY).unlink(missing_ok=True)
