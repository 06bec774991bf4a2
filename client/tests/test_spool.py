"""The spool directory: what it keeps, what it cuts, what it reports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tickflight import (
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    SpoolLockedError,
    records,
    spool,
)
from tickflight.records import Kind, Title
from tickflight.spool import Leftover, Place, Spool

TITLE = Title("feed-1", "ticks")
LIMIT = 10_000_000


def fill(path: Path, bodies: list[bytes], *, title: Title = TITLE, first: int = 1) -> list[Place]:
    with Spool(path, limit_bytes=LIMIT) as opened:
        places = [
            opened.append(title, seq=first + index, rows=len(body), body=body)
            for index, body in enumerate(bodies)
        ]
        opened.sync()
    return places


def reopen(path: Path) -> tuple[Leftover, ...]:
    with Spool(path, limit_bytes=LIMIT) as opened:
        return opened.leftovers


def contents(leftovers: tuple[Leftover, ...]) -> list[tuple[int, bytes]]:
    return [(one.seq, bytes(Spool.read(one.place))) for left in leftovers for one in left.batches]


class TestLives:
    def test_the_next_life_finds_producer_dataset_and_batches_in_order(
        self, tmp_path: Path
    ) -> None:
        fill(tmp_path, [b"one", b"", b"three"], first=41)
        (left,) = reopen(tmp_path)
        assert left.title == TITLE
        assert contents((left,)) == [(41, b"one"), (42, b""), (43, b"three")]
        assert [one.rows for one in left.batches] == [3, 0, 5]

    def test_several_lives_are_found_oldest_first(self, tmp_path: Path) -> None:
        for life in range(3):
            fill(tmp_path, [b"x" * life], title=Title(f"feed-{life}", "ticks"))
        assert [left.title.producer for left in reopen(tmp_path)] == ["feed-0", "feed-1", "feed-2"]

    def test_a_life_may_have_several_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "FILE_BYTES", 200)
        fill(tmp_path, [b"x" * 150] * 5)
        assert len(list(tmp_path.glob("*.spool"))) == 5
        (left,) = reopen(tmp_path)
        assert [one.seq for one in left.batches] == [1, 2, 3, 4, 5]

    def test_a_file_goes_when_all_its_batches_are_durable_and_not_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "FILE_BYTES", 200)
        with Spool(tmp_path, limit_bytes=LIMIT) as opened:
            for seq in (1, 2, 3):
                opened.append(TITLE, seq=seq, rows=1, body=b"x" * 300)
            opened.sync()
            assert not opened.has_done(TITLE, 0)
            opened.release(Title("feed-2", "ticks"), 99)
            opened.release(TITLE, 2)
            assert [path.name for path in tmp_path.glob("*.spool")] == ["0000000003.spool"]
            opened.release(TITLE, 3)
            assert opened.size == 0
        assert reopen(tmp_path) == ()

    def test_names_are_never_used_twice_while_files_remain(self, tmp_path: Path) -> None:
        fill(tmp_path, [b"a"])
        fill(tmp_path, [b"b"], title=Title("feed-2", "ticks"))
        names = sorted(path.name for path in tmp_path.glob("*.spool"))
        assert names == ["0000000001.spool", "0000000002.spool"]


class TestBounds:
    def test_a_batch_beyond_the_limit_is_not_written(self, tmp_path: Path) -> None:
        with Spool(tmp_path, limit_bytes=1_000) as opened:
            opened.append(TITLE, seq=1, rows=1, body=b"x" * 500)
            before = opened.size
            with pytest.raises(SpoolFullError, match="limit of 1000 bytes"):
                opened.append(TITLE, seq=2, rows=1, body=b"x" * 500)
            assert opened.size == before == next(tmp_path.glob("*.spool")).stat().st_size

    def test_leftovers_count(self, tmp_path: Path) -> None:
        fill(tmp_path, [b"x" * 500])
        with (
            Spool(tmp_path, limit_bytes=1_000) as opened,
            pytest.raises(SpoolFullError),
        ):
            opened.append(Title("feed-2", "ticks"), seq=1, rows=1, body=b"x" * 500)

    def test_one_process_holds_the_directory(self, tmp_path: Path) -> None:
        with Spool(tmp_path, limit_bytes=LIMIT):
            code = (
                "import sys, pathlib; from tickflight.spool import Spool;"
                "Spool(pathlib.Path(sys.argv[1]), limit_bytes=1)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert "SpoolLockedError" in done.stderr
            with pytest.raises(SpoolLockedError, match="in use by another writer"):
                Spool(tmp_path, limit_bytes=LIMIT)

    def test_a_directory_that_cannot_be_made_is_a_spool_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SpoolError):
            Spool(tmp_path / "file" / "spool", limit_bytes=LIMIT)


class TestDisks:
    def test_a_disk_that_fills_up_leaves_whole_records_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Spool(tmp_path, limit_bytes=LIMIT) as opened:
            opened.append(TITLE, seq=1, rows=1, body=b"first")
            output = opened._output
            assert output is not None
            real, writes = output, []

            class Full:
                def write(self, data: memoryview) -> int:
                    writes.append(len(data))
                    if len(writes) > 1:
                        raise OSError(28, "No space left on device")
                    return real.write(data[:10])

                def __getattr__(self, name: str) -> object:
                    return getattr(real, name)

            monkeypatch.setattr(opened, "_output", Full())
            with pytest.raises(SpoolError, match="No space left"):
                opened.append(TITLE, seq=2, rows=1, body=b"second")
            monkeypatch.setattr(opened, "_output", real)
            opened.append(TITLE, seq=2, rows=1, body=b"again")
            opened.sync()
        assert contents(reopen(tmp_path)) == [(1, b"first"), (2, b"again")]

    def test_after_a_failed_fsync_the_file_is_left_at_its_last_good_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        with Spool(tmp_path, limit_bytes=LIMIT) as opened:
            opened.append(TITLE, seq=1, rows=1, body=b"first")
            opened.sync()
            opened.append(TITLE, seq=2, rows=1, body=b"second")
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fail)
                with pytest.raises(SpoolError, match="Input/output"):
                    opened.sync()
            opened.append(TITLE, seq=2, rows=1, body=b"again")
            opened.sync()
        assert len(list(tmp_path.glob("*.spool"))) == 2
        assert contents(reopen(tmp_path)) == [(1, b"first"), (2, b"again")]

    def test_the_file_and_its_name_are_fsynced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        real = os.fsync

        def note(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        fill(tmp_path, [b"x"])
        assert synced == [str(tmp_path), str(tmp_path / "0000000001.spool")]


class TestDamage:
    """What a crash tears is cut off; what was counted and is not what it was is reported."""

    BODIES = (b"first body", b"second\0\0\0", b"third body")

    def damaged(self, tmp_path: Path, content: bytes) -> Path:
        directory = tmp_path / "damaged"
        directory.mkdir(exist_ok=True)
        (directory / "0000000001.spool").write_bytes(content)
        return directory

    def whole(self, tmp_path: Path) -> tuple[bytes, list[int]]:
        places = fill(tmp_path / "whole", list(self.BODIES))
        ends = [place.offset + place.length for place in places]
        return places[0].path.read_bytes(), ends

    @pytest.mark.parametrize("padding", [0, 1, 4_096])
    def test_a_file_cut_at_any_byte_keeps_the_whole_records_before(
        self, tmp_path: Path, padding: int
    ) -> None:
        content, ends = self.whole(tmp_path)
        for length in range(len(content) + 1):
            directory = self.damaged(tmp_path, content[:length] + bytes(padding))
            whole = sum(end <= length for end in ends)
            found = [body for _, body in contents(reopen(directory))]
            assert found == list(self.BODIES[:whole]), f"cut at {length}"
            assert contents(reopen(directory)) == contents(reopen(directory))
            left = list(directory.glob("*.spool"))
            assert [path.stat().st_size for path in left] == ends[whole - 1 : whole] * bool(whole)

    def test_a_flipped_bit_anywhere_is_reported(self, tmp_path: Path) -> None:
        content, _ = self.whole(tmp_path)
        for index in range(len(content)):
            for bit in range(8):
                damaged = bytearray(content)
                damaged[index] ^= 1 << bit
                directory = self.damaged(tmp_path, bytes(damaged))
                with pytest.raises(SpoolCorruptError, match="move the file out"):
                    reopen(directory)
                assert (directory / "0000000001.spool").read_bytes() == damaged

    def test_the_report_names_file_and_byte(self, tmp_path: Path) -> None:
        content, ends = self.whole(tmp_path)
        damaged = bytearray(content)
        damaged[ends[0] + 40] ^= 1
        directory = self.damaged(tmp_path, bytes(damaged))
        with pytest.raises(SpoolCorruptError) as caught:
            reopen(directory)
        assert (caught.value.path, caught.value.offset) == (
            directory / "0000000001.spool",
            ends[0],
        )

    def test_rot_is_found_when_a_batch_is_read_as_well(self, tmp_path: Path) -> None:
        (place,) = fill(tmp_path, [b"body"])
        content = bytearray(place.path.read_bytes())
        for index in range(place.offset, len(content)):
            damaged = bytearray(content)
            damaged[index] ^= 16
            place.path.write_bytes(damaged)
            with pytest.raises(SpoolCorruptError):
                Spool.read(place)
        place.path.write_bytes(content[:-1])
        with pytest.raises(SpoolCorruptError, match="shorter"):
            Spool.read(place)

    def test_a_missing_file_in_the_middle_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "FILE_BYTES", 1)
        fill(tmp_path, list(self.BODIES))
        (tmp_path / "0000000002.spool").unlink()
        with pytest.raises(SpoolCorruptError, match="batch 2 is missing"):
            reopen(tmp_path)

    def test_a_cut_in_a_file_that_others_follow_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "FILE_BYTES", 1)
        first, *_ = fill(tmp_path, list(self.BODIES))
        os.truncate(first.path, first.offset + first.length - 1)
        with pytest.raises(SpoolCorruptError, match="others follow"):
            reopen(tmp_path)

    def test_files_of_another_format_or_name_are_reported(self, tmp_path: Path) -> None:
        directory = self.damaged(tmp_path, records.encode(Kind.BATCH, b"", seq=1))
        with pytest.raises(SpoolCorruptError, match="does not begin with a title"):
            reopen(directory)
        directory = self.damaged(tmp_path, records.encode(Kind.TITLE, b'{"format": 99}'))
        with pytest.raises(SpoolCorruptError, match="this version can read"):
            reopen(directory)
        (directory / "0000000001.spool").rename(directory / "notes.spool")
        with pytest.raises(SpoolError):
            reopen(directory)
