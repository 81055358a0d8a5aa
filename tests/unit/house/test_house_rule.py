"""The house rule: import-linter's contracts say who may import whom, and here stands what imports do not show.

What the core may use, how long a function and a file may be, how full a folder, and what a router's import costs.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = ("killswitch", "agents", "coordinator")
MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 600
MAX_FILES_IN_A_FOLDER = 20
IN_CORE = {
    "__future__", "bisect", "collections", "contextlib", "dataclasses", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "types", "typing",
}  # fmt: skip
"""What core may import beside itself: nothing with a clock, a file, a socket, a thread or a dice."""
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


@cache
def parsed(folder: str) -> tuple[tuple[Path, ast.Module], ...]:
    """Every Python file of one folder, parsed once."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple((path, ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))) for path in paths)


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file of these folders."""
    for folder in folders:
        yield from parsed(folder)


def imported(tree: ast.Module, package: str) -> set[str]:
    """Full names of the modules that a file imports, at any depth of its code; ``package`` resolves relative ones."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def package_of(path: Path) -> str:
    """The package in which a file's relative imports are looked up."""
    return ".".join(path.parts[:-1])


def roots(names: set[str]) -> set[str]:
    """First parts of module names."""
    return {name.partition(".")[0] for name in names}


def test_the_contracts_of_import_linter_are_kept() -> None:
    """The house rule, as pyproject.toml states it: import-linter keeps every contract, and there are contracts."""
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(lint_imports), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "Contracts: 0 kept" not in done.stdout


def test_the_core_is_pure() -> None:
    """core has no I/O, no clock and no randomness, and imports nothing of ours but core."""
    files = list(sources("killswitch/core"))
    assert len(files) > 5
    for path, tree in files:
        names = imported(tree, package_of(path))
        ours = {name for name in names if name.partition(".")[0] == "killswitch"}
        assert roots(names - ours) <= IN_CORE, path
        assert all(name.startswith("killswitch.core") for name in ours), path


def test_the_core_opens_no_file_and_prints_nothing() -> None:
    """core calls neither open nor print nor input nor __import__."""
    calls = [
        f"{path}:{node.lineno} {node.func.id}"
        for path, tree in sources("killswitch/core")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in {"open", "print", "input", "__import__", "eval", "exec"}
    ]
    assert calls == []


def test_no_function_is_longer_than_seventy_lines() -> None:
    """A function fits on a screen: none outside the tests is longer than 70 lines."""
    too_long = [
        f"{path}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, tree in sources(*PRODUCT)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_no_file_is_longer_than_six_hundred_lines() -> None:
    """A file is read in one sitting: mostly 250 to 400 lines, and none above 600."""
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path, _ in sources(*PRODUCT)}
    assert {str(path): count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_folder_holds_more_than_twenty_files() -> None:
    """A folder is seen at one glance."""
    counts = Counter(path.parent for path, _ in sources(*PRODUCT))
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FILES_IN_A_FOLDER} == {}


def test_nothing_has_a_name_that_says_nothing() -> None:
    """A module or folder called utils is where things go whose place nobody has thought about."""
    paths = [path.relative_to(ROOT) for folder in (*PRODUCT, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in paths if SAYS_NOTHING & {*path.parts, path.stem}] == []


def test_no_text_names_the_note_that_asked_for_it() -> None:
    """Code, tests and documents say what a thing does; a letter of a note that nobody has says nothing."""
    note = re.compile(r"seed system|the seeds?'|[Ss]ection [A-H]\b")
    paths = [path for folder in (*PRODUCT, "tests", "docs", "config") for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in paths if path.suffix in {".py", ".md", ".toml", ".yaml"} and path != Path(__file__)]
    found = [str(path.relative_to(ROOT)) for path in texts if note.search(path.read_text(encoding="utf-8"))]
    assert found == []


def answers_for_itself(handler: ast.ExceptHandler) -> bool:
    """Whether a handler of everything raises again, or writes the whole fault into the log."""
    nodes = list(ast.walk(handler))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return (
        any(isinstance(node, ast.Raise) for node in nodes)
        or any(isinstance(call.func, ast.Attribute) and call.func.attr == "exception" for call in calls)
        or any(keyword.arg == "exc_info" for call in calls for keyword in call.keywords)
    )


def test_who_catches_everything_says_why() -> None:
    """An ``except Exception`` that swallows the fault has its reason on the same line."""
    silent = []
    for path, tree in sources(*PRODUCT):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        silent += [
            f"{path}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler)
            if node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
            if "#" not in lines[node.lineno - 1] and not answers_for_itself(node)
        ]
    assert silent == []


@pytest.mark.parametrize(
    "statement",
    [
        "from killswitch import Blocked, Gate, GateError, GateUnavailable, Mode",
        "import killswitch.link",
        "import killswitch.gate",
        "import killswitch.core.flag",
        "import killswitch.clock",
    ],
)
def test_what_a_router_imports_is_standard_library_only(statement: str) -> None:
    """An order router pays for nothing: gate, link and core import only the standard library and each other."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "import json\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "roots = ('killswitch', 'killswitch_agent', 'killswitch_coordinator')\n"
        "ours = sorted(name for name in sys.modules if name.partition('.')[0] in roots)\n"
        "print(json.dumps([sorted(new - sys.stdlib_module_names - {'killswitch'}), ours]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    foreign, ours = json.loads(done.stdout)
    assert foreign == []
    assert [
        name for name in ours if name.startswith(("killswitch.stores", "killswitch.cli", "killswitch.cluster.records"))
    ] == []
    assert [name for name in ours if name.startswith(("killswitch_agent", "killswitch_coordinator"))] == []
