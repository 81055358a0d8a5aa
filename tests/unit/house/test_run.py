"""How the tests are run: what hangs ends alone, and nothing is skipped unseen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from tests import run
from tests.images import choose

ROOT = Path(__file__).resolve().parents[3]

HANGING = """
import ctypes, time

def test_before(): pass

def test_waits_for_ever():
    time.sleep(3600)

def test_between(): pass

def test_holds_the_interpreter():
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(128)
    for _ in range(2):  # the second time it waits for itself, and gives the interpreter to nobody
        libc.pthread_mutex_lock(mutex)

def test_leaves_a_thread():
    import threading
    threading.Thread(target=time.sleep, args=(3600,)).start()

def test_after(): pass
"""


def test_a_test_that_hangs_fails_alone(tmp_path: Path) -> None:
    """Out of time, in Python or in a native call that holds the interpreter, a test fails and all others run."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    # The settings and the conftest of this project, with a second instead of a minute.
    words = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "tests.conftest"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "--dist", "loadfile", "-v", "-p", "no:cacheprovider",
         "-o", "timeout=1", *words, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "KILLSWITCH_TEST_GRACE_S": "1"},
    )  # fmt: skip
    said = ran.stdout + ran.stderr
    for name in ("before", "between", "leaves_a_thread", "after"):
        assert re.search(rf"PASSED \S*test_hanging.py::test_{name}\b", said), said
    for name in ("waits_for_ever", "holds_the_interpreter"):
        assert re.search(rf"FAILED \S*test_hanging.py::test_{name}\b", said), said
    assert "2 failed, 4 passed" in said


def report_of(folder: Path, cases: str, **counts: int) -> Path:
    path = folder / "report.xml"
    figures = " ".join(f'{name}="{number}"' for name, number in counts.items())
    path.write_text(f"<testsuites><testsuite {figures}>{cases}</testsuite></testsuites>")
    return path


def skipped(test: str, reason: str) -> str:
    module, _, name = test.rpartition(".")
    return f'<testcase classname="{module}" name="{name}"><skipped message="{reason}"/></testcase>'


def test_a_test_that_is_skipped_without_leave_fails_its_group(tmp_path: Path) -> None:
    report = report_of(tmp_path, skipped("tests.unit.core.test_x.test_y", "no time"), tests=5, skipped=1)
    outcome = run.judge("unit", 0, report, 1.0)
    assert not outcome.well
    assert "tests.unit.core.test_x.test_y (no time)" in outcome.note


def test_a_test_may_be_skipped_where_its_tool_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(tmp_path, skipped("tests.unit.gate.test_gate_c.test_y", "needs gcc"), tests=5, skipped=1)
    monkeypatch.setattr(run.shutil, "which", lambda tool: None)
    assert run.judge("unit", 0, report, 1.0).well
    monkeypatch.setattr(run.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    assert not run.judge("unit", 0, report, 1.0).well


def test_a_list_of_the_conformance_suite_is_leave_and_no_other_reason_there(tmp_path: Path) -> None:
    listed = skipped("tests.conformance.test_store_faults.test_y[memory]", "memory: has no server")
    assert run.judge("conformance", 0, report_of(tmp_path, listed, tests=5, skipped=1), 1.0).well
    other = skipped("tests.conformance.test_etcd_access.test_y", "Docker does not answer")
    assert not run.judge("docker", 0, report_of(tmp_path, other, tests=5, skipped=1), 1.0).well


def test_a_group_that_ran_no_test_fails(tmp_path: Path) -> None:
    assert not run.judge("unit", 0, tmp_path / "none.xml", 1.0).well
    assert not run.judge("unit", 5, report_of(tmp_path, "", tests=0), 1.0).well


@pytest.mark.parametrize("required", [False, True])
def test_a_group_whose_images_cannot_be_had_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: bool
) -> None:
    """Where images can be neither pulled nor built the run succeeds, unless Docker is required."""
    monkeypatch.setattr(run, "why_not", lambda group: "redis:7.2 cannot be pulled and build.sh failed: no debootstrap")
    monkeypatch.setenv("KILLSWITCH_REQUIRE_DOCKER", str(int(required)))
    outcome = run.run_group("docker")
    assert (outcome.well, outcome.passed, outcome.failed) == (not required, 0, int(required))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "== docker"
    assert len(said) == 2
    assert "cannot be pulled and build.sh failed: no debootstrap" in said[1]


@pytest.mark.parametrize(("name", "well"), [("packaging", False), ("docker", True)])
def test_in_a_pipeline_a_group_without_its_index_fails(monkeypatch: pytest.MonkeyPatch, name: str, well: bool) -> None:
    """As its tests say of themselves; Docker is required by its own word alone."""
    monkeypatch.setattr(run, "why_not", lambda group: "nobody answers")
    monkeypatch.delenv("KILLSWITCH_REQUIRE_DOCKER", raising=False)
    monkeypatch.setenv("CI", "true")
    assert run.run_group(name).well is well
    monkeypatch.delenv("CI")
    assert run.run_group(name).well


def test_a_group_that_cannot_be_prepared_fails_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others still run and are told: an image whose building takes too long is no end of everything."""

    def hangs(group: run.Group) -> str:
        raise subprocess.TimeoutExpired("build.sh", 900)

    monkeypatch.setattr(run, "why_not", hangs)
    monkeypatch.delenv("KILLSWITCH_REQUIRE_DOCKER", raising=False)
    outcome = run.run_group("docker")
    assert (outcome.well, outcome.failed) == (False, 1)
    assert "TimeoutExpired" in outcome.note
    assert outcome.note in capsys.readouterr().out


def test_what_keeps_a_group_from_running_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "require_docker", lambda: choose.give_up("Docker does not answer:\n  nobody there"))
    for required in ("0", "1"):
        monkeypatch.setenv("KILLSWITCH_REQUIRE_DOCKER", required)
        assert run.why_not(run.GROUPS["docker"]).startswith("Docker does not answer: nobody there")
    assert run.why_not(run.GROUPS["unit"]) == ""


def test_a_group_that_waits_runs_beside_the_others_and_speaks_after_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both_run = threading.Barrier(2, timeout=30)

    def play(name: str, workers: int | None, output: IO[str] | None = None) -> run.Outcome:
        if name in ("conformance", "unit"):
            both_run.wait()
        print(f"== {name}", file=output)
        return run.Outcome(name, 1, 0, 0, 1.0)

    monkeypatch.setattr(run, "run_group", play)
    names = ["unit", "conformance", "cluster"]
    assert [outcome.group for outcome in run.run_groups(names)] == names
    assert capsys.readouterr().out.split() == ["==", "unit", "==", "cluster", "==", "conformance"]
    both_run.abort()
    assert [outcome.group for outcome in run.run_groups(["cluster"])] == ["cluster"]
