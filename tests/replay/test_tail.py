"""``tickflight tail``: rows as they come, for people and for programs."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

import tickflight
from flight_server.identity import Scope
from storage.schemas import DATASETS, TIMESTAMP
from tests.flight_server.conftest import House
from tests.replay.conftest import SECOND, START, write
from tickflight import cli
from tickflight.coverage import Gap
from tickflight.lines import Lines
from tickflight.tail import gap_sentence

ESCAPES = re.compile(r"\x1b\[\d+m")
DEADLINE_SECONDS = 60.0
SINCE = "2020-01-01"


@pytest.fixture
def _shell(house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names the service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TICKFLIGHT_FLIGHT_URI", house.service.uri)
    key = house.keys.create("tail", scopes=[Scope.READ_REALTIME, Scope.READ_HISTORY]).key
    monkeypatch.setenv("TICKFLIGHT_API_KEY", key)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.usefixtures("_shell")
class TestTail:
    def test_a_line_a_row_with_the_time_first(
        self, client: tickflight.Client, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(client, "ticks", "T.LINE", [0, 1_500_000], [0, 1_500_000])
        assert cli.main(["tail", "T.LINE", "--start", SINCE, "--limit", "2"]) == 0
        heading, day, *rows = capsys.readouterr().out.splitlines()
        assert heading.split()[:3] == ["symbol", "price", "size"]
        assert day == f"{datetime.fromtimestamp(START / SECOND, UTC):%Y-%m-%d} UTC"
        assert [row.split()[:4] for row in rows] == [
            ["00:00:00.000000", "T.LINE", "20000", "1"],
            ["00:00:01.500000", "T.LINE", "20000", "1"],
        ]

    def test_a_limit_ends_it_within_a_batch(
        self, client: tickflight.Client, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(client, "quotes", "T.MANY", list(range(100)), list(range(100)))
        words = ["--dataset", "quotes", "--start", SINCE, "--limit", "7", "--format", "json"]
        assert cli.main(["tail", "T.MANY", *words]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["sequence"] for row in rows] == list(range(7))

    def test_csv_has_one_heading(
        self, client: tickflight.Client, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(client, "ticks", "T.CSV", [0], [0])
        write(client, "ticks", "T.CSV", [1], [1], first=1)
        words = ["--start", SINCE, "--limit", "2", "--format", "csv"]
        assert cli.main(["tail", "T.CSV", *words]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row["sequence"] for row in rows] == ["0", "1"]

    def test_what_the_server_refuses_is_one_sentence(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["tail", "MNQ", "--dataset", "nonsense"]) == 1
        assert capsys.readouterr().err.startswith("tickflight: there is no dataset 'nonsense'")

    def test_who_reads_may_leave_at_any_time(self, client: tickflight.Client) -> None:
        write(client, "ticks", "T.HEAD", list(range(5_000)), list(range(5_000)))
        done = subprocess.run(
            f"{sys.executable} -m tickflight.cli tail T.HEAD --start {SINCE} | head -n 3",
            shell=True,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert len(done.stdout.splitlines()) == 3
        assert done.stderr == ""

    def test_an_interrupt_ends_it_at_once_and_well(self, client: tickflight.Client) -> None:
        write(client, "ticks", "T.STOP", [0], [0])
        with on_a_terminal("tail", "T.STOP", "--start", SINCE) as (process, screen):
            read_until(screen, "20000")
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_SECONDS) == 0
            assert time.monotonic() - began < 10
            assert "Traceback" not in read_rest(screen)

    def test_rows_that_come_later_are_printed_as_they_come(self, client: tickflight.Client) -> None:
        write(client, "ticks", "T.LATER", [0], [0])
        with on_a_terminal("tail", "T.LATER", "--start", SINCE) as (process, screen):
            read_until(screen, "00:00:00")
            write(client, "ticks", "T.LATER", [61 * SECOND], [61 * SECOND], first=1)
            read_until(screen, "00:01:01")
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE_SECONDS)

    def test_a_gap_is_told_when_it_opens(self, client: tickflight.Client) -> None:
        write(client, "ticks", "T.GAP", [0], [0])
        told = {
            "ts_event": START,
            "ts_recv": START,
            "symbol": "T.GAP",
            "gap_id": "g",
            "revision": 0,
        }
        told |= {"dataset": "ticks", "source": "demo", "start": START, "end": None}
        told |= {"reason": "silence", "state": "open", "rows_recovered": 0}
        with on_a_terminal("tail", "T.GAP", "--start", SINCE) as (process, screen):
            read_until(screen, "20000")
            with client.writer("gaps") as writer:
                writer.write(pa.Table.from_pylist([told], DATASETS["gaps"].schema))
            read_until(screen, "! rows are missing: T.GAP of demo since")
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE_SECONDS)

    @pytest.mark.parametrize("columns", [20, 35, 59, 200])
    def test_no_line_is_wider_than_the_terminal(
        self, columns: int, client: tickflight.Client
    ) -> None:
        symbol = f"T.WIDE{columns}"
        write(client, "ticks", symbol, [0, SECOND], [0, SECOND])
        words = ("tail", symbol, "--start", SINCE, "--limit", "2")
        with on_a_terminal(*words, COLUMNS=str(columns)) as (process, screen):
            assert process.wait(DEADLINE_SECONDS) == 0
            lines = [ESCAPES.sub("", line) for line in read_rest(screen).splitlines()]
        assert len(lines) == 4
        assert max(map(len, lines)) <= columns
        assert lines[2].startswith("00:00:00")
        assert lines[2].split()[1].startswith("T.W")


@contextmanager
def on_a_terminal(*words: str, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run the command with a terminal for its stdout; yields it and the terminal's other end."""
    screen, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tickflight.cli", *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **settings, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def read_until(screen: int, text: str) -> str:
    """Read from a terminal until it has shown something."""
    seen = ""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([screen], [], [], 1)[0]:
            seen += os.read(screen, 65_536).decode()
    return seen


