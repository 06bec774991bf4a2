"""The checks of `doctor`, on values no machine has to have."""

from pathlib import Path

import pytest

from flight_server.identity import Scope
from flight_server.keys import KeyRecord
from storage.journal_chain import JournalFile
from storage.journal_file import Header
from storage.ports import MICROSECONDS
from tickflightd.doctor import data, host, running
from tickflightd.doctor.data import DAY
from tickflightd.doctor.findings import Finding, Level, fail, ok, warn, worst
from tickflightd.doctor.host import DiskTimes
from tickflightd.tls import Certificate

NOW = 1_795_000_000 * MICROSECONDS
GIB = 1 << 30


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level.value for finding in findings]


def key(name: str, *, made: int = 0, ends: int | None = None, gone: int | None = None) -> KeyRecord:
    return KeyRecord(
        id=name,
        model_id=f"model-{name}",
        scopes=frozenset({Scope.ADMIN if name == "boss" else Scope.READ_HISTORY}),
        symbols=None,
        created_at=NOW + made,
        expires_at=None if ends is None else NOW + ends,
        revoked_at=gone,
    )


def file(number: int, *, hour: int = 0, epoch: int = 1, rows: int = 0) -> JournalFile:
    header = Header(number, epoch, NOW + hour, {"ticks": rows}, {}, 0)
    return JournalFile(Path(f"{number:08d}.journal"), 1 << 20, header)


def status(*services: tuple[str, str], version: str = "1", used: int = 0) -> dict[str, object]:
    told = [{"name": name, "state": state, "detail": "why"} for name, state in services]
    memory = {"used": used, "limit": 100}
    return {"version": version, "epoch": 3, "services": told, "memory": memory}


class TestFindings:
    def test_the_worst_counts(self) -> None:
        found = [ok("a", "x"), warn("b", "x", "y"), ok("c", "x")]
        assert worst(found) is Level.WARN
        assert worst([*found, fail("d", "x", "y")]) is Level.FAIL
        assert worst([]) is Level.OK


class TestVersions:
    def test_what_the_lock_file_installs_is_fine(self) -> None:
        assert levels(host.versions((3, 11, 7), (26, 0, 1), (3, 40, 1))) == ["ok"]

    @pytest.mark.parametrize(
        "found",
        [
            ((3, 10, 0), (26, 0, 1), (3, 40, 1)),
            ((3, 11, 0), (25, 0, 0), (3, 40, 1)),
            ((3, 11, 0), (27, 0, 0), (3, 40, 1)),
            ((3, 11, 0), (26, 0, 1), (3, 36, 0)),
        ],
    )
    def test_what_is_too_old_or_too_new_fails(self, found: tuple[tuple[int, ...], ...]) -> None:
        assert levels(host.versions(*found)) == ["fail"]


