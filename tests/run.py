"""Runs every group of tests and says what ran: ``python -m tests.run [GROUP ...]``.

A group that ran no test is a failure, not a silence. The groups ``docker`` and ``containers`` run where a Docker daemon
answers; with ``KILLSWITCH_REQUIRE_DOCKER=1`` they must.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GROUPS = {
    "unit": ["tests/unit"],
    "conformance": ["tests/conformance", "-m", "not docker"],
    "cluster": ["tests/cluster", "-m", "not docker"],
    "docker": ["tests", "-m", "docker"],
    "containers": ["tests/containers", "-m", "containers"],
}
NEED_DOCKER = ("docker", "containers")


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


def docker_answers() -> bool:
    """Tell whether a Docker daemon answers."""
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def run_group(group: str) -> Outcome:
    """Run one group in a process of its own."""
    required = os.environ.get("KILLSWITCH_REQUIRE_DOCKER") == "1"
    if group in NEED_DOCKER and not docker_answers():
        note = "Docker does not answer"
        return Outcome(group, 0, int(required), 0, 0.0, note if required else f"not run: {note}")
    started = time.monotonic()
    print(f"== {group}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *GROUPS[group]]
        code = subprocess.run(words, cwd=ROOT, check=False).returncode
        counts = read_counts(report)
    passed, failed, skipped = counts
    note = "ran no test" if passed + failed == 0 else ""
    if code != 0 and failed == 0:
        failed, note = 1, f"pytest ended with exit code {code}"
    return Outcome(group, passed, failed, skipped, time.monotonic() - started, note)


def read_counts(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of one run."""
    if not report.exists():
        return 0, 0, 0
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    failed = sum(int(suite.get("failures", 0)) + int(suite.get("errors", 0)) for suite in suites)
    skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    return total - failed - skipped, failed, skipped


def main() -> int:
    """Run the groups named, or all, and return the exit code."""
    names = sys.argv[1:] or list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        print(f"there is no group {', '.join(unknown)}; the groups are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    outcomes = [run_group(name) for name in names]
    print("\ngroup        passed  failed  skipped  seconds")
    for done in outcomes:
        figures = f"{done.passed:6}  {done.failed:6}  {done.skipped:7}  {done.seconds:7.1f}"
        print(f"{done.group:12} {figures}  {done.note}")
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    print(f"{passed} passed, {failed} failed, {sum(o.skipped for o in outcomes)} skipped")
    return 0 if all(outcome.well for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
