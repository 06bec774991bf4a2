"""What users install: small, typed, and as its documents say."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import tickflight
from tickflight import errors
from tickflight.testing import FakeServer

CLIENT = Path(__file__).parents[1]


def test_everything_exported_exists_and_is_sorted() -> None:
    assert sorted(tickflight.__all__) == tickflight.__all__
    assert all(hasattr(tickflight, name) for name in tickflight.__all__)


def test_every_error_is_exported_and_stands_in_the_tree_of_its_module() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TickflightError)
    }
    assert defined == {name for name in tickflight.__all__ if name.endswith("Error")}
    assert all(name in (errors.__doc__ or "") for name in defined)


def test_it_needs_pyarrow_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'pandas', 'polars', 'pydantic', 'click', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import tickflight, tickflight.cli, tickflight.testing\n"
        "with tickflight.testing.FakeServer() as server:\n"
        "    with tickflight.connect(server.uri, server.api_key) as client:\n"
        "        with client.writer('ticks') as writer:\n"
        "            import pyarrow as pa\n"
        "            writer.write(pa.table({'symbol': ['MNQ'], 'ts_event': [1]}))\n"
        "        assert len(client.latest('MNQ')) == 1\n"
        "        try:\n"
        "            client.latest('MNQ').polars()\n"
        "        except tickflight.ConfigurationError as error:\n"
        "            assert 'tickflight[polars]' in str(error)\n"
        "        try:\n"
        "            client.latest('MNQ').pandas()\n"
        "        except tickflight.ConfigurationError as error:\n"
        "            assert 'tickflight[pandas]' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (CLIENT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == tickflight.__version__


EXAMPLES = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_readme_runs(
    server: FakeServer,
    client: tickflight.Client,
    ticks: Callable[..., pa.RecordBatch],
    monkeypatch: pytest.MonkeyPatch,
    example: str,
) -> None:
    monkeypatch.setenv("TICKFLIGHT_FLIGHT_URI", server.uri)
    monkeypatch.setenv("TICKFLIGHT_API_KEY", server.api_key)
    symbol = {"requested": [0, 1], "available": [0, 1], "state": "verified"}
    server.coverage = {"snapshot": "1", "symbols": {"MNQ": symbol}}
    with client.writer("ticks") as writer:
        writer.write(ticks(0, 10))
    exec(compile(example, "README.md", "exec"), {})