class TestDisk:
    def test_a_quick_disk_is_fine(self) -> None:
        assert levels(host.disk(DiskTimes([0.002] * 100, 500 << 20))) == ["ok", "ok"]

    def test_slow_syncs_and_slow_writes_are_told_apart(self) -> None:
        slow_sync = DiskTimes([0.002] * 90 + [0.2] * 10, 500 << 20)
        assert levels(host.disk(slow_sync)) == ["warn", "ok"]
        assert levels(host.disk(DiskTimes([0.002] * 100, 10 << 20))) == ["ok", "warn"]

    def test_a_sync_faster_than_any_disk_is_no_good_news(self) -> None:
        (sync, _) = host.disk(DiskTimes([0.000_005] * 100, 500 << 20))
        assert sync.level is Level.WARN
        assert "power cut" in sync.text

    def test_a_slow_disk_is_judged_by_the_few_syncs_there_was_time_for(self) -> None:
        assert levels(host.disk(DiskTimes([1.5, 1.5], 500 << 20))) == ["warn", "ok"]

    def test_memory_that_calls_itself_a_disk_is_told(self) -> None:
        assert host.file_system("tmpfs").level is Level.WARN
        assert host.file_system("ext4").level is Level.OK

    def test_space_is_judged_by_what_a_day_needs(self) -> None:
        assert host.free_space(50 * GIB, 10 * GIB).level is Level.OK
        assert host.free_space(5 * GIB, 10 * GIB).level is Level.WARN
        assert host.free_space(GIB // 2, 0).level is Level.FAIL


class TestClock:
    def test_an_even_and_synchronised_clock_is_fine(self) -> None:
        assert levels(host.clock(NOW, step_seconds=0.001, synchronised=True)) == ["ok"]

    def test_not_to_know_who_sets_it_is_no_trouble(self) -> None:
        assert levels(host.clock(NOW, step_seconds=0.0, synchronised=None)) == ["ok"]

    def test_a_step_and_a_missing_time_service_are_both_told(self) -> None:
        assert levels(host.clock(NOW, step_seconds=-3.0, synchronised=False)) == ["warn", "warn"]

    def test_a_year_that_can_not_be_fails(self) -> None:
        assert levels(host.clock(0, step_seconds=0.0, synchronised=True)) == ["fail"]


class TestMemory:
    @pytest.mark.parametrize(
        ("limit", "available", "level"),
        [(7, 20, Level.OK), (7, 5, Level.WARN), (20, 23, Level.WARN)],
    )
    def test_the_limit_must_leave_room(self, limit: int, available: int, level: Level) -> None:
        assert host.memory(limit * GIB, 24 * GIB, available * GIB).level is level


class TestPermissions:
    def test_secrets_that_others_can_read_fail_by_name(self) -> None:
        (found,) = data.permissions({"control.db": 0o600, ".env": 0o644})
        assert found.level is Level.FAIL
        assert found.advice == "chmod 600 .env"

    def test_private_ones_are_fine(self) -> None:
        assert levels(data.permissions({"control.db": 0o600})) == ["ok"]


class TestCertificate:
    @pytest.mark.parametrize(("days", "level"), [(90, Level.OK), (13, Level.WARN)])
    def test_its_end_is_told_two_weeks_before(self, days: int, level: Level) -> None:
        shown = Certificate(Path("feed.crt"), b"", b"", "feed.example.com", NOW + days * DAY)
        found = data.certificate(shown, NOW)
        assert found.level is level
        assert str(days) in found.text

    def test_none_is_fine(self) -> None:
        assert "in the clear" in data.certificate(None, NOW).text


class TestKeys:
    def test_valid_keys_are_counted_and_admins_named(self) -> None:
        (found,) = data.keys([key("a"), key("boss"), key("old", gone=NOW)], None, NOW)
        assert found.level is Level.OK
        assert "2 valid, 1 of them" in found.text

    def test_what_has_ended_and_what_ends_soon_is_told(self) -> None:
        records = [
            key("ended", made=-90 * DAY, ends=-1),
            key("ending", made=-80 * DAY, ends=13 * DAY),
            key("later", made=-80 * DAY, ends=15 * DAY),
        ]
        ended, ending, _ = data.keys(records, None, NOW)
        assert ended.text == "expired: model-ended (ended)"
        assert ending.text == "end within 14 days: model-ending (ending)"

    def test_a_key_made_for_a_few_days_may_end(self) -> None:
        records = [key("a", made=-DAY, ends=6 * DAY), key("b", made=-9 * DAY, ends=-2 * DAY)]
        assert levels(data.keys(records, None, NOW)) == ["ok"]

    def test_old_keys_that_nobody_used_are_told_where_use_is_recorded(self) -> None:
        records = [key("new"), key("used", made=-60 * DAY), key("idle", made=-60 * DAY)]
        assert levels(data.keys(records, None, NOW)) == ["ok"]
        idle, _ = data.keys(records, {"used"}, NOW)
        assert "model-idle (idle)" in idle.text
        assert "used)" not in idle.text

    def test_a_long_list_is_cut(self) -> None:
        records = [key(str(n), made=-90 * DAY, ends=-1) for n in range(9)]
        assert data.keys(records, None, NOW)[0].text.endswith("and 4 more")


class TestJournal:
    def test_an_unbroken_chain_is_fine(self) -> None:
        unfinished = JournalFile(Path("3.journal"), 0, None)
        files = [file(1), file(2, hour=0, epoch=2, rows=5), unfinished]
        assert levels(data.journal(files, NOW)) == ["ok"]
        assert levels(data.journal([], NOW)) == ["ok"]

    @pytest.mark.parametrize(
        "files",
        [
            [file(1), file(3)],
            [file(1, epoch=2), file(2, epoch=1)],
            [file(1, hour=3_600), file(2, hour=0)],
            [file(1, rows=5), file(2, rows=4)],
            [JournalFile(Path("1.journal"), 0, None), file(2)],
        ],
    )
    def test_a_chain_that_does_not_hold_fails(self, files: list[JournalFile]) -> None:
        assert "fail" in levels(data.journal(files, NOW + 4_000))

    def test_a_journal_from_the_future_is_told(self) -> None:
        assert levels(data.journal([file(1, hour=7_200 * MICROSECONDS)], NOW)) == ["warn"]


class TestLeftovers:
    def test_each_kind_is_told(self) -> None:
        found = data.leftovers(spools=2, spool_bytes=9, scratch=[".control.db.ab"], stale_key=True)
        assert levels(found) == ["warn"] * 3
        none = data.leftovers(spools=0, spool_bytes=0, scratch=[], stale_key=False)
        assert levels(none) == ["ok"]


class TestService:
    def test_a_healthy_one_is_fine(self) -> None:
        told = status(("flight", "running"), ("ingest.demo", "stopped"))
        assert levels(running.service(told, "1")) == ["ok"]

    def test_troubles_are_told_and_those_no_retry_mends_fail(self) -> None:
        told = status(("journal", "degraded"), ("ingest.x", "failed"))
        _, degraded, failed = running.service(told, "1")
        assert (degraded.level, failed.level) == (Level.WARN, Level.FAIL)
        assert degraded.text == "journal is degraded: why"

    def test_another_version_than_the_installed_one_is_told(self) -> None:
        assert levels(running.service(status(version="2"), "1")) == ["warn"]

    def test_memory_that_is_almost_full_is_told(self) -> None:
        assert levels(running.service(status(used=95), "1")) == ["ok", "warn"]

    def test_silence_is_fine_only_where_nothing_runs(self) -> None:
        assert running.absent("x:1", owned=False, reason="").level is Level.OK
        assert running.absent("x:1", owned=True, reason="").level is Level.FAIL

    def test_a_port_is_free_or_ours_or_somebody_else_s(self) -> None:
        assert running.port("x:1", taken=False, ours=False, owner=None).level is Level.OK
        assert running.port("x:1", taken=True, ours=True, owner=None).level is Level.OK
        stranger = running.port("x:1", taken=True, ours=False, owner="nginx (process 7)")
        assert stranger.level is Level.FAIL
        assert "nginx (process 7)" in stranger.text
