"""Runs every group of tests and says what ran: ``python -m tests.run [-n WORKERS] [GROUP ...]``.

A group that ran no test is a failure, not a silence, and so is a test that was skipped and stands in no list: what may
be skipped is said here, by name, with what must be missing. The groups ``docker`` and ``containers`` run where a Docker
daemon answers and their images can be had; where not, one line says so. With ``KILLSWITCH_REQUIRE_DOCKER=1`` they must.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SERVER_IMAGES = ("etcd", "redis", "zookeeper")
CORES = len(os.sched_getaffinity(0))
SAID_CHARS = 300


@dataclass(frozen=True)
class Group:
    """Tests that run together.

    Attributes:
        words: what pytest is told.
        workers: processes that run its tests side by side. One where tests judge time and would disturb each other;
            it is replaced, too, when a test takes it with it. None where the tests must run in pytest's own process.
        dist: what a worker takes at a time: a whole file, whose tests share what they start, or one test.
        beside: it waits much more than it works, and runs beside the groups that follow.
        index: it needs an index of packages.
        images: it needs a Docker daemon, and images of these servers.
        project_image: it needs an image of the project, too, and a daemon on this machine.
    """

    words: tuple[str, ...]
    workers: int = 1
    dist: str = "loadfile"
    beside: bool = False
    index: bool = False
    images: tuple[str, ...] = ()
    project_image: bool = False


GROUPS = {
    "unit": Group(("tests/unit",), workers=CORES),
    "conformance": Group(("tests/conformance", "-m", "not docker"), workers=min(CORES, 2), beside=True),
    # Each of its tests starts a cluster of its own, and waits more than it works.
    "cluster": Group(("tests/cluster", "-m", "not docker"), workers=min(CORES + 1, 6), dist="worksteal"),
    # Environments into which pip installs: one at a time.
    "packaging": Group(("tests/packaging",), beside=True, index=True),
    # Their servers are containers of a file or of a worker; two at a time are what two processors carry.
    "docker": Group(("tests", "-m", "docker"), workers=min(CORES, 2), images=SERVER_IMAGES),
    # One cluster of some thirty containers at a time, judged by its times; the process that made it removes it.
    "containers": Group(("tests/containers", "-m", "containers"), workers=0, images=SERVER_IMAGES, project_image=True),
}


@dataclass(frozen=True)
class Skip:
    """Tests that may be skipped, and what must be missing for it.

    Attributes:
        test: matches the name, ``tests.unit.gate.test_gate_c.test_x``, from its beginning.
        missing: tells whether it is.
    """

    test: str
    missing: Callable[[str], bool]


def no_bars(_: str) -> bool:
    """The file of real bars is not here."""
    bars = ROOT.parent / "shared" / "data" / "btc-perp-1m-2022-01-20.csv"
    return "KILLSWITCH_TEST_BARS" not in os.environ and not bars.exists()


SKIPS = (
    Skip(r"tests\.unit\.gate\.test_gate_c\.", lambda _: shutil.which("gcc") is None or shutil.which("g++") is None),
    Skip(r"tests\.unit\.simulation\.test_replay\.test_the_real_fall_of_january_2022", no_bars),
    Skip(r"tests\.cluster\.test_demo\.test_a_real_fast_fall_trips_the_rule_too", no_bars),
    Skip(
        r"tests\.cluster\.test_node_faults\.test_a_stepped_wall_clock_changes_no_deadline",
        lambda _: not list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")),
    ),
    # The suite's own lists: what a kind of store cannot show. test_store_faults.py asserts what stands in them.
    Skip(
        r"tests\.conformance\.",
        lambda reason: re.match(r"(memory|embedded|etcd|redis|zookeeper)[a-zA-Z ]*: ", reason) is not None,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one group."""

    group: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""

    @property
    def well(self) -> bool:
        return self.failed == 0 and (self.passed > 0 or self.note.startswith("not run"))


def why_not(group: Group) -> str:
    """What keeps a group from running on this machine, in one line; nothing when it can run.

    Images that are missing are pulled or built here, once, before the first test asks for them.
    """
    if group.index:
        from tests.support.package_index import why_no_index  # noqa: PLC0415 - it is asked once, and only for this

        return why_no_index()
    if not group.images:
        return ""
    import pytest  # noqa: PLC0415 - the other groups, and the list of groups, need none of these

    from tests.images.choose import choose_image, require_docker  # noqa: PLC0415

    try:
        with closing(require_docker()) as client:
            for name in group.images:
                choose_image(client, name)
            if group.project_image:
                from tests.containers.pods import Engine, require_near_daemon  # noqa: PLC0415
                from tests.images.project import build_project_images  # noqa: PLC0415

                with closing(Engine(client, build_project_images(client))) as engine:
                    require_near_daemon(engine)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        return " ".join(str(error).split())[:SAID_CHARS]
    return ""


