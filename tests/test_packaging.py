"""What the two distributions hold, and that nothing else answers to their generic names."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SERVICE_PACKAGES = {"flight_server", "ingest", "storage", "tickflightd", "webui"}


class Wheel:
    """A wheel built from the working tree."""

    def __init__(self, source: Path, place: Path) -> None:
        # With the build backend of this environment: fetching one would take a network.
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
            cwd=source,
            check=True,
            capture_output=True,
            timeout=120,
        )
        (path,) = place.glob("*.whl")
        self.unpacked = place / "unpacked"
        with zipfile.ZipFile(path) as archive:
            self.names = archive.namelist()
            archive.extractall(self.unpacked)

    @property
    def packages(self) -> set[str]:
        tops = {name.partition("/")[0] for name in self.names}
        return {top for top in tops if not top.endswith(".dist-info")}

    @property
    def metadata(self) -> Message:
        (path,) = self.unpacked.glob("*.dist-info/METADATA")
        return message_from_string(path.read_text())

    @property
    def requirements(self) -> set[str]:
        """Names of what it can't do without."""
        all_of_them = self.metadata.get_all("Requires-Dist", [])
        needed = [str(one) for one in all_of_them if "extra ==" not in str(one)]
        return {re.split(r"[^\w.-]", one)[0] for one in needed}

    def runs(self, code: str) -> str:
        """Run code that finds the wheel's packages before all others, from a neutral place."""
        first = f"import sys; sys.path.insert(0, {str(self.unpacked)!r}); "
        done = subprocess.run(
            [sys.executable, "-I", "-c", first + code],
            cwd=self.unpacked.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(REPOSITORY, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(REPOSITORY / "client", tmp_path_factory.mktemp("sdk"))


def test_the_service_holds_its_five_packages_and_no_other(service: Wheel) -> None:
    assert service.packages == SERVICE_PACKAGES


def test_the_sdk_holds_its_one_package_and_no_other(sdk: Wheel) -> None:
    assert sdk.packages == {"tickflight"}


def test_every_package_says_that_it_is_typed(service: Wheel, sdk: Wheel) -> None:
    for package in SERVICE_PACKAGES:
        assert f"{package}/py.typed" in service.names
    assert "tickflight/py.typed" in sdk.names


def test_the_service_refuses_to_be_uploaded(service: Wheel) -> None:
    assert "Private :: Do Not Upload" in service.metadata.get_all("Classifier", [])


def test_the_service_stands_on_the_sdk_and_never_the_other_way(service: Wheel, sdk: Wheel) -> None:
    assert "tickflight" in service.requirements
    assert sdk.requirements == {"pyarrow"}


def test_importing_the_sdk_loads_nothing_of_the_service(sdk: Wheel) -> None:
    code = "import tickflight; print(tickflight.__file__, *sorted(sys.modules))"
    file, *loaded = sdk.runs(code).split()
    assert Path(file).is_relative_to(sdk.unpacked)
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & (SERVICE_PACKAGES | {"pandas", "polars", "pydantic", "structlog"})


def test_the_installed_service_answers_its_command(service: Wheel) -> None:
    code = "sys.argv[1:] = ['--version']; from tickflightd.cli import main; main()"
    version = service.metadata["Version"]
    assert service.runs(code) == f"tickflightd {version}"


@pytest.mark.parametrize("name", sorted({*SERVICE_PACKAGES, "tickflight"}))
def test_what_is_imported_here_is_ours(name: str) -> None:
    file = importlib.import_module(name).__file__
    assert file is not None, "a namespace package: our __init__.py is gone"
    assert Path(file).is_relative_to(REPOSITORY)


def test_no_other_distribution_ships_one_of_our_names() -> None:
    ours = {"tickflight", "tickflight-server"}
    strangers = [
        f"{distribution.name}: {path}"
        for distribution in importlib.metadata.distributions()
        if distribution.name not in ours
        for path in distribution.files or ()
        if path.parts[0] in SERVICE_PACKAGES | {"tickflight"}
    ]
    assert strangers == []


def test_both_distributions_have_one_version(service: Wheel, sdk: Wheel) -> None:
    assert service.metadata["Version"] == sdk.metadata["Version"]


def test_scripts_and_hooks_can_be_run() -> None:
    for script in ("scripts/bootstrap", "scripts/test-tools", ".ci/run"):
        assert os.access(REPOSITORY / script, os.X_OK), script
