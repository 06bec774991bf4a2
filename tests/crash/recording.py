"""Recording what a process really asks of the file system, call by call.

SQLite can't be made to run on a disk written in Python, so a real run on a real file system is
watched with strace. The recording has everything that a power cut can take apart: each write with
its bytes, each change of a size or a name, and each call that makes some of them durable.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
STRING_MAX: Final = 1 << 26
"""strace shortens what is longer; far beyond any single write."""
RUN_SECONDS: Final = 120
CALLS: Final = (
    "open,openat,creat,close,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3,sendfile,copy_file_range"
)
_LINE: Final = re.compile(r"(\d+) (.*)")
_WHOLE: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(?: |$)")
_BEGUN: Final = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)(?: |$)")
_ARGUMENT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?|([^,"]+)')


@dataclass
class Call:
    """One system call, from the moment it began to the moment it returned.

    Attributes:
        name: Of the call.
        arguments: Strings as bytes, all else as strace writes it.
        result: What it returned; None when the process died in it.
        process: Number of the run within the recording: descriptors are of one run only.
    """

    name: str
    arguments: list[bytes | str]
    process: int
    result: int | None = None


@dataclass(frozen=True)
class Moment:
    """A call begins or returns."""

    call: Call
    begins: bool


@dataclass
class Recording:
    """The moments of one or several runs, in the order they happened."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    processes: int = 0

    def run(self, words: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m WORDS`` and append what it asked for."""
        trace = self.root / "trace"
        done = traced(words, "-o", str(trace), "-xx", f"-s{STRING_MAX}", f"-e{CALLS}", *options)
        self.moments += parsed(trace.read_text().splitlines(), self.processes)
        self.processes += 1
        trace.unlink()
        return done


def traced(words: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m WORDS`` under strace."""
    # With the filter, strace stops at the calls it looks for only, but no longer injects signals.
    injects = any(option.startswith("-einject") for option in options)
    return subprocess.run(
        ["strace", "-f", "-qq", *([] if injects else ["--seccomp-bpf"]), *options, *python(*words)],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def python(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def environment() -> dict[str, str]:
    """Return the environment of a run: no bytecode is written among what is watched."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}


def missing_tool() -> str | None:
    """Return why nothing can be recorded here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()}"


def parsed(lines: Sequence[str], process: int = 0) -> Iterator[Moment]:
    """Read what ``strace -f -xx`` has written."""
    open_calls: dict[str, tuple[Call, str]] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        assert found is not None, line
        thread, text = found[1], found[2].lstrip()
        if text.startswith(("+++", "---")):
            continue
        if begun := _BEGUN.fullmatch(text):
            call = Call(begun[1], [], process)
            open_calls[thread] = (call, begun[2])
            # Shown at once, with what was there to show: all but the last arguments of a read.
            call.arguments = arguments(begun[2])
            yield Moment(call, begins=True)
        elif resumed := _RESUMED.match(text):
            call, first = open_calls.pop(thread)
            call.arguments = arguments(first + resumed[2])
            call.result = _result(resumed[3])
            yield Moment(call, begins=False)
        elif whole := _WHOLE.match(text):
            call = Call(whole[1], arguments(whole[2]), process, _result(whole[3]))
            yield Moment(call, begins=True)
            yield Moment(call, begins=False)
        else:
            raise AssertionError(f"strace wrote something new: {line[:200]}")


def _result(text: str) -> int | None:
    return None if text == "?" else int(text)


def arguments(text: str) -> list[bytes | str]:
    """Split the arguments of a call."""
    found: list[bytes | str] = []
    for match in _ARGUMENT.finditer(text):
        assert match[2] is None, "strace has shortened a string"
        if match[3] is None:
            found.append(bytes.fromhex(match[1].replace("\\x", "")))
        elif match[3].strip():
            found.append(match[3].strip())
    return found
