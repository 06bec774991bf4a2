"""Work on the lake in a process of its own, so that it takes nothing from readers and producers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from storage.bars_making import BarsTask
from storage.errors import LakeCorruptError, LakeError, LakeFullError, StoreClosedError
from storage.lake.compaction import JoinTask
from storage.lake.scrub import FileReport, ScrubTask
from storage.lake.writer import WrittenFile
from storage.rollover_task import RolloverResult, RolloverTask

ROLL_OVER: Final = "rollover"
"""Key of a task in what the child reads; there is one a process."""
JOIN: Final = "join"
SCRUB: Final = "scrub"
MAKE_BARS: Final = "bars"
DONE: Final = "done"
"""Key of the child's answer; so are ``full`` and ``failed`` with a message, and ``corrupt`` with
the path of a file and what is wrong with it."""
FULL: Final = "full"
CORRUPT: Final = "corrupt"
FAILED: Final = "failed"
STOP_POLL_SECONDS: Final = 0.2
STDERR_CHARACTERS_MAX: Final = 500
"""Of the last line of an interpreter that died, which names the error."""


def roll_over(task: RolloverTask, stop: threading.Event) -> RolloverResult:
    """Have the files of some parts written; returns once they are durable and verified.

    To be called by a thread that lives as long as the child: it dies with its thread.

    Args:
        task: What to write.
        stop: Ends the child at once when it is set.

    Raises:
        LakeFullError: There is no room.
        LakeCorruptError: A file is not what was written.
        LakeError: It failed; the message says how.
        StoreClosedError: ``stop`` was set.
    """
    return RolloverResult.from_json(json.dumps(_run(ROLL_OVER, json.loads(task.to_json()), stop)))


def join(task: JoinTask, stop: threading.Event) -> WrittenFile:
    """Have some files of the lake joined into one; see ``roll_over``."""
    return WrittenFile.from_json(_run(JOIN, json.loads(task.to_json()), stop))


def scrub(tasks: Sequence[ScrubTask], stop: threading.Event) -> list[FileReport]:
    """Have some files of the lake compared with what was committed; see ``roll_over``."""
    reports = _run(SCRUB, [task.to_json() for task in tasks], stop)
    return [FileReport.from_json(report) for report in reports]


def make_bars(task: BarsTask, stop: threading.Event) -> list[WrittenFile]:
    """Have bars of some months made of the ticks of the lake; see ``roll_over``."""
    files = _run(MAKE_BARS, json.loads(task.to_json()), stop)
    return [WrittenFile.from_json(file) for file in files]


def _run(kind: str, task: Any, stop: threading.Event) -> Any:  # noqa: ANN401 - JSON
    # -P: a directory named ``storage`` where we were started must not become the package.
    command = (sys.executable, "-P", "-m", "storage.rollover_child", str(os.getpid()))
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with child:
        said, wrong = _communicate(child, json.dumps({kind: task}), stop)
    try:
        ((outcome, content),) = json.loads(said).items()
    except ValueError as error:
        detail = (
            wrong.strip().rpartition("\n")[2][:STDERR_CHARACTERS_MAX]
            or f"exit code {child.returncode}"
        )
        raise LakeError(f"the process that writes the lake died: {detail}") from error
    if outcome == DONE:
        return content
    if outcome == CORRUPT:
        path, detail = content
        raise LakeCorruptError(Path(path), detail)
    raise LakeFullError(content) if outcome == FULL else LakeError(content)


def _communicate(
    child: "subprocess.Popen[str]", text: str, stop: threading.Event
) -> tuple[str, str]:
    """Hand the child its task and wait for its answer; kill it as soon as ``stop`` is set."""
    # Not by communicate(): once that has run out of time, it never sends the rest of a task that is
    # larger than a pipe.
    threading.Thread(target=_tell, args=(child.stdin, text), daemon=True).start()
    child.stdin = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=STOP_POLL_SECONDS)
        if stop.is_set():
            child.kill()
            child.communicate()
            raise StoreClosedError("the server is shutting down")


def _tell(stdin: IO[str], text: str) -> None:
    with suppress(BrokenPipeError), stdin:  # how a child died, its last words say
        stdin.write(text)
