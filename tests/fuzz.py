"""Tries the laws of the unit tests on random examples: ``python -m tests.fuzz [--minutes M] [--seed N] [PYTEST ...]``.

``make test`` tries the same examples each time. This tries others, round after round, each with a seed of its own,
until the time is over or a law has failed; the seed is printed, and with it the same examples are tried again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEED_BELOW = 2**32
NO_TEST_RAN = 5


def run_round(seed: int, words: list[str]) -> int:
    """Try every law with one seed, and return the exit code of pytest."""
    cores = len(os.sched_getaffinity(0))
    pytest = [sys.executable, "-m", "pytest", "-q", "--no-header", "-n", str(cores), "--dist", "loadfile"]
    command = [*pytest, "-m", "hypothesis", f"--hypothesis-seed={seed}", *(words or ["tests/unit"])]
    return subprocess.run(
        command, cwd=ROOT, check=False, env={**os.environ, "KILLSWITCH_TEST_LAWS": "random"}
    ).returncode


def main() -> int:
    """Run rounds until the time is over, or one with the seed that is named; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Try every law on random examples.")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no new round after this time (10)")
    parser.add_argument("--seed", type=int, help="one round with this seed, as an earlier run has printed it")
    parser.add_argument("words", nargs="*", metavar="PYTEST", help="files or tests, instead of all unit tests")
    told = parser.parse_args()
    until, rounds = time.monotonic() + told.minutes * 60, 0
    while rounds == 0 or (told.seed is None and time.monotonic() < until):
        seed = secrets.randbelow(SEED_BELOW) if told.seed is None else told.seed
        rounds += 1
        print(f"== round {rounds}, seed {seed}", flush=True)
        if code := run_round(seed, told.words):
            again = " ".join(["make fuzz", f"SEED={seed}"] if not told.words else
                             ["python -m tests.fuzz --seed", str(seed), *told.words])  # fmt: skip
            print("no law was tried" if code == NO_TEST_RAN else f"a law failed; the same examples again: {again}")
            return code
    print(f"{rounds} rounds of random examples broke no law")
    return 0


if __name__ == "__main__":
    sys.exit(main())
