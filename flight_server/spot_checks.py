"""Spot-checks: every few minutes, rows taken at random are looked at again.

    journal       rows of a record, and a client's answer
    reread        rows of a file of the lake, what was committed, and a client's answer
    cross_source  rows of an imported file, and the count of its records (``witnesses``)

The client is a real one, over the network, with a key of the server's own. What was looked at, and
what was wrong, are rows of ``spot_checks``. What was wrong is looked at again in each round, and is
a trouble in ``status`` until it is mended.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, Protocol, final

import pyarrow as pa
import structlog
from pyarrow import flight

from flight_server.check_tally import CheckTally
from flight_server.errors import FlightServiceError, UnansweredError
from flight_server.files import ImportedFile
from flight_server.witnesses import check_file
from storage.errors import StorageError
from storage.lake.files import LakeFile
from storage.ports import Clock
from storage.producers import AppendStream
from storage.schemas import SPOT_CHECKS
from storage.selection import ALL_SOURCES
from storage.spot_checks import (
    PAUSE_SECONDS,
    Finding,
    Sample,
    file_sample,
    random_file,
    random_record,
    record_sample,
)
from storage.store import Store

MODEL: Final = "tickflightd:spot-checks"
"""Numbers our rows, and names the key we ask ourselves with."""
ROUND_SECONDS: Final = 180.0
"""From one round to the next: hundreds of looks a day, each of them milliseconds."""
FIRST_ROUND_SECONDS: Final = 60.0
"""A server that has just started has better things to do."""
FILES_SECONDS: Final = 10.0
"""How soon after an import its file is counted."""
ASK_SECONDS: Final = 10.0
"""How long the answer to our own question may take."""
SETTLE_SECONDS: Final = 0.5
"""How long a record of a file that is being written may look damaged: a commit takes a tenth."""
FAILING_MAX: Final = 16
"""Failures that are looked at again in each round."""
STOP_SECONDS: Final = 1.0
"""How long the end of a look is waited for: the service has promised to stop soon."""
RETENTION: Final = "retention"
"""The code of an answer that rows were dropped for their age."""
_LOG: Final = structlog.get_logger(__name__)

Look = Callable[[], Finding | None]


class Files(Protocol):
    """The registry of files."""

    def imported(self) -> list[ImportedFile]:
        """Return the files that were imported whole."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is looked at.

    Attributes:
        store: The rows.
        journal: Directory of the journal.
        files: Knows what was imported.
        key: The key to ask with; it may read everything.
        location: Where the server answers.
    """

    store: Store
    journal: Path
    files: Files
    key: str
    location: str


@final
class SpotChecker:
    """Looks at random rows again and again; ``start`` once, ``stop`` once.

    Args:
        around: What is looked at.
        tally: Learns what was found.
        clock: Where time comes from.
        chance: Chooses; tests bring their own.
    """

    def __init__(
        self, around: Surroundings, tally: CheckTally, clock: Clock, chance: Random
    ) -> None:
        self._around = around
        self._tally = tally
        self._clock = clock
        self._chance = chance
        # The mutable state: what is wrong still, how to look at it again, and files given up.
        self._failing: dict[str, tuple[Finding, Look]] = {}
        self._uncounted: set[int] = set()
        self._stream: AppendStream | None = None
        self._seq = around.store.producers.durable(MODEL)
        self._next_round = clock.monotonic() + FIRST_ROUND_SECONDS
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spot-checks", daemon=True)

    def start(self) -> None:
        """Look until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a question that is still on its way is nobody's any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def look(self) -> list[Finding]:
        """Look at the journal and the lake once, and again at what was wrong; return the news.

        Raises:
            StorageError: It could not be carried out.
        """
        looks = {name: look for name, (_, look) in self._failing.items()}
        seed, around = self._chance.getrandbits(32), self._around
        record = random_record(around.journal, self._chance)
        if record is not None:
            looks[f"{record[0].name} {record[1]}"] = partial(self._look_at_record, *record, seed)
        file = random_file(around.store.published, self._chance)
        if file is not None:
            looks[file[1].path] = partial(self._look_at_file, *file, seed)
        return self._carried_out(looks)

    def count_files(self) -> list[Finding]:
        """Count the rows of files that were imported since; return what was found.

        Raises:
            StorageError: It could not be carried out.
            FlightServiceError: Likewise.
        """
        done = self._around.store.snapshot().known.files | self._uncounted
        new = [file for file in self._around.files.imported() if file.number not in done]
        self._uncounted.update(file.number for file in new)
        return self._carried_out(
            {f"file {file.number}": partial(self._count_file, file) for file in new}
        )

    def _run(self) -> None:
        self._attempt(lambda: self._tally.learn(self._around.store.snapshot()))
        while not self._stopping.wait(FILES_SECONDS):
            self._attempt(self.count_files)
            if self._clock.monotonic() >= self._next_round:
                self._next_round = self._clock.monotonic() + ROUND_SECONDS
                self._attempt(self.look)

    def _attempt(self, do: Callable[[], object]) -> None:
        try:
            do()
        except (StorageError, FlightServiceError) as error:
            self._note_missed(error)

    def _note_missed(self, error: Exception) -> None:
        if not self._stopping.is_set():
            _LOG.warning("spot-check not carried out", reason=str(error))

    def _pause(self) -> None:
        self._stopping.wait(PAUSE_SECONDS)

    def _settle(self) -> None:
        self._stopping.wait(SETTLE_SECONDS)

    # Looking

    def _look_at_record(self, path: Path, number: int, seed: int) -> Finding | None:
        tables, chance = self._around.store.tables, Random(seed)  # noqa: S311 - no secret
        return self._compared(record_sample(path, number, tables, chance, self._settle))

    def _look_at_file(self, name: str, file: LakeFile, seed: int) -> Finding | None:
        table = self._around.store.tables[name]
        found = self._compared(file_sample(table, file, Random(seed), self._pause))  # noqa: S311
        # What replaces a file of bars has other rows, and dropped rows are in no answer.
        return found if file in set(table.index) else None

    def _count_file(self, file: ImportedFile) -> Finding | None:
        return check_file(self._around.store.snapshot(), file, self._pause)

    def _compared(self, taken: Sample | Finding | None) -> Finding | None:
        """Ask for rows that were taken, as any client would."""
        if not isinstance(taken, Sample):
            return taken
        try:
            return taken.compared(self._answer(taken))
        except flight.FlightServerError as error:
            if RETENTION in str(error.extra_info):
                return None
            if self._stopping.is_set():
                raise UnansweredError("it is shutting down") from error
            said = str(error).partition("\n")[0]
            detail = f"{taken.where}: readers get an error: {said}"
            rows = len(taken.hashes)
            return Finding(taken.dataset, taken.kind, rows, 0, detail, taken.symbol)
        except (flight.FlightError, pa.ArrowException) as error:
            # Busy, late or stopping: that is no answer, and no wrong one.
            raise UnansweredError(str(error).partition("\n")[0]) from error

    def _answer(self, sample: Sample) -> Iterator[pa.RecordBatch]:
        around = self._around
        ticket = {
            "op": "range",
            "dataset": sample.dataset,
            "symbols": [] if sample.symbol is None else [sample.symbol],
            "start": sample.start,
            "end": sample.end,
            "source": sample.source or ALL_SOURCES,
        }
        headers = [(b"authorization", f"Bearer {around.key}".encode())]
        options = flight.FlightCallOptions(headers=headers, timeout=ASK_SECONDS)
        # Whoever could stand between us and ourselves could read our memory.
        with flight.connect(around.location, disable_server_verification=True) as client:
            reader = client.do_get(flight.Ticket(json.dumps(ticket).encode()), options)
            for chunk in reader:
                yield chunk.data

    # Telling

    def _carried_out(self, looks: Mapping[str, Look]) -> list[Finding]:
        """Look at each, and tell what is new: what was wrong before is told when it is mended."""
        news = []
        for name, look in looks.items():
            try:
                found = look()
            except (StorageError, UnansweredError) as error:
                self._note_missed(error)  # what was wrong before still is, for all we know
                continue
            before = self._failing.pop(name, None)
            if found is not None and found.passed < found.checked:
                if len(self._failing) < FAILING_MAX:
                    self._failing[name] = (found, look)
                if before is None:
                    _LOG.error("spot-check failed", dataset=found.dataset, detail=found.detail)
                    news.append(found)
            elif found is not None:
                news.append(found)
        self._tally.note(news, [found for found, _ in self._failing.values()])
        if news:
            self._write(news)
        return news

    def _write(self, findings: Sequence[Finding]) -> None:
        if self._stream is None:
            self._stream = self._around.store.open_stream(SPOT_CHECKS.name, SPOT_CHECKS.schema)
        now = self._clock.now()
        rows = [{"ts_event": now, "ts_recv": now, **asdict(one)} for one in findings]
        batch = pa.RecordBatch.from_pylist(rows, schema=SPOT_CHECKS.schema)
        self._stream.push(batch, MODEL, self._seq + 1)
        self._seq += 1