def read_rest(screen: int) -> str:
    seen = ""
    while True:
        try:
            more = os.read(screen, 65_536)
        except OSError:  # how a terminal says that the other side has gone
            return seen
        if not more:
            return seen
        seen += more.decode()


def rows(**columns: list[object]) -> pa.RecordBatch:
    count = len(next(iter(columns.values())))
    instants = pa.array([START + row for row in range(count)]).cast(TIMESTAMP)
    return pa.record_batch({"ts_event": instants, **columns})


class TestLines:
    """What is on a line."""

    def test_columns_never_move_to_the_left_again(self) -> None:
        lines = Lines("ticks", has_colour=False)
        lines.of(rows(symbol=["LONGER"], price=[20_000.25], size=[1.0]), 200)
        (line,) = lines.of(rows(symbol=["MNQ"], price=[1.0], size=[1.0]), 200)
        assert line == "00:00:00.000000  MNQ         1.00     1"

    def test_a_day_is_told_when_it_begins(self) -> None:
        lines = Lines("ticks", has_colour=False)
        instants = pa.array([START, START + 86_400 * SECOND]).cast(TIMESTAMP)
        batch = pa.record_batch({"ts_event": instants, "symbol": ["MNQ", "MNQ"]})
        days = [line for line in lines.of(batch, 80) if line.endswith("UTC")]
        assert len(days) == 2

    def test_trades_have_the_colour_of_their_aggressor(self) -> None:
        lines = Lines("ticks", has_colour=True)
        batch = rows(symbol=["A", "B", "C"], side=[1, -1, 0])
        bought, sold, unknown = lines.of(batch, 80)[-3:]
        assert bought.startswith("\x1b[32m")
        assert sold.startswith("\x1b[31m")
        assert not unknown.startswith("\x1b")

    def test_without_colours_there_are_none(self) -> None:
        lines = Lines("ticks", has_colour=False)
        text = "".join([*lines.of(rows(symbol=["A"], side=[1]), 80), lines.notice("a gap")])
        assert "\x1b" not in text

    def test_the_heading_comes_again_once_it_has_left_the_screen(self) -> None:
        lines = Lines("ticks", has_colour=False)
        told = lines.of(rows(symbol=["A"] * 1_200), 80)
        assert sum(line.strip() == "symbol" for line in told) == 3

    def test_what_could_command_a_terminal_is_not_passed_on(self) -> None:
        lines = Lines("webhook_messages", has_colour=False)
        told = lines.of(rows(topic=["\x1b[2Jwiped"], payload=["x" * 100]), 80)
        assert told[-1] == f"00:00:00.000000  ?[2Jwiped  {'x' * 31}…"


class TestGapSentence:
    """What is said of gaps."""

    GAP = Gap(START, None, "disconnect", "open", "tastytrade", "ticks", "MNQ")

    def test_one_that_has_opened_says_since_when(self) -> None:
        assert re.fullmatch(
            r"rows are missing: MNQ of tastytrade since \S+ 00:00:00Z \(disconnect\)",
            gap_sentence(self.GAP),
        )

    @pytest.mark.parametrize(
        ("state", "said"),
        [("filled", "rows have come after all"), ("unfillable", "rows are missing")],
    )
    def test_one_that_has_closed_says_what_became_of_it(self, state: str, said: str) -> None:
        gap = Gap(START, START + SECOND, "silence", state, "demo", "ticks", None)
        sentence = gap_sentence(gap)
        assert sentence.startswith(f"{said}: all symbols of demo, ")
        assert "00:00:00Z to " in sentence