def must_run(group: Group) -> bool:
    """Tell whether what keeps a group from running is a failure here."""
    if group.index:
        from tests.support.package_index import is_required  # noqa: PLC0415 - as above

        return is_required()
    return os.environ.get("KILLSWITCH_REQUIRE_DOCKER") == "1"


def run_groups(names: Sequence[str], workers: int | None = None) -> list[Outcome]:
    """Run groups one after the other, with those that do not work much beside the others; what these say comes last."""
    alone = [name for name in names if not GROUPS[name].beside]
    beside = [name for name in names if GROUPS[name].beside] if alone else []
    with ThreadPoolExecutor(max_workers=len(beside) or 1) as pool, ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in beside]
        running = [pool.submit(run_group, name, workers, output) for name, output in zip(beside, outputs, strict=True)]
        done = {name: run_group(name, workers) for name in alone or names}
        for future, output in zip(running, outputs, strict=True):
            outcome = future.result()
            done[outcome.group] = outcome
            output.seek(0)
            print(output.read(), end="", flush=True)
    return [done[name] for name in dict.fromkeys(names)]


def run_group(name: str, workers: int | None = None, output: IO[str] | None = None) -> Outcome:
    """Run one group in processes of its own.

    Args:
        name: of the group.
        workers: how many, instead of the group's own number; 0 runs all tests in the process of pytest.
        output: where it says what it does, instead of on stdout.
    """
    group = GROUPS[name]
    started = time.monotonic()
    print(f"== {name}", file=output, flush=True)
    try:
        why = why_not(group)
        required = bool(why) and must_run(group)
    except Exception as error:  # what nobody has thought of is a failure, and of this group alone
        why, required = f"could not be prepared: {error!r}"[:SAID_CHARS], True
    if why:
        note = why if required else f"not run: {why}"
        print(f"{name}: {note}", file=output, flush=True)
        return Outcome(name, 0, int(required), 0, time.monotonic() - started, note)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        count = group.workers if workers is None else workers
        words = [sys.executable, "-m", "pytest", "-q", "-n", str(count), "--dist", group.dist]
        words += [f"--junitxml={report}", *group.words]
        code = subprocess.run(words, cwd=ROOT, stdout=output, check=False).returncode
        return judge(name, code, report, time.monotonic() - started)


def judge(name: str, code: int, report: Path, seconds: float) -> Outcome:
    """What became of a group, by the exit code of pytest and its report."""
    passed, failed, skipped = read_counts(report)
    note = "ran no test" if passed + failed == 0 else ""
    if code != 0 and failed == 0:
        failed, note = 1, f"pytest ended with exit code {code}"
    if unlisted := [f"{test} ({reason})" for test, reason in read_skips(report) if not may_be_skipped(test, reason)]:
        failed += len(unlisted)
        note = f"skipped, and SKIPS in tests/run.py does not say that they may be: {', '.join(unlisted)}"
    return Outcome(name, passed, failed, skipped, seconds, note)


def may_be_skipped(test: str, reason: str) -> bool:
    """Tell whether a list says that this test may be skipped on this machine."""
    return any(re.match(skip.test, test) and skip.missing(reason) for skip in SKIPS)


def read_counts(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of one run."""
    if not report.exists():
        return 0, 0, 0
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    failed = sum(int(suite.get("failures", 0)) + int(suite.get("errors", 0)) for suite in suites)
    skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    return total - failed - skipped, failed, skipped


def read_skips(report: Path) -> Iterator[tuple[str, str]]:
    """Name and reason of every test that was skipped in one run."""
    if not report.exists():
        return
    for case in ET.parse(report).getroot().iter("testcase"):
        for skipped in case.iter("skipped"):
            yield f"{case.get('classname')}.{case.get('name')}", skipped.get("message", "")


def main() -> int:
    """Run the groups named, or all, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.run", description="Run groups of tests.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all when none is named")
    parser.add_argument("-n", type=int, metavar="WORKERS", help="processes per group; 0 runs all in one, to debug")
    told = parser.parse_args()
    if unknown := [name for name in told.groups if name not in GROUPS]:
        parser.error(f"there is no group {', '.join(unknown)}; the groups are {', '.join(GROUPS)}")
    outcomes = run_groups(told.groups or list(GROUPS), told.n)
    print("\ngroup        passed  failed  skipped  seconds")
    for done in outcomes:
        figures = f"{done.passed:6}  {done.failed:6}  {done.skipped:7}  {done.seconds:7.1f}"
        print(f"{done.group:12} {figures}  {done.note}")
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    print(f"{passed} passed, {failed} failed, {sum(o.skipped for o in outcomes)} skipped")
    return 0 if all(outcome.well for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
