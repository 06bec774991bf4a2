import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flight_server.errors import (
    ControlStoreError,
    InvalidArgumentError,
    LimitError,
    NotFoundError,
)
from flight_server.files import FileRegistry, ImportState, Registration
from storage.ports import SystemClock

REPOSITORY = Path(__file__).parents[2]
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FileRegistry]:
    with FileRegistry(tmp_path, SystemClock()) as registry:
        yield registry


def register(
    registry: FileRegistry,
    digest: str = DIGEST,
    *,
    name: str = "spy.parquet",
    dataset: str = "ticks",
    options: Mapping[str, Any] | None = None,
    producer: str = "importer",
) -> Registration:
    return registry.register(
        digest, name=name, dataset=dataset, options=options or {}, producer=producer
    )


class TestStates:
    def test_a_file_never_seen_is_new_and_gets_number_one(self, registry: FileRegistry) -> None:
        assert register(registry, options={"map": {"price": "px"}}) == Registration(
            1, ImportState.NEW, {"map": {"price": "px"}}, "importer", None
        )

    def test_numbers_rise_by_one(self, registry: FileRegistry) -> None:
        numbers = [register(registry, f"{i:032x}").number for i in range(5)]
        assert numbers == [1, 2, 3, 4, 5]

    def test_a_file_begun_before_is_partial_and_keeps_what_it_was_begun_with(
        self, registry: FileRegistry
    ) -> None:
        register(registry, options={"symbol": "SPY"}, producer="first")
        again = register(
            registry, options={"symbol": "QQQ"}, producer="second", name="other.parquet"
        )
        assert again == Registration(1, ImportState.PARTIAL, {"symbol": "SPY"}, "first", None)

    def test_a_completed_file_says_so_with_its_rows(self, registry: FileRegistry) -> None:
        register(registry)
        registry.complete(DIGEST, 250_601)
        again = register(registry)
        assert (again.state, again.rows) == (ImportState.COMPLETE, 250_601)

    def test_an_empty_file_can_be_complete(self, registry: FileRegistry) -> None:
        register(registry)
        registry.complete(DIGEST, 0)
        assert register(registry).state is ImportState.COMPLETE

    def test_a_digest_is_the_same_in_capitals(self, registry: FileRegistry) -> None:
        register(registry, DIGEST.upper())
        assert register(registry, DIGEST).number == 1

    def test_the_registry_outlives_its_process(self, tmp_path: Path) -> None:
        with FileRegistry(tmp_path, SystemClock()) as first:
            register(first)
            first.complete(DIGEST, 3)
        with FileRegistry(tmp_path, SystemClock()) as second:
            assert register(second).rows == 3
            assert register(second, "f" * 64).number == 2

    def test_options_come_back_as_json_has_them_the_first_time_too(
        self, registry: FileRegistry
    ) -> None:
        options = {"columns": ("a", "b")}
        assert register(registry, options=options).options == {"columns": ["a", "b"]}
        assert register(registry, options=options).options == {"columns": ["a", "b"]}


class TestComplete:
    def test_completing_twice_is_fine(self, registry: FileRegistry) -> None:
        register(registry)
        registry.complete(DIGEST, 3)
        registry.complete(DIGEST, 3)

    def test_another_count_than_before_is_refused(self, registry: FileRegistry) -> None:
        register(registry)
        registry.complete(DIGEST, 3)
        with pytest.raises(InvalidArgumentError, match="3 rows") as caught:
            registry.complete(DIGEST, 4)
        assert caught.value.field == "rows"
        assert register(registry).rows == 3

    def test_a_file_never_registered_is_not_found(self, registry: FileRegistry) -> None:
        with pytest.raises(NotFoundError):
            registry.complete(DIGEST, 3)

    @pytest.mark.parametrize("rows", [-1, 2**32 + 1, 2**80])
    def test_an_impossible_count_is_refused(self, registry: FileRegistry, rows: int) -> None:
        register(registry)
        with pytest.raises(InvalidArgumentError) as caught:
            registry.complete(DIGEST, rows)
        assert caught.value.field == "rows"


class TestArguments:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("digest", "abc"),
            ("digest", "g" * 64),
            ("digest", "a" * 129),
            ("digest", "a" * 64 + "\n"),
            ("name", ""),
            ("name", "x" * 1_025),
            ("name", "a\nb"),
            ("name", "\udcff"),
            ("dataset", "trades"),
            ("options", {"at": object()}),
            ("options", {"at": float("nan")}),
            ("options", {"at": "x" * 70_000}),
            ("producer", ""),
        ],
    )
    def test_a_bad_argument_is_refused_by_name(
        self, registry: FileRegistry, field: str, value: Any
    ) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            register(registry, **{field: value})
        assert caught.value.field == field
        assert register(registry).number == 1

    def test_a_file_goes_into_one_dataset(self, registry: FileRegistry) -> None:
        register(registry)
        with pytest.raises(InvalidArgumentError, match="ticks") as caught:
            register(registry, dataset="quotes")
        assert caught.value.field == "dataset"

    def test_the_last_number_is_not_exceeded(
        self, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(registry)
        monkeypatch.setattr("flight_server.files._MAX_NUMBER", 2)
        assert register(registry, "a" * 64).number == 2
        with pytest.raises(LimitError):
            register(registry, "b" * 64)

    def test_a_closed_registry_says_that_it_cannot_be_used(self, tmp_path: Path) -> None:
        registry = FileRegistry(tmp_path, SystemClock())
        registry.close()
        with pytest.raises(ControlStoreError):
            register(registry)


class TestConcurrency:
    def test_threads_registering_one_file_agree_on_who_was_first(
        self, registry: FileRegistry
    ) -> None:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: register(registry), range(32)))
        assert {result.number for result in results} == {1}
        assert [result.state for result in results].count(ImportState.NEW) == 1

    def test_two_processes_never_share_a_number_nor_both_get_a_new_file(
        self, tmp_path: Path
    ) -> None:
        script = (
            "import json, pathlib, sys\n"
            "from flight_server.files import FileRegistry\n"
            "from storage.ports import SystemClock\n"
            "registry = FileRegistry(pathlib.Path(sys.argv[1]), SystemClock())\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "answers = {}\n"
            "for i in range(60):\n"
            "    digest = f'{i:032x}' if i % 2 else f'{sys.argv[2]}{i:031x}'\n"
            "    it = registry.register(\n"
            "        digest, name='x', dataset='ticks', options={}, producer=sys.argv[2])\n"
            "    answers[digest] = [it.number, it.state, it.producer]\n"
            "print(json.dumps(answers))\n"
        )
        children = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path), who],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for who in "ab"
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        first, second = (json.loads(child.communicate()[0]) for child in children)

        shared = first.keys() & second.keys()
        assert len(shared) == 30
        for digest in shared:
            assert {first[digest][1], second[digest][1]} == {"new", "partial"}
            assert first[digest][0] == second[digest][0]
            assert first[digest][2] == second[digest][2]
        numbers = {digest: answer[0] for digest, answer in (first | second).items()}
        assert sorted(numbers.values()) == list(range(1, 91))
