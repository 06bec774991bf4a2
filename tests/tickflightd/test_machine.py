"""What the machine refuses: file systems, directories, addresses."""

import socket
from pathlib import Path

import pytest

from tickflightd import machine
from tickflightd.errors import AddressInUseError, ConfigurationError

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /mnt/c rw,noatime - 9p drvfs rw,dirsync
31 22 0:41 / /mnt/nas rw,relatime - nfs4 nas:/export rw
32 22 0:42 / /mnt/share\\040one rw,relatime - cifs //nas/share rw
33 31 254:2 / /mnt/nas/local rw,relatime - xfs /dev/sdb rw
34 22 0:43 / /mnt/twice rw,relatime - nfs old:/ rw
35 22 254:3 / /mnt/twice rw,relatime - ext4 /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home", "ext4"),
        ("/mnt/c/Users/me/data", "9p"),
        ("/mnt/nas/data", "nfs4"),
        ("/mnt/nas/local/data", "xfs"),
        ("/mnt/nasty", "ext4"),
        ("/mnt/share one/data", "cifs"),
        ("/mnt/twice/data", "ext4"),
    ],
)
def test_the_deepest_and_latest_mount_tells_the_file_system(path: str, kind: str) -> None:
    assert machine.file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("path", ["/mnt/c/data", "/mnt/nas/data", "/mnt/share one/data"])
def test_a_file_system_without_shared_memory_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="local disk"):
        machine.require_local_disk(Path(path), MOUNTS)


def test_this_machine_tells_its_file_systems(tmp_path: Path) -> None:
    machine.require_local_disk(tmp_path)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    link = tmp_path / "data"
    link.symlink_to("/mnt/c/data")
    with pytest.raises(ConfigurationError, match="9p"):
        machine.require_local_disk(link, MOUNTS)


def test_a_writable_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    machine.require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_directory_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Mode bits would not stop root; a path below a file, and the kernel's own directories, do.
    for impossible in (tmp_path / "file" / "data", Path("/proc/self")):
        with pytest.raises(ConfigurationError, match="can't be written"):
            machine.require_writable(impossible)


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    installed = machine.memory_bytes(limit)
    limit.write_text("max\n")
    assert machine.memory_bytes(limit) == installed
    limit.write_text("1048576\n")
    assert machine.memory_bytes(limit) == 1_048_576


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_others_reach_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="SSH tunnel"):
        machine.require_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1"])
def test_an_address_of_this_machine_alone_is_fine(host: str) -> None:
    machine.require_loopback(host)


def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        machine.require_loopback("no-such-host.invalid")


class TestPort:
    def test_a_port_in_use_is_refused_with_a_way_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(AddressInUseError, match=f"port {port} .*TICKFLIGHT_FLIGHT_URI"):
                machine.free_port("127.0.0.1", port)

    def test_a_port_shared_on_purpose_is_in_use_too(self) -> None:
        taken = socket.create_server(("127.0.0.1", 0), reuse_port=True)
        with taken, pytest.raises(AddressInUseError):
            machine.free_port("127.0.0.1", taken.getsockname()[1])

    def test_zero_finds_a_free_one(self) -> None:
        assert machine.free_port("127.0.0.1", 0) > 1_023

    def test_an_address_of_another_machine_can_not_be_listened_on(self) -> None:
        with pytest.raises(ConfigurationError, match="an address of this machine"):
            machine.free_port("192.0.2.1", 0)
