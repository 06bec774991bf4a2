"""Real files through the real client into the real server, and back, row for row."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tickflight
from ingest.files import ImportOutcome, import_ticks

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "samples" / "ticks"
DAYS = ("2013-10-07", "2013-10-08")
COLUMNS = ["ts_event", "price", "size", "exchange", "condition"]
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def files() -> list[Path]:
    paths = [SAMPLES / f"spy-{day}.trades.parquet" for day in DAYS]
    if not all(path.exists() for path in paths):
        if "CI" in os.environ:
            pytest.fail(f"sample files are missing in {SAMPLES}")
        pytest.skip("sample files are not here")
    return paths


def stored(client: tickflight.Client) -> pa.Table:
    return values(client.range("ticks", "SPY", "2013-10-07", "2013-10-09", columns=COLUMNS).arrow())


def values(table: pa.Table) -> pa.Table:
    """The columns without what files and service say about nulls and origin."""
    return pa.table({name: table[name] for name in COLUMNS})


def test_a_file_comes_back_row_for_row_and_goes_in_once(
    client: tickflight.Client, files: list[Path]
) -> None:
    reports = import_ticks(client, files, symbol="SPY")
    assert [report.rows for report in reports] == [250_601, 451_545]
    assert {report.outcome for report in reports} == {ImportOutcome.IMPORTED}
    assert {report.ignored for report in reports} == {("suspicious",)}
    assert {report.quarantined + report.duplicates for report in reports} == {0}
    expected = pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in files])
    assert stored(client).equals(values(expected))

    again = import_ticks(client, files, symbol="SPY")
    assert {report.outcome for report in again} == {ImportOutcome.ALREADY_IMPORTED}
    assert {report.note for report in again} == {None}
    assert stored(client).num_rows == expected.num_rows


STALLING_IMPORT = """
    import sys
    from pathlib import Path
    import tickflight
    from ingest.files import ImportStage, import_ticks

    def stall(progress):
        if progress.stage is ImportStage.SENDING and progress.rows > 100_000:
            print("half", flush=True)
            sys.stdin.read()

    uri, key, path = sys.argv[1:]
    with tickflight.connect(uri, key) as client:
        import_ticks(client, [Path(path)], symbol="SPY", progress=stall)
"""


def test_an_import_killed_half_way_goes_on_and_ends_with_the_same_rows(
    server: tuple[str, str], client: tickflight.Client, files: list[Path]
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STALLING_IMPORT), *server, str(files[0])]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        wait_for_rows(client)
        process.kill()
    (report,) = import_ticks(client, [files[0]], symbol="SPY")
    assert report.outcome is ImportOutcome.RESUMED
    assert 0 < report.first_row < report.rows == 250_601
    assert stored(client).equals(values(pq.read_table(files[0])))


def wait_for_rows(client: tickflight.Client) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not client.symbols("ticks"):
        assert time.monotonic() < deadline, "no row arrived"


def test_impossible_rows_are_counted_in_the_report(
    client: tickflight.Client, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "ts_event,price,size\n"
        "2013-10-07T08:00:00Z,1.5,100\n"
        "2013-10-07T08:00:01Z,NaN,100\n"
        "2013-10-07T08:00:02Z,1.5,\n"
        ",1.5,100\n"
    )
    (report,) = import_ticks(client, [path], symbol="SPY")
    assert (report.rows, report.quarantined) == (4, 3)
    assert stored(client).num_rows == 1
    rejected = client.latest([], dataset="quarantine").arrow()
    assert {json.loads(row["payload"])["source"] for row in rejected.to_pylist()} == {"import"}
