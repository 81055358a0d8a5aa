"""What the documents say exists: commands, options, targets, links, files, tests; and the examples run."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from killswitch import Gate, Mode
from killswitch.cli import cli
from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.scopes import GLOBAL
from killswitch.gate import GateWriter
from killswitch.settings.config import Settings
from tests.breaks import BREAKS
from tests.support.risk_metrics import metric_names
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DECISIONS = ROOT / "docs" / "decisions"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "tests" / "README.md",
]
GATE_PATH = "/dev/shm/killswitch/prod/gate"
LINK_PATH = "/run/killswitch/prod/agent.sock"

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r"^(killswitch|agents|coordinator|config|tests|docs|deploy)/[\w./-]*\.\w+$")

named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def fenced(document: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [text for language, text in FENCE.findall(document.read_text()) if language in languages]


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", document.read_text())


def inline(document: Path) -> list[str]:
    """What stands between single backticks."""
    return INLINE.findall(prose(document))


def commands(document: Path) -> Iterator[list[str]]:
    """Every line of the shell blocks, as words."""
    for block in fenced(document, "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """Walk from the command to the subcommand that the words name; the rest are its own words."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=command.name)
        _, rest, _ = command.make_parser(context).parse_args(list(words))
        if not rest and command.invoke_without_command:
            return command, rest
        assert rest, f"{words} names no subcommand"
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no subcommand {rest[0]!r}"
        command, words = found, rest[1:]
    return command, words


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@cache
def all_tests() -> frozenset[str]:
    """The names of all tests."""
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(re.findall(r"def (test_\w+)", sources))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@named
def test_every_command_in_a_block_is_one_that_the_command_line_takes(document: Path) -> None:
    for words in commands(document):
        if words[0] != "killswitch":
            continue
        command, rest = leaf(words[1:])
        try:
            command.make_context(command.name, rest)
        except click.exceptions.Exit:
            pass  # --help and --version end by themselves
        except click.UsageError as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


@named
def test_every_command_in_the_text_exists(document: Path) -> None:
    for text in inline(document):
        words = text.split()
        if words[0] != "killswitch" or len(words) == 1:
            continue
        at, command, own = 1, cli, options_of(cli)
        for at, word in enumerate(words[1:], start=1):
            if not isinstance(command, click.Group):
                break
            if word.startswith("-"):
                assert word in options_of(cli), f"{text}: there is no option {word}"
            elif (found := command.get_command(click.Context(command), word)) is not None:
                command, own = found, own | options_of(found)
            else:
                assert words[at - 1].startswith("-"), f"{text}: there is no subcommand {word!r}"
        for word in words[at:]:
            assert not word.startswith("-") or word in own, f"{text}: there is no option {word}"


@named
def test_every_make_target_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [words for words in (*commands(document), *(text.split() for text in inline(document))) if len(words) > 1]
    assert {words[1] for words in asked if words[0] == "make"} <= targets


@named
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f"{document.name}: {target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)
            assert anchor in map(slug, headings), f"{document.name}: {target} names no heading"


@named
def test_every_file_and_test_that_is_named_exists(document: Path) -> None:
    for text in inline(document):
        if SOURCE.match(text):
            assert (ROOT / text).exists(), f"{document.name}: there is no {text}"
        if re.fullmatch(r"test_\w+", text):
            assert text in all_tests(), f"{document.name}: there is no test {text}"


def test_every_metric_and_log_event_of_the_runbook_exists(tmp_path: Path) -> None:
    sources = "\n".join(
        path.read_text() for folder in ("killswitch", "agents", "coordinator") for path in (ROOT / folder).rglob("*.py")
    )
    text = (ROOT / "docs" / "operations.md").read_text()
    metrics = {
        name for name in re.findall(r"`(\w+)(?:\{\w+\})?`", text) if name.startswith(("killswitch_", "freeze_t"))
    }
    assert len(metrics) > 15
    # What is shown only when it is asked for has its name put together there.
    assert not {name for name in metrics - metric_names(tmp_path) if f'"{name}"' not in sources}
    logs = text.partition("## Logs")[2].partition("## Settings")[0]
    events = set(re.findall(r"`(\w+)`", logs)) - {"event"}
    assert len(events) > 15
    assert not {name for name in events if f'"{name}"' not in sources}


