"""The log of threads that must not end: a line that cannot be written is lost, and nothing else is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable


def say(log: Callable[..., object], event: str, **about: object) -> None:
    """Log an event, and go on when that fails: behind the log may be a full disk or a pipe that nobody reads any more.

    Args:
        log: a method of a logger, such as ``warning``.
        event: what happened.
        about: the rest of the line.
    """
    with contextlib.suppress(Exception):
        log(event, **about)
