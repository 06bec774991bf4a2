"""The repository lints itself: rules no linter knows, each with its reason.

A rule that gets in the way is changed here, with a new reason; it is not worked around.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[1]
SERVICE: Final = ("flight_server", "ingest", "storage", "webui", "tickflightd")
SDK: Final = "client/src/tickflight"
TESTS: Final = ("tests", "client/tests")
TREES: Final = (*SERVICE, SDK, *TESTS, "bench", "docs", "examples", "scripts", ".ci", ".")
TEXT_SUFFIXES: Final = frozenset({"", ".example", ".md", ".py", ".toml", ".ts", ".tsx", ".css"})
MADE_BY_TOOLS: Final = frozenset({"node_modules", "dist", "__pycache__"})

MODULE_LINES_MAX: Final = 600
"""Half of it fits in a head; what grows past it has become two things."""
FUNCTION_LINES_MAX: Final = 70
"""Two screens at most, without the docstring: what is longer can't be checked by reading."""
ENTRANCES: Final = frozenset({"__init__", "__main__", "rollover_child", "testing"})
"""Modules that others come in by: packages, programs, and what they ship for tests."""
TEST_NAME_WORDS_MIN: Final = 3
"""Fewer words name a subject; a fact needs a verb and what it says of it."""


@dataclass(frozen=True)
class Ban:
    """Text that must not occur.

    Attributes:
        name: What is banned, in a word.
        pattern: How it looks; bracketed letters keep this file from breaking its own rules.
        instead: What to do, and why.
        allowed_in: Files it is right in.
    """

    name: str
    pattern: str
    instead: str
    allowed_in: tuple[str, ...] = ()


EVERYWHERE: Final = (
    Ban("loose ends", r"\b(FIXM[E]|TOD[O]|XX[X])\b", "finish it or leave it out"),
    Ban("local host name", r"(?i)localhos[t]", "127.0.0.1: a bare machine can't resolve names"),
    Ban(
        "path of one machine",
        r"(?<![\w.~])/(roo[t]|hom[e]/\w+|User[s]/\w+)/",
        "a path relative to the repository, or ~",
    ),
    Ban(
        "package registry",
        r"\b(pypi\.or[g]|pythonhoste[d]|npmj[s]\.)",
        "which index packages come from is the machine's choice",
    ),
)
IN_PACKAGES: Final = (
    Ban(
        "environment",
        r"\bos\.(environ|environb|getenv)\b",
        "take a plain value: settings are read in one place, or nobody finds them all",
        (
            "tickflightd/settings.py",
            "tickflightd/testing.py",
            "tickflightd/welcome.py",
            f"{SDK}/settings.py",
            f"{SDK}/cli.py",
            f"{SDK}/screen.py",
        ),
    ),
    Ban(
        "queue without a limit",
        r"\b(Lifo|Priority)?Queue\(\)|\bSimpleQueue\b|\bmath\.inf\b",
        "name its limit and what happens there: what has none grows until the machine dies",
    ),
    Ban(
        "blocking server loop",
        r"\.serve\(\)",
        "start, wait, stop with a deadline: serve() is killed by the first SIGTERM",
    ),
    Ban(
        "silent catch-all",
        r"except (Base)?Exception:\s+(pass|continue)\b",
        "name what may fail, and say why that is fine",
    ),
    Ban(
        "assertion with a side effect",
        r"\bassert .*(\.pop\(|\.popleft\(|:=)",
        "assertions may be compiled away",
    ),
)
IN_TESTS: Final = (
    Ban(
        "fixed port",
        r"\b(127\.0\.0\.1|port=|bind\(\()\D{0,4}[1-9]\d{3,4}\b",
        "port 0: two runs must not meet",
        # These read addresses; nothing listens or connects there.
        (
            "tests/tickflightd/test_settings.py",
            "tests/tickflightd/test_tls.py",
            "client/tests/test_sdk_settings.py",
        ),
    ),
)


def files(*trees: str, suffixes: Iterable[str] = TEXT_SUFFIXES) -> list[Path]:
    """Text files people wrote, below the given directories of the repository."""
    found: set[Path] = set()
    for tree in trees:
        root = REPOSITORY / tree
        # The repository's own files only: what else lies in it is listed by name.
        paths = root.iterdir() if tree == "." else root.rglob("*")
        found |= {path for path in paths if path.is_file() and path.suffix in suffixes}
    return sorted(path for path in found if not MADE_BY_TOOLS & set(path.parts))