def test_the_settings_of_the_runbook_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KILLSWITCH_STORE", raising=False)
    monkeypatch.delenv("KILLSWITCH_CLUSTER", raising=False)
    (block,) = fenced(ROOT / "docs" / "operations.md", "yaml")
    assert yaml.safe_load(block) == Settings().model_dump(mode="json")


def test_the_bounds_of_the_guarantees_are_those_that_the_command_prints(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "killswitch", "config", "check"],
        env={"PATH": "", "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    assert printed in fenced(ROOT / "docs" / "guarantees.md", "text")


# -- the examples of the README ----------------------------------------------------------------------------------


def cause() -> Freeze:
    return Freeze("f-1", GLOBAL, Mode.FROZEN, "manual", "the edge collapsed", "operator:ann", "2026-01-31T09:30:00Z")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[GateWriter]:
    with GateWriter(tmp_path / "gate", cluster="prod", node="n1") as made:
        made.update([], epoch=1, permit_deadline_ns=now_ns() + 60_000_000_000)
        yield made


def run_example(code: str, tmp_path: Path) -> dict[str, Any]:
    """Run an example with its paths led to the test's own folder."""
    assert GATE_PATH in code
    code = code.replace(GATE_PATH, str(tmp_path / "gate")).replace(LINK_PATH, str(tmp_path / "agent.sock"))
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_readme_has_two_examples_on_the_standard_library_and_ours() -> None:
    examples = fenced(README, "python")
    assert len(examples) == 3
    for example in examples[:2]:
        modules = {node.module for node in ast.walk(ast.parse(example)) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"killswitch", "killswitch.link"}


def test_the_first_example_sends_through_an_open_gate(
    writer: GateWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(fenced(README, "python")[0], tmp_path)["gate"].close()
    assert capsys.readouterr().out == "{'symbol': 'BTCUSDT', 'venue': 'bybit', 'qty': 0.1}\n"


def test_the_first_example_sends_nothing_through_a_closed_gate(
    writer: GateWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.close_now(cause())
    run_example(fenced(README, "python")[0], tmp_path)["gate"].close()
    assert capsys.readouterr().out == ""


def test_the_first_example_is_stopped_by_its_second_look(
    writer: GateWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Gate.allows

    def freeze_after_the_first_look(gate: Gate, *order: Any, **attributes: Any) -> bool:
        allowed = look(gate, *order, **attributes)
        writer.close_now(cause())
        return allowed

    monkeypatch.setattr(Gate, "allows", freeze_after_the_first_look)
    run_example(fenced(README, "python")[0], tmp_path)["gate"].close()
    out = capsys.readouterr().out
    assert out.startswith("not sent: ")
    assert "the edge collapsed" in out


def test_the_third_example_refuses_with_the_sentence_that_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = fenced(README, "python")[2]
    exec(compile(example, "README.md", "exec"), {})
    assert f"\n# {capsys.readouterr().out.strip()}\n" in example


def test_the_second_example_cancels_when_the_gate_closes_without_an_agent(writer: GateWriter, tmp_path: Path) -> None:
    names = run_example(fenced(README, "python")[1], tmp_path)
    try:
        assert names["working"]
        writer.close_now(cause())
        wait_until(lambda: not names["working"], what="the example to cancel its order")
    finally:
        names["link"].close()
        names["gate"].close()


# -- what people look for first -----------------------------------------------------------------------------------


def test_the_documents_that_people_look_for_are_there() -> None:
    there = {path.name for path in ROOT.glob("*.md")}
    assert there >= {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}


def test_the_index_of_decisions_is_complete() -> None:
    """Every decision has a line with its title, in order, and every number is taken once."""
    pages = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    titles = [path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for path in pages]
    lines = [f"| [{path.name[:4]}]({path.name}) | {title[6:]} |" for path, title in zip(pages, titles, strict=True)]
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    assert [line for line in index.splitlines() if line.startswith("| [")] == lines
    assert [title[:6] for title in titles] == [f"{number:04}: " for number in range(1, len(pages) + 1)]


def test_the_break_that_contributing_shows_is_carried_out() -> None:
    (block,) = fenced(CONTRIBUTING, "toml")
    (shown,) = tomllib.loads(block)["break"]
    (real,) = (broken for broken in BREAKS if broken.what == shown["what"])
    assert {name: value.strip() if isinstance(value, str) else tuple(value) for name, value in shown.items()} == {
        "what": real.what, "path": real.path, "old": real.old.strip(), "new": real.new.strip(),
        "run": real.run, "red": real.red,
    }  # fmt: skip


def test_the_four_places_to_begin_with_are_where_contributing_says() -> None:
    """What stands in each of the four files is what the name beside it promises."""
    rows = dict(re.findall(r"^\| (.+?) \| `(.+?)` \|$", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE))
    holds = {
        "the price collar": "class PriceCollar",
        "the etcd watch": "Watch",
        "the gate's byte layout": "OPEN_UNTIL_OFFSET",
        "the leader's rules": "rule",
    }
    assert set(rows) == set(holds)
    assert [what for what, word in holds.items() if word not in (ROOT / rows[what]).read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("page", "package"),
    [
        ("killswitch", "killswitch"),
        ("link", "killswitch.link"),
        ("risk-*", "killswitch.risk"),
        ("stores", "killswitch.stores"),
    ],
)
def test_the_site_shows_every_public_name(page: str, package: str) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob(f"{page}.md"))
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    names = [f"{package}.{name}" for name in import_module(package).__all__ if not name.startswith("__")]
    assert sorted(shown) == sorted(names)


def test_every_document_has_a_place_on_the_site() -> None:
    """The strict build refuses a page outside the navigation; here it is said before anybody builds.

    A quiet build is none: it hides the warnings from the count that makes it strict.
    """
    (build,) = re.findall(r"mkdocs build (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert build == "--strict"
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    # index.md and what is in project/ come from outside of docs/.
    placed = re.findall(r"- (?!project/|index)(\S+\.md)$", navigation, re.MULTILINE)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(placed) == sorted(page for page in pages if not page.startswith("decisions/0"))


def test_the_folder_map_names_every_folder_of_the_product() -> None:
    (drawn,) = fenced(ROOT / "ARCHITECTURE.md", "text")
    folders = {
        path.parent.name for root in ("killswitch", "agents", "coordinator") for path in (ROOT / root).rglob("*.py")
    }
    parts = {"demo", "commands"}  # the map says what simulation/ holds in words
    assert sorted(name for name in folders - parts if f"{name}/" not in drawn) == []


def test_the_threads_of_the_agent_have_the_names_that_architecture_tells() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("Threads of an agent:\n")[2].partition("The first five")[0]
    cells = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    names = {name.removeprefix("one ").split()[0] for cell in cells for name in cell.split(", ")} - {"store's"}
    assert len(names) > 7
    sources = "\n".join(path.read_text() for root in ("killswitch", "agents") for path in (ROOT / root).rglob("*.py"))
    assert {name for name in names if f'"{name}"' not in sources} == set()


def test_hooks_and_hosted_checks_call_what_is_there() -> None:
    """Nothing is downloaded by a hook, and hosted CI runs the script and targets of this repository."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert all(hook["entry"].startswith(".venv/bin/") for repo in hooks for hook in repo["hooks"])
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert any(".ci/run" in line for line in lines)
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= targets
    oldest = re.search(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert jobs["versions"]["strategy"]["matrix"]["python"][0] == oldest.group(1)


def test_each_promise_names_breaks_that_are_carried_out() -> None:
    """A check that nobody has seen fail is not a check: the breaks in the tables are those of ``make breaks``."""
    described = {broken.what for broken in BREAKS}
    named: set[str] = set()
    for line in (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 and cells[0].startswith("`test_"):
            assert cells[1], line
            named |= set(cells[1].split("; "))
    assert named == described


def test_breaks_still_fit_the_code() -> None:
    """A break that no longer fits the code would break nothing."""
    unfit = [broken.what for broken in BREAKS if broken.old not in (ROOT / broken.path).read_text(encoding="utf-8")]
    assert unfit == []
