"""Breaks the code on purpose, once per promise, and checks that the tests that guard it turn red.

``python -m tests.breaks [WORD ...]`` copies the tree, applies one break at a time and runs the tests that must fail; it
exits 1 when one of them stays green, or when a break no longer fits the code. Words choose the breaks whose
description, path or file holds one of them. Breaks that unit tests guard run side by side, the others one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("killswitch", "agents", "coordinator", "config", "deploy", "docs", "tests", "pyproject.toml", "README.md")
UNIT = "tests/unit"


def run_break(broken: Break) -> list[str]:
    """Apply one break to a copy of the tree and return what is wrong with the tests that should turn red."""
    with tempfile.TemporaryDirectory(prefix="break-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        path = tree / broken.path
        text = path.read_text(encoding="utf-8")
        if broken.old not in text:
            return [f"the break does not fit {broken.path} any more"]
        path.write_text(text.replace(broken.old, broken.new), encoding="utf-8")
        return [fault for test in broken.red if (fault := _still_green(tree, broken.run, test))]


def _still_green(tree: Path, run: tuple[str, ...], test: str) -> str:
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not docker", "-k", test]
    # The copy comes before what is installed, which is the tree that is not broken.
    path = os.pathsep.join(str(tree / root) for root in ("", "agents", "coordinator"))
    ran = subprocess.run(
        [*words, *run], cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if ran.returncode == 1 and ("FAILED" in ran.stdout or "ERROR" in ran.stdout):
        return ""
    return f"{test} stayed green (pytest ended with {ran.returncode}): {ran.stdout.strip().splitlines()[-1:]}"


def _tell(broken: Break) -> bool:
    started = time.monotonic()
    faults = run_break(broken)
    print(f"{'GREEN' if faults else 'red  '} {time.monotonic() - started:5.1f} s  {broken.what}", flush=True)
    for fault in faults:
        print(f"      {fault}", flush=True)
    return not faults


def _chosen(broken: Break, words: list[str]) -> bool:
    return not words or any(word in f"{broken.what} {broken.path} {broken.source}" for word in words)


def main() -> int:
    """Run all breaks, or those that the words given choose, and return the exit code."""
    wanted = [broken for broken in BREAKS if _chosen(broken, sys.argv[1:])]
    quick = [broken for broken in wanted if all(path.startswith(UNIT) for path in broken.run)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        red = list(pool.map(_tell, quick))
    red += [_tell(broken) for broken in wanted if broken not in quick]
    print(f"{sum(red)} breaks turned their tests red, {len(red) - sum(red)} did not")
    return 0 if wanted and all(red) else 1


if __name__ == "__main__":
    sys.exit(main())