def modules(*trees: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in files(*trees, suffixes={".py"}):
        yield path, ast.parse(path.read_text(), str(path))


def place(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def offences(ban: Ban, paths: Iterable[Path]) -> list[str]:
    allowed = {REPOSITORY / name for name in ban.allowed_in}
    return [
        f"{place(path, text.count(chr(10), 0, match.start()) + 1)}: {match[0]!r}"
        for path in paths
        if path not in allowed
        for text in [path.read_text()]
        for match in re.finditer(ban.pattern, text, re.MULTILINE)
    ]


@pytest.mark.parametrize("ban", EVERYWHERE, ids=lambda ban: ban.name)
def test_no_file_holds_what_is_banned_everywhere(ban: Ban) -> None:
    assert offences(ban, files(*TREES)) == [], ban.instead


@pytest.mark.parametrize("ban", IN_PACKAGES, ids=lambda ban: ban.name)
def test_no_package_holds_what_is_banned_there(ban: Ban) -> None:
    assert offences(ban, files(*SERVICE, SDK, suffixes={".py"})) == [], ban.instead


@pytest.mark.parametrize("ban", IN_TESTS, ids=lambda ban: ban.name)
def test_no_test_holds_what_is_banned_there(ban: Ban) -> None:
    assert offences(ban, files(*TESTS, suffixes={".py"})) == [], ban.instead


def test_modules_are_short() -> None:
    long = [
        f"{place(path)}: {lines} lines"
        for path in files(*SERVICE, SDK, "bench", "examples", suffixes={".py"})
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES_MAX
    ]
    assert long == [], f"split what is over {MODULE_LINES_MAX} lines"


def test_functions_are_short() -> None:
    long = [
        f"{place(path, node.lineno)}: {node.name} has {lines} lines"
        for path, tree in modules(*SERVICE, SDK, *TESTS, "bench", "examples")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := code_lines(node)) > FUNCTION_LINES_MAX
    ]
    assert long == [], f"split what is over {FUNCTION_LINES_MAX} lines"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    whole = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is None:
        return whole
    return whole - ((first.end_lineno or first.lineno) - first.lineno + 1)


def test_every_module_is_used() -> None:
    """Dead code is read, typed and tested as if it mattered."""
    used = {name for _, tree in modules(*SERVICE, SDK) for name in imported(tree)}
    used |= set(re.findall(r'= "([\w.]+):\w+"', all_scripts()))
    dead = [
        place(path)
        for path in files(*SERVICE, SDK, suffixes={".py"})
        if path.stem not in ENTRANCES and module_name(path) not in used
    ]
    assert dead == [], "import it or remove it"


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    relative = path.relative_to(REPOSITORY).with_suffix("")
    parts = relative.relative_to("client/src").parts if "src" in relative.parts else relative.parts
    return ".".join(parts)


def all_scripts() -> str:
    names = ("pyproject.toml", "client/pyproject.toml")
    return "".join((REPOSITORY / name).read_text() for name in names)


def test_no_tests_directory_is_a_package() -> None:
    """A package ``tests/storage`` would be taken for ``storage`` itself."""
    assert [place(path) for path in files(*TESTS) if path.name == "__init__.py"] == []


def test_test_files_have_names_of_their_own() -> None:
    """Type checkers know a module by its name, whatever directory it is in."""
    names = Counter(path.name for path in files(*TESTS, suffixes={".py"}))
    del names["conftest.py"]
    assert [name for name, count in names.items() if count > 1] == []


def test_every_test_is_named_after_a_fact() -> None:
    short = [
        f"{place(path, test.lineno)}: {name}"
        for path, tree in modules(*TESTS)
        for name, test in named_tests(tree)
        if len(re.findall(r"[A-Z]?[a-z0-9]+", name)) < TEST_NAME_WORDS_MIN
    ]
    assert short == [], "say what is true when the test passes"


def named_tests(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Tests with their full names: a class says what all of its tests speak of."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    groups = [("", tree.body), *((group.name, group.body) for group in classes)]
    for group, body in groups:
        for test in body:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                yield f"{group.removeprefix('Test')} {test.name.removeprefix('test_')}", test


def test_every_ban_finds_what_it_bans() -> None:
    """A pattern with a slip in it would guard nothing."""
    samples = {
        "loose ends": "# TO" + "DO: later",
        "local host name": "connect('local" + "host')",
        "path of one machine": "open('/ro" + "ot/.bashrc')",
        "package registry": "https://pypi." + "org/simple",
        "environment": "os.environ['HOME']",
        "queue without a limit": "asyncio.Queue()",
        "blocking server loop": "server.serve()",
        "silent catch-all": "except Exception:\n    pass",
        "assertion with a side effect": "assert queue.pop() == 1",
        "fixed port": "uri = '127.0.0.1:" + "8815'",
    }
    for ban in (*EVERYWHERE, *IN_PACKAGES, *IN_TESTS):
        assert re.search(ban.pattern, samples[ban.name], re.MULTILINE), ban.name
