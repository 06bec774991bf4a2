"""A source is kept running, and whatever goes wrong is written down."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from ingest.errors import ConfigurationError, IngestError, SourceError, SourceRefusedError
from ingest.outages import Gap, GapReason, GapState, gap_rows
from ingest.restart import RestartPolicy
from ingest.runner import HISTORY_PATIENCE_SECONDS, RunOptions, RunResult, RunState, run_source
from ingest.source import Continuity, SourceProfile, SourceWriter
from storage.schemas import TICKS
from tickflight import (
    AuthenticationError,
    Overflow,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
)

Step = Callable[[SourceWriter], Awaitable[None]]
ROWS = TICKS.schema.empty_table()


@dataclass
class Script:
    """A source that plays one step a run, then asks to be stopped."""

    steps: list[Step]
    continuity: Continuity = Continuity.LOST
    symbols: tuple[str, ...] = ("MNQ",)
    datasets: tuple[str, ...] = ("ticks",)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0

    @property
    def profile(self) -> SourceProfile:
        return SourceProfile("feed", self.datasets, self.symbols, self.continuity)

    async def run(self, writer: SourceWriter) -> None:
        self.runs += 1
        if not self.steps:
            self.stop.set()
            await asyncio.Event().wait()
        await self.steps.pop(0)(writer)


def fail(error: Exception, after: float = 0.0, clock: Any = None) -> Step:
    async def step(_: SourceWriter) -> None:
        if clock is not None:
            clock.time += after
        raise error

    return step


async def write(writer: SourceWriter) -> None:
    await writer.write("ticks", ROWS)


def run(source: Script, service: Any, clock: Any, jitter: float = 0.0) -> RunResult:
    options = RunOptions(RestartPolicy(), clock, lambda: jitter)
    return asyncio.run(
        asyncio.wait_for(run_source(source, service, stop=source.stop, options=options), 20)
    )


def events(service: Any) -> list[tuple[str, str]]:
    return [(row["level"], row["event"]) for row in service.rows("service_events")]


def test_a_failed_source_is_started_again_after_delays_that_double(
    service: Any, clock: Any
) -> None:
    source = Script([fail(SourceError("cut")) for _ in range(9)])
    result = run(source, service, clock, jitter=0.5)
    assert result == RunResult(RunState.STOPPED, restarts=9)
    assert clock.slept == [0.375, 0.75, 1.5, 3.0, 6.0, 12.0, 22.5, 22.5, 22.5]
    assert events(service)[:3] == [
        ("info", "running"),
        ("warning", "restarting"),
        ("info", "running"),
    ]
    assert events(service)[-1] == ("info", "stopped")
    assert {row["service"] for row in service.rows("service_events")} == {"ingest.feed"}


@pytest.mark.parametrize("failures", [1, 5, 10_000])
def test_a_delay_lies_between_half_of_it_and_all_of_it(failures: int) -> None:
    policy = RestartPolicy(first_delay_seconds=1, max_delay_seconds=16)
    longest = min(16.0, 2.0 ** min(failures - 1, 10))
    assert policy.delay_seconds(failures, 0.0) == longest / 2
    assert longest * 0.99 < policy.delay_seconds(failures, 0.999) < longest


def test_a_long_healthy_run_makes_the_next_failure_a_first_one(service: Any, clock: Any) -> None:
    steps = [fail(SourceError("cut"), after, clock) for after in (0, 0, 0, 61, 0)]
    run(Script(steps), service, clock)
    assert clock.slept == [0.25, 0.5, 1.0, 0.25, 0.5]


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("no symbols"),
        SourceRefusedError("the refresh token was revoked"),
        AuthenticationError("the key is revoked"),
    ],
)
def test_what_no_retry_can_mend_stops_the_source_with_one_line(
    service: Any, clock: Any, error: Exception
) -> None:
    source = Script([fail(error)])
    is_refusal = isinstance(error, IngestError)
    assert run(source, service, clock) == RunResult(RunState.FAILED, 0, str(error), is_refusal)
    assert source.runs == 1
    assert events(service)[-1] == ("error", "failed")
    assert service.rows("service_events")[-1]["detail"] == str(error)


def test_a_foreign_error_is_named_but_not_quoted(service: Any, clock: Any) -> None:
    run(Script([fail(OSError("https://venue.example/?key=SECRET"))]), service, clock)
    details = [row["detail"] or "" for row in service.rows("service_events")]
    assert any("OSError" in detail for detail in details)
    assert not any("SECRET" in detail for detail in details)


def test_a_source_without_more_rows_ends_the_run(service: Any, clock: Any) -> None:
    source = Script([write])
    assert run(source, service, clock) == RunResult(RunState.STOPPED, 0)
    assert all(writer.closed for writer in service.writers)
    assert not service.rows("gaps")


def test_an_outage_is_open_from_the_last_row_until_the_next(service: Any, clock: Any) -> None:
    async def write_then_silence(writer: SourceWriter) -> None:
        await write(writer)
        clock.time += 7
        raise SourceError("watchdog")

    source = Script([write_then_silence, fail(SourceError("refused")), write])
    begin = clock.now()
    run(source, service, clock)
    opened, closed = service.rows("gaps")
    assert (opened["revision"], opened["state"], opened["reason"]) == (0, "open", "disconnect")
    assert (opened["start"], opened["end"]) == (begin, None)
    assert (opened["dataset"], opened["symbol"], opened["source"]) == ("ticks", "MNQ", "feed")
    assert closed["gap_id"] == opened["gap_id"]
    assert (closed["revision"], closed["state"]) == (1, "unfillable")
    assert closed["end"] == begin + 7_750_000  # 7 s, then delays of 0.25 and 0.5 s


def test_an_outage_is_one_gap_in_every_dataset_and_symbol(service: Any, clock: Any) -> None:
    source = Script(
        [fail(SourceError("cut"))], symbols=("MNQ", "SPY"), datasets=("ticks", "quotes")
    )
    run(source, service, clock)
    lanes = {(row["dataset"], row["symbol"]) for row in service.rows("gaps")}
    assert lanes == {(d, s) for d in ("ticks", "quotes") for s in ("MNQ", "SPY")}
    assert len({row["gap_id"] for row in service.rows("gaps")}) == 4


def test_a_source_that_knows_no_symbols_has_gaps_of_all(service: Any, clock: Any) -> None:
    run(Script([fail(SourceError("cut"))], symbols=()), service, clock)
    assert [row["symbol"] for row in service.rows("gaps")] == [None]


def test_a_gap_that_can_be_refilled_stays_open_with_its_end(service: Any, clock: Any) -> None:
    run(Script([fail(SourceError("cut")), write], Continuity.REFILLED), service, clock)
    closed = service.rows("gaps")[-1]
    assert closed["state"] == "open"
    assert closed["end"] is not None


def test_a_heartbeat_ends_an_outage_as_a_row_does(service: Any, clock: Any) -> None:
    async def hear(writer: SourceWriter) -> None:
        await writer.alive()

    run(Script([fail(SourceError("cut")), hear]), service, clock)
    assert [row["revision"] for row in service.rows("gaps")] == [0, 1]


def newest_tick(received: int) -> pa.Table:
    row = dict.fromkeys(("ts_event", "size", "price", "side", "kind", "flags", "sequence"), 0)
    text = {"symbol": "MNQ", "contract": "MNQ", "source": "feed"}
    return pa.Table.from_pylist([row | text | {"ts_recv": received}], schema=TICKS.schema)


@pytest.mark.parametrize("continuity", [Continuity.LOST, Continuity.REFILLED])
def test_downtime_is_a_gap_from_the_last_row_there_is_to_the_first_one_now(
    service: Any, clock: Any, continuity: Continuity
) -> None:
    last = clock.now() - 3_600_000_000
    service.newest["ticks"] = newest_tick(last)
    run(Script([write], continuity), service, clock)
    opened, closed = service.rows("gaps")
    assert (opened["reason"], opened["start"], opened["end"]) == ("downtime", last, None)
    assert closed["end"] == clock.now()
    assert service.asked[0] == ("ticks", ("MNQ",), "feed")


def test_a_first_start_and_a_synthetic_source_have_no_downtime(service: Any, clock: Any) -> None:
    run(Script([write]), service, clock)
    service.newest["ticks"] = newest_tick(clock.now() - 1_000_000)
    run(Script([write], Continuity.SYNTHETIC), service, clock)
    assert not service.rows("gaps")


def test_a_gap_left_open_by_an_earlier_run_is_closed_by_this_one(service: Any, clock: Any) -> None:
    start = clock.now() - 60_000_000
    left = Gap("left", 3, "ticks", "feed", "MNQ", start, None, GapReason.DISCONNECT, GapState.OPEN)
    older = Gap("old", 0, "ticks", "feed", "MNQ", 1, None, GapReason.SILENCE, GapState.OPEN)
    ended = Gap("old", 1, "ticks", "feed", "MNQ", 1, 2, GapReason.SILENCE, GapState.FILLED)
    other = Gap("x", 0, "ticks", "else", "MNQ", 1, None, GapReason.SILENCE, GapState.OPEN)
    service.newest["ticks"] = newest_tick(start)
    service.newest["gaps"] = gap_rows([ended, left, older, other], clock.now())
    run(Script([write]), service, clock)
    (closed,) = service.rows("gaps")
    assert (closed["gap_id"], closed["revision"], closed["end"]) == ("left", 4, clock.now())


def test_a_service_that_does_not_answer_keeps_a_source_waiting_but_not_for_ever(
    service: Any, clock: Any
) -> None:
    service.read_error = UnavailableError("nobody there")
    assert run(Script([write]), service, clock).state is RunState.STOPPED
    assert sum(clock.slept) == HISTORY_PATIENCE_SECONDS
    assert service.rows("service_events")[0]["detail"] == "downtime unknown: nobody there"
    assert [name for name, _ in service.written].count("ticks") == 1


def test_a_key_that_may_not_look_back_is_not_waited_for(service: Any, clock: Any) -> None:
    service.read_error = PermissionDeniedError("read:realtime is missing")
    assert run(Script([write]), service, clock).state is RunState.STOPPED
    assert not clock.slept


def test_a_stop_ends_the_wait_for_the_service(service: Any, clock: Any) -> None:
    service.read_error = UnavailableError("nobody there")
    source = Script([write])

    async def sleep(_: float) -> None:
        source.stop.set()
        await asyncio.Event().wait()

    clock.sleep = sleep
    assert run(source, service, clock).state is RunState.STOPPED
    assert source.runs == 0


def test_rows_lost_to_a_full_spool_are_a_gap(service: Any, clock: Any) -> None:
    async def lose(writer: SourceWriter) -> None:
        service.loss = Overflow("ticks", ("MNQ", "NQ"), 1_000, 2_000, 50)
        await write(writer)

    run(Script([lose], Continuity.SYNTHETIC), service, clock)
    rows = service.rows("gaps")
    assert [(row["symbol"], row["start"], row["end"]) for row in rows] == [
        ("MNQ", 1_000, 2_001),
        ("NQ", 1_000, 2_001),
    ]
    assert {(row["reason"], row["state"]) for row in rows} == {("overflow", "unfillable")}
    assert ("error", "running") in events(service)


def test_a_refused_write_is_a_failure_of_the_run_and_the_next_one_has_a_new_writer(
    service: Any, clock: Any
) -> None:
    async def refused(writer: SourceWriter) -> None:
        service.write_errors["ticks"] = ServerError("broken")
        try:
            await write(writer)
        finally:
            service.write_errors.clear()

    source = Script([refused, write])
    assert run(source, service, clock).restarts == 1
    first, second = (writer for writer in service.writers if writer.dataset == "ticks")
    assert first.closed
    assert second.batches


def test_health_that_can_not_be_told_does_not_stop_the_source(service: Any, clock: Any) -> None:
    service.write_errors["service_events"] = UnavailableError("away")
    assert run(Script([write]), service, clock).state is RunState.STOPPED


def test_a_stop_ends_a_waiting_restart_at_once(service: Any, clock: Any) -> None:
    source = Script([fail(SourceError("cut"))])

    async def sleep(_: float) -> None:
        source.stop.set()
        await asyncio.Event().wait()

    clock.sleep = sleep
    assert run(source, service, clock) == RunResult(RunState.STOPPED, restarts=1)
    assert source.runs == 1


def test_a_source_that_ignores_its_cancellation_is_left_behind(service: Any, clock: Any) -> None:
    ignored = 0

    async def deaf(_: SourceWriter) -> None:
        nonlocal ignored
        source.stop.set()
        # The runner cancels once; the end of the event loop, which comes next, must not hang.
        while not ignored:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ignored += 1
        await asyncio.Event().wait()

    source = Script([deaf])
    assert run(source, service, clock).state is RunState.STOPPED
    assert ignored


def test_a_source_cancelled_from_within_is_started_again(service: Any, clock: Any) -> None:
    async def cancelled(_: SourceWriter) -> None:
        raise asyncio.CancelledError

    assert run(Script([cancelled, write]), service, clock).restarts == 1
