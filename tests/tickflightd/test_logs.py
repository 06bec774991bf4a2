"""Log lines: structured, with their role, and without a secret whatever is logged."""

import json
import os
import pty
import subprocess
import sys

import pytest

from tickflightd.logs import REDACTED, redactor

KEY = "tf_0123456789ab_" + "S3cr3tPart" * 5
SECRET = 'quo"ted\\back/ünï secret'
CANARY = f"""
import logging, sys, threading
import structlog
from tickflightd import logs

key, secret = {KEY!r}, {SECRET!r}
logs.configure("flight", level="debug", secrets=[secret, ""])
ours = structlog.get_logger("storage.journal")
ours.debug("opened", path="/data")
ours.info("authorization: Bearer " + key, headers={{"authorization": key}}, secrets=[secret])
logging.getLogger("tickflight.writer").debug("sending with %s", key)
logging.getLogger("someone.else").debug("token %s", secret)
logging.getLogger("someone.else").warning("token %s", secret)
logging.getLogger("someone.else").warning("%d", secret)  # can't be formatted
try:
    raise ValueError(secret, key)
except ValueError:
    ours.exception("failed")
def fail(token):
    raise RuntimeError(f"bad token {{token}}")
thread = threading.Thread(target=fail, args=[key], name="worker")
thread.start()
thread.join()
fail(secret)
"""


def spellings() -> list[str]:
    return ["S3cr3tPart", SECRET, json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1], "back/ünï"]


def run_canary() -> str:
    done = subprocess.run(
        [sys.executable, "-c", CANARY], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_no_secret_reaches_a_log_at_debug() -> None:
    written = run_canary()
    assert [spelling for spelling in spellings() if spelling in written] == []
    assert written.count(REDACTED) > 8


def test_every_line_is_json_with_its_role_level_and_time() -> None:
    lines = [json.loads(line) for line in run_canary().splitlines()]
    assert [line["event"] for line in lines][:2] == [
        "opened",
        f"authorization: Bearer tf_0123456789ab_{REDACTED}",
    ]
    for line in lines:
        assert line["role"] == "flight"
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
        assert line["timestamp"].endswith("Z")


def test_other_packages_speak_from_warning_up() -> None:
    lines = [json.loads(line) for line in run_canary().splitlines()]
    foreign = [line for line in lines if line["logger"] == "someone.else"]
    assert [line["level"] for line in foreign] == ["warning"]


def test_uncaught_exceptions_are_log_lines_too() -> None:
    lines = [json.loads(line) for line in run_canary().splitlines()]
    uncaught = [line for line in lines if line["event"] == "uncaught exception"]
    assert [line.get("thread") for line in uncaught] == ["worker", None]
    for line in uncaught:
        assert "RuntimeError: bad token" in line["exception"]


def test_a_terminal_gets_columns_and_no_secret_either() -> None:
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        process = subprocess.Popen([sys.executable, "-c", CANARY], stderr=slave)
        os.close(slave)
        written = b""
        try:
            while chunk := terminal.read(65_536):
                written += chunk
        except OSError:  # how Linux says that the other side is closed
            pass
        assert process.wait(timeout=60) == 1
    text = written.decode()
    assert "opened" in text
    assert '"event"' not in text
    assert [spelling for spelling in spellings() if spelling in text] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer tf_abc_def0", f"Bearer tf_abc_{REDACTED}"),
        ("tf_a_b tf_c_d", f"tf_a_{REDACTED} tf_c_{REDACTED}"),
        ("nothing of the kind", "nothing of the kind"),
        ("hunter2", REDACTED),
        ("hunter2 and more", REDACTED),
        ("abc", "abc"),
    ],
)
def test_what_is_left_out(text: str, shown: str) -> None:
    redact = redactor(["hunter2", "hunter2 and more", "abc"])
    assert redact(text) == shown


def test_without_secrets_everything_passes() -> None:
    assert redactor([])("plain \n text") == "plain \n text"
