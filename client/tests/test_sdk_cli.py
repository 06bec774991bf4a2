"""The command, as a shell sees it."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import tickflight
from tickflight import cli
from tickflight.tables import Heading, byte_size, table
from tickflight.testing import FakeServer

Ticks = Callable[..., pa.RecordBatch]


@pytest.fixture
def shell(
    server: FakeServer,
    client: tickflight.Client,
    ticks: Ticks,
    monkeypatch: pytest.MonkeyPatch,
) -> FakeServer:
    """A server with rows, and an environment that names it."""
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 20))
        writer.write(ticks(20, 20, "NQ"))
    monkeypatch.setenv("TICKFLIGHT_FLIGHT_URI", server.uri)
    monkeypatch.setenv("TICKFLIGHT_API_KEY", server.api_key)
    return server


@pytest.mark.usefixtures("shell")
class TestLatest:
    def test_a_table_is_aligned_with_numbers_to_the_right(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["latest", "MNQ", "--limit", "2"]) == 0
        heading, *rows = capsys.readouterr().out.splitlines()
        assert heading.split() == ["ts_event", "symbol", "price", "size", "bid", "sequence"]
        assert [row.split()[2:] for row in rows] == [
            ["MNQ", "20018", "1", "18"],
            ["MNQ", "20019", "1", "19"],
        ]
        assert {row.index("MNQ") for row in rows} == {heading.index("symbol")}
        assert {len(row) for row in rows} == {len(heading)}

    def test_csv_and_json_are_for_programs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["latest", "NQ", "MNQ", "--limit", "1", "--format", "csv"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["symbol"], row["sequence"], row["bid"]) for row in rows] == [
            ("MNQ", "19", ""),
            ("NQ", "39", ""),
        ]
        assert rows[0]["ts_event"] == "2023-11-14 22:13:20.000019Z"
        assert cli.main(["latest", "NQ", "--format", "json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["sequence"] for line in lines] == list(range(30, 40))

    def test_what_is_missing_is_said_below(
        self, shell: FakeServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        symbol = {"requested": [0, 1], "state": "gap", "gap_count": 3, "quarantined": 1}
        shell.coverage = {"snapshot": "1", "symbols": {"MNQ": symbol}}
        assert cli.main(["latest", "MNQ"]) == 0
        assert capsys.readouterr().out.endswith("\nMNQ: gap, 3 gaps, 1 quarantined\n")

    @pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
    def test_no_line_is_wider_than_the_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main(["latest", "MNQ"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


@pytest.mark.usefixtures("shell")
class TestOtherCommands:
    def test_status_is_readable_and_whole_as_json(
        self, shell: FakeServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["status"]) == 0
        text = capsys.readouterr().out
        assert shell.uri in text
        assert "flight" in text
        assert "ticks" in text
        assert cli.main(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["datasets"]["ticks"]["rows"] == 40

    def test_status_of_a_service_in_trouble_fails_and_says_the_whole_of_it(
        self,
        shell: FakeServer,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("COLUMNS", "70")
        trouble = "no commit for 12 s while 3,120 rows wait: the disk does not answer"
        since = 1_795_256_025_545_838
        shell.services.append(
            {"name": "journal", "state": "degraded", "since": since, "detail": trouble}
        )
        assert cli.main(["status"]) == 1
        text = capsys.readouterr().out
        assert "2026-11-21 10:13:45Z" in text
        assert text.splitlines()[-1] == f"journal is degraded: {trouble}"
        assert cli.main(["status", "--json"]) == 1

    def test_status_of_a_source_that_has_ended_as_it_should_is_no_trouble(
        self, shell: FakeServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shell.services.append({"name": "ingest.demo", "state": "stopped", "since": 0, "detail": ""})
        assert cli.main(["status"]) == 0
        assert "ingest.demo" in capsys.readouterr().out

    def test_symbols_are_listed_by_dataset(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["symbols", "--format", "json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["symbol"] for line in lines] == ["MNQ", "NQ"]
        assert cli.main(["symbols", "--dataset", "quotes"]) == 0
        assert capsys.readouterr().out.split() == ["dataset", "symbol", "rows", "first", "last"]


class TestSettings:
    def test_env_file_in_the_working_directory_is_read(
        self, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / ".env").write_text(
            f"TICKFLIGHT_FLIGHT_URI={server.uri}\nTICKFLIGHT_API_KEY={server.api_key}\n"
        )
        assert cli.main(["status"]) == 0
        assert server.uri in capsys.readouterr().out

    def test_the_environment_wins_over_the_file(
        self,
        server: FakeServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / ".env").write_text(
            f"TICKFLIGHT_FLIGHT_URI={server.uri}\nTICKFLIGHT_API_KEY=tf_wrong_key\n"
        )
        assert cli.main(["status"]) == 1
        monkeypatch.setenv("TICKFLIGHT_API_KEY", server.api_key)
        assert cli.main(["status"]) == 0

    def test_an_option_names_another_server(
        self, shell: FakeServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["--uri", "grpc://127.0.0.1:1", "status"]) == 1
        assert "127.0.0.1:1" in capsys.readouterr().err
        assert cli.main(["--uri", shell.uri, "status"]) == 0

    def test_there_is_no_option_for_the_key_and_the_help_says_why(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(["--api-key", "tf_a_b", "status"])
        assert caught.value.code == 2
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        assert "There is no option for it" in capsys.readouterr().out


class TestFailures:
    def test_a_missing_key_is_wrong_configuration_in_one_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["status"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("tickflight: no API key")
        assert captured.err.count("\n") == 1

    @pytest.mark.usefixtures("shell")
    def test_what_the_server_refuses_is_a_failure_in_one_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["latest", "MNQ", "--dataset", "nonsense"]) == 1
        assert capsys.readouterr().err == "tickflight: there is no dataset nonsense\n"

    @pytest.mark.parametrize(
        "arguments",
        [[], ["latest"], ["latest", "MNQ", "--limit", "0"], ["latest", "A", "--format", "xml"]],
    )
    def test_wrong_usage_is_two(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2

    @pytest.mark.usefixtures("shell")
    def test_a_reader_that_has_seen_enough_is_no_error(self) -> None:
        command = f"{sys.executable} -m tickflight.cli latest MNQ --limit 20 | head -n 0"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestTables:
    def test_the_widest_text_gives_way_first(self) -> None:
        text = table(["name", "n", "detail"], [("a", 1, "x" * 50), ("bb", 200, "y")], width=30)
        assert text.splitlines() == [
            "name    n  detail",
            "a       1  " + "x" * 18 + "…",
            "bb    200  y",
        ]

    def test_columns_without_a_place_are_named(self) -> None:
        text = table(["first", "second", "third"], [(1, 2, 3)], width=14)
        assert text.splitlines() == ["first  second", "    1       2", "… and third"]

    def test_numbers_of_a_column_have_as_many_decimals_as_the_longest_needs(self) -> None:
        text = table(["p"], [(1.25,), (2.0,), (None,), (1000.1,)], width=80)
        assert text.splitlines() == ["      p", "   1.25", "   2.00", "", "1000.10"]

    def test_a_heading_may_be_bold_and_a_table_empty(self) -> None:
        assert table(["a"], [], width=80, heading=Heading.BOLD) == "\x1b[1ma\x1b[0m"

    def test_text_of_others_cannot_command_the_terminal(self) -> None:
        assert "\x1b" not in table(["a"], [("\x1b[31mred\nline",)], width=80)

    def test_sizes_are_in_readable_units(self) -> None:
        assert [byte_size(one) for one in (None, 0, 1023, 1536, 5 * 2**40)] == [
            "",
            "0 B",
            "1023 B",
            "1.5 KiB",
            "5.0 TiB",
        ]

    @pytest.mark.parametrize(
        ("no_color", "term", "bold"),
        [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)],
    )
    def test_colour_is_for_terminals_that_want_it(
        self,
        shell: FakeServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *,
        no_color: str,
        term: str,
        bold: bool,
    ) -> None:
        assert shell.uri
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert cli.main(["symbols"]) == 0
        assert ("\x1b[1m" in capsys.readouterr().out) is bold
