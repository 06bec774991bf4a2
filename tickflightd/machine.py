"""What the machine has and refuses: memory, file systems, addresses."""

import errno
import ipaddress
import os
import re
import resource
import socket
import tempfile
from pathlib import Path
from typing import Final

from storage.ports import SystemDisk
from tickflightd.errors import AddressInUseError, ConfigurationError

FILES_WANTED: Final = 65_536
"""Open files: more than there are ports for clients to come from on one address."""
_CGROUP_MEMORY: Final = Path("/sys/fs/cgroup/memory.max")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_REMOTE_FILE_SYSTEMS: Final = frozenset({"9p", "cifs", "drvfs", "nfs", "nfs4", "smb3", "smbfs"})
_OTHER_PORT: Final = 100  # far enough from the neighbours of a default port
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def memory_bytes(cgroup: Path = _CGROUP_MEMORY) -> int:
    """Return the memory this process may use: the machine's, or its container's when less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(cgroup.read_text()))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
        return installed


def allow_many_files() -> None:
    """Raise the number of files this process may open: every connection is one.

    The usual soft limit of 1,024 is below what clients may open by mistake, and the journal needs
    a new file every hour.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system below ``path``, by a text as in /proc/self/mountinfo."""
    deepest, kind = Path(), ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        where = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), before.split()[4]))
        # The later of two mounts on one directory hides the earlier.
        if path.is_relative_to(where) and len(where.parts) >= len(deepest.parts):
            deepest, kind = where, after.split()[0]
    return kind


def file_system_of(directory: Path, mounts: str | None = None) -> str:
    """Return the type of the file system a directory is on; empty where that can't be known."""
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:  # not Linux: nothing to tell one from the other by
            return ""
    return file_system(directory.resolve(), mounts)


def require_local_disk(directory: Path, mounts: str | None = None) -> None:
    """Refuse a directory whose file system lacks the shared memory SQLite's WAL mode needs.

    Raises:
        ConfigurationError: The directory is on 9p, NFS or CIFS.
    """
    kind = file_system_of(directory, mounts)
    if kind in _REMOTE_FILE_SYSTEMS:
        raise ConfigurationError(
            f"TICKFLIGHT_DATA_DIR={directory} is on a {kind} file system, where SQLite can't keep a"
            " journal; choose a directory on a local disk (in WSL: one below your Linux home)"
        )


def require_writable(directory: Path) -> None:
    """Create ``directory`` if need be and prove that files can be made in it.

    Raises:
        ConfigurationError: It can't be created, or nothing can be written there.
    """
    try:
        SystemDisk().make_directory(directory)
        # Asking access() would believe the mode bits: root and read-only mounts prove it wrong.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"TICKFLIGHT_DATA_DIR={directory} can't be written ({error.strerror});"
            " choose a directory you may write to"
        ) from error


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the first address of ``host`` in the form ``socket.bind`` takes.

    Raises:
        ConfigurationError: The name has no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(
            f"TICKFLIGHT_FLIGHT_URI names the host {host}, which has no address here; use 127.0.0.1"
        ) from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def require_loopback(host: str) -> None:
    """Refuse to serve where other machines could listen in: keys and data travel in the clear.

    Raises:
        ConfigurationError: The address is reached from outside, or is none.
    """
    _, (address, _) = resolve(host, 0)
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigurationError(
            f"TICKFLIGHT_FLIGHT_URI names {host}, which other machines reach, and the connection is"
            " not encrypted: set TICKFLIGHT_TLS_CERT and TICKFLIGHT_TLS_KEY and begin the address"
            " with grpc+tls, or serve at 127.0.0.1 and let others in through an SSH tunnel"
        )


def free_port(host: str, port: int) -> int:
    """Return ``port`` if nothing listens there (any free one for 0).

    The test socket does not set SO_REUSEPORT: with it, two servers could share a port unnoticed.

    Raises:
        AddressInUseError: Something listens there.
        ConfigurationError: The address is not this machine's, or the port needs more rights.
    """
    family, address = resolve(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections in TIME_WAIT don't hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise _refusal(host, port, error) from error
        return int(probe.getsockname()[1])


def _refusal(host: str, port: int, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"port {port} on {host} is in use: stop what listens there, or choose another with"
            f" TICKFLIGHT_FLIGHT_URI=grpc://{host}:{port + _OTHER_PORT}"
        )
    return ConfigurationError(
        f"can't listen on {host}:{port} ({error.strerror}): set TICKFLIGHT_FLIGHT_URI to an address"
        " of this machine and a port above 1023"
    )
