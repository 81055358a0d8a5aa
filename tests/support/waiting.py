"""Waiting in tests: for a condition, with a deadline, never for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_EVERY_S = 0.005


def wait_until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "the condition") -> T:
    """Poll ``condition`` every 5 ms and return its first truthy value.

    Raises:
        AssertionError: it was not truthy within ``within_s`` seconds; the message names ``what``.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"{what} did not come within {within_s:g} s; last seen: {value!r}")
        time.sleep(POLL_EVERY_S)
