"""Gaps, coverage and exports, as a shell sees them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import tickflight
from tickflight import cli
from tickflight.coverage import Gaps
from tickflight.errors import ConfigurationError, ServerError, UnavailableError
from tickflight.export import Existing, FileFormat, export, format_of
from tickflight.testing import FakeServer

Ticks = Callable[..., pa.RecordBatch]
BEGAN = 1_700_000_000_000_000
"""When the rows of these tests begin: 2023-11-14 22:13:20 UTC."""
HOUR = 3_600_000_000


def gap(start: int, end: int | None, **fields: Any) -> dict[str, Any]:
    """Build a gap as the server tells it; its span is relative to the first row."""
    return {
        "gap_id": f"g{start}",
        "revision": 1,
        "dataset": "ticks",
        "source": "demo",
        "symbol": "MNQ",
        "start": BEGAN + start,
        "end": None if end is None else BEGAN + end,
        "reason": "disconnect",
        "state": "open",
        "rows_recovered": 0,
        "detail": "the source was cut off from its venue; not filled yet",
        **fields,
    }


@pytest.fixture
def shell(
    server: FakeServer,
    client: tickflight.Client,
    ticks: Ticks,
    monkeypatch: pytest.MonkeyPatch,
) -> FakeServer:
    """A server with rows of two symbols, and an environment that names it."""
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 20))
        writer.write(ticks(20, 20, "NQ"))
    monkeypatch.setenv("TICKFLIGHT_FLIGHT_URI", server.uri)
    monkeypatch.setenv("TICKFLIGHT_API_KEY", server.api_key)
    return server


Screen = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("shell")
class TestGaps:
    def test_no_gaps_are_said_in_words(self, capsys: Screen) -> None:
        assert cli.main(["gaps"]) == 0
        assert capsys.readouterr().out == "no unfilled gaps are known\n"

    def test_an_outage_of_several_symbols_is_one_line(
        self, shell: FakeServer, capsys: Screen
    ) -> None:
        shell.gaps = [gap(0, 90_000_000, symbol=name) for name in ("NQ", "MNQ")]
        assert cli.main(["gaps"]) == 0
        heading, line = capsys.readouterr().out.splitlines()
        assert heading.split()[:3] == ["start", "end", "lasted"]
        assert line.startswith(
            "2023-11-14 22:13:20Z  2023-11-14 22:14:50Z  0:01:30  ticks    MNQ NQ"
        )
        assert line.endswith("the source was cut off from its venue; not filled yet")

    def test_filled_gaps_are_told_when_asked_for(self, shell: FakeServer, capsys: Screen) -> None:
        shell.gaps = [gap(0, 5, state="filled"), gap(9, None, source="sierra")]
        assert cli.main(["gaps"]) == 0
        assert "filled  " not in capsys.readouterr().out
        assert cli.main(["gaps", "--all"]) == 0
        assert "filled  " in capsys.readouterr().out
        assert cli.main(["gaps", "--all", "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(one["state"], one["end"]) for one in lines] == [
            ("filled", "2023-11-14T22:13:20.000005Z"),
            ("open", None),
        ]

    def test_what_is_asked_for_reaches_the_server(self, shell: FakeServer) -> None:
        assert cli.main(["gaps", "MNQ", "--from", "-7d", "--to", "now", "--dataset", "ticks"]) == 0
        assert shell.asked["gaps"] == {
            "dataset": "ticks",
            "symbols": ["MNQ"],
            "start": "-7d",
            "end": "now",
            "states": ["open", "unfillable"],
            "limit": 1_000,
        }

    @pytest.mark.parametrize("columns", [30, 60, 80, 120])
    def test_no_line_of_gaps_is_wider_than_the_terminal(
        self, shell: FakeServer, capsys: Screen, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        shell.gaps = [gap(0, 5), gap(9, None)]
        assert cli.main(["gaps"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= columns

    def test_an_answer_that_can_not_be_read_is_the_servers_fault(self) -> None:
        with pytest.raises(ServerError, match="update tickflight"):
            Gaps.from_answer({"gaps": [{"start": "?"}], "count": 1})


@pytest.mark.usefixtures("shell")
class TestCoverage:
    SPAN = ("--from", "2023-11-14T20:00:00Z", "--to", "2023-11-15T02:00:00Z")

    def tell(self, shell: FakeServer, *gaps: dict[str, Any]) -> None:
        day = 24 * HOUR
        start = BEGAN // day * day + 20 * HOUR
        shell.coverage["symbols"]["MNQ"] = {
            "requested": [start, start + 6 * HOUR],
            "available": [BEGAN, BEGAN + 20],
            "state": "gap" if gaps else "unverified",
            "gaps": list(gaps),
            "gap_count": len(gaps),
            "quarantined": 2,
        }

    def test_a_day_is_a_line_with_a_character_an_hour(
        self, shell: FakeServer, capsys: Screen
    ) -> None:
        self.tell(shell, gap(HOUR, HOUR + 5))
        assert cli.main(["coverage", "MNQ", *self.SPAN]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "MNQ ticks: gap, 20 rows, 1 gaps, 2 quarantined"
        assert lines[2].split() == ["2023-11-14", "20", "gap", "1", "." * 22 + "9!"]
        assert "disconnect" in lines[4]
        assert lines[-1].startswith("hours: ")

    def test_a_narrow_terminal_gets_the_whole_day_below(
        self, shell: FakeServer, capsys: Screen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "30")
        self.tell(shell)
        assert cli.main(["coverage", "MNQ", *self.SPAN]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].strip() == "." * 22 + "9."
        assert max(map(len, lines)) <= 30

    def test_programs_get_an_object_a_day(self, shell: FakeServer, capsys: Screen) -> None:
        self.tell(shell)
        assert cli.main(["coverage", "MNQ", *self.SPAN, "--json"]) == 0
        (day,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (day["day"], day["rows"], day["state"]) == ("2023-11-14", 20, "unverified")
        assert day["hours"][22] == 20

    def test_a_symbol_without_anything_has_no_days(self, shell: FakeServer, capsys: Screen) -> None:
        self.tell(shell)
        shell.coverage["symbols"]["MNQ"]["available"] = None
        assert cli.main(["coverage", "MNQ", *self.SPAN]) == 0
        assert capsys.readouterr().out.startswith("MNQ ticks: unverified, 0 rows, 2 quarantined\n")


@pytest.mark.usefixtures("shell")
class TestExport:
    @pytest.mark.parametrize("form", list(FileFormat))
    def test_a_file_holds_the_rows_of_the_answer(
        self, tmp_path: Path, capsys: Screen, form: FileFormat
    ) -> None:
        path = tmp_path / f"rows.{form}"
        assert cli.main(["export", "MNQ", "--from", "0", "--out", str(path)]) == 0
        assert "20 rows" in capsys.readouterr().out
        readers: dict[FileFormat, Callable[[Path], pa.Table]] = {
            FileFormat.PARQUET: pyarrow.parquet.read_table,
            FileFormat.CSV: pyarrow.csv.read_csv,
            FileFormat.ARROW: lambda one: pa.ipc.open_file(one).read_all(),
        }
        found = readers[form](path)
        assert found["sequence"].to_pylist() == list(range(20))
        assert [one.name for one in tmp_path.iterdir()] == [path.name]

    def test_what_is_missing_is_said_at_the_end(self, shell: FakeServer, capsys: Screen) -> None:
        symbol = {"requested": [0, 1], "state": "gap", "gap_count": 3, "quarantined": 0}
        shell.coverage["symbols"]["MNQ"] = symbol
        assert cli.main(["export", "MNQ", "--from", "0"]) == 0
        assert capsys.readouterr().out.endswith("\nMNQ: gap, 3 gaps\n")
        assert Path("MNQ-ticks.parquet").exists()

    def test_a_file_that_is_there_stays_unless_told(self, tmp_path: Path, capsys: Screen) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("mine")
        arguments = ["export", "MNQ", "--from", "0", "--out", str(path)]
        assert cli.main(arguments) == 2
        assert "is there already" in capsys.readouterr().err
        assert path.read_text() == "mine"
        assert cli.main([*arguments, "--force"]) == 0
        assert path.read_text().startswith('"ts_event"')

    def test_a_place_that_can_not_be_written_is_named(self, tmp_path: Path, capsys: Screen) -> None:
        path = tmp_path / "nowhere" / "rows.csv"
        assert cli.main(["export", "MNQ", "--from", "0", "--out", str(path)]) == 2
        assert str(path) in capsys.readouterr().err

    def test_a_refused_question_leaves_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "x.csv"
        assert cli.main(["export", "A", "--from", "0", "--dataset", "no", "--out", str(out)]) == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_cut_stream_leaves_nothing(self, tmp_path: Path) -> None:
        class Cut:
            schema = pa.schema({"ts_event": pa.timestamp("us", "UTC")})

            def reader(self) -> Any:
                yield pa.RecordBatch.from_pydict({"ts_event": [BEGAN]}, schema=self.schema)
                raise UnavailableError("the connection was lost")

        cut: Any = Cut()
        for existing in Existing:
            with pytest.raises(UnavailableError):
                export(cut, tmp_path / "rows.arrow", FileFormat.ARROW, existing=existing)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_made_meanwhile_is_not_overwritten(
        self, client: tickflight.Client, tmp_path: Path
    ) -> None:
        path = tmp_path / "rows.parquet"

        def meanwhile(rows: int, instant: int | None) -> None:
            assert (rows, instant) == (20, BEGAN + 19)
            path.write_text("mine")

        with pytest.raises(ConfigurationError, match="there already"):
            export(client.ticks("MNQ", 0), path, FileFormat.PARQUET, progress=meanwhile)
        assert path.read_text() == "mine"
        assert [one.name for one in tmp_path.iterdir()] == [path.name]

    def test_memory_holds_a_row_group_at_a_time(self, tmp_path: Path) -> None:
        made = 0
        seen: list[int] = []

        class Long:
            schema = pa.schema({"sequence": pa.int64()})

            def reader(self) -> Any:
                nonlocal made
                for _ in range(40):
                    made += 10_000
                    yield pa.RecordBatch.from_pydict(
                        {"sequence": list(range(10_000))}, schema=self.schema
                    )

        def written(rows: int, instant: int | None) -> None:
            assert instant is None
            seen.append(made - rows)

        long: Any = Long()
        done = export(long, tmp_path / "rows.parquet", FileFormat.PARQUET, progress=written)
        assert done.rows == 400_000
        assert seen == [0] * 4
        assert pyarrow.parquet.ParquetFile(done.path).num_row_groups == 4

    def test_lists_do_not_fit_into_csv_and_the_error_says_what_does(self, tmp_path: Path) -> None:
        class Lists:
            schema = pa.schema({"strikes": pa.list_(pa.float64())})

            def reader(self) -> Any:
                yield pa.RecordBatch.from_pydict({"strikes": [[1.0]]}, schema=self.schema)

        lists: Any = Lists()
        with pytest.raises(ConfigurationError, match="take parquet"):
            export(lists, tmp_path / "rows.csv", FileFormat.CSV)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "form"),
        [
            ("a.parquet", FileFormat.PARQUET),
            ("a.PQ", FileFormat.PARQUET),
            ("a.csv", FileFormat.CSV),
            ("a.feather", FileFormat.ARROW),
            ("a.txt", None),
            ("a", None),
        ],
    )
    def test_a_name_says_its_format(self, name: str, form: FileFormat | None) -> None:
        assert format_of(Path(name)) is form
