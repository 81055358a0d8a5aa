"""Waiting in tests: for a condition, with a deadline, never for a guessed time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL_EVERY_S = 0.005
CORES = len(os.sched_getaffinity(0))
STRETCH_AT_MOST = 8.0


def stretch() -> float:
    """How much longer than on a quiet machine a wait may take: by how many threads each processor runs just now.

    A limit of a wait ends a test of what will not come. What a promise bounds is judged by clocks that the machine's
    load does not move: a gate's deadline, a time that was noted when it happened.
    """
    load, _, _, running, *_ = Path("/proc/loadavg").read_text(encoding="ascii").replace("/", " ").split()
    return min(max(1.0, float(load) / CORES, int(running) / CORES), STRETCH_AT_MOST)


def wait_until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "the condition") -> T:
    """Poll ``condition`` every 5 ms and return its first truthy value.

    Raises:
        AssertionError: it was not truthy within ``within_s`` seconds of a quiet machine; the message names ``what``.
    """
    began_s = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - began_s
        if waited_s >= within_s and waited_s >= within_s * stretch():
            raise AssertionError(f"{what} did not come within {waited_s:.3g} s; last seen: {value!r}")
        time.sleep(POLL_EVERY_S)
