"""The log of whatever must not end: a line that cannot be written is lost, and nothing else is.

Behind the log may be a full disk, or a pipe that nobody reads any more. That must not come between a freeze and its
cancels, nor end the thread that hears of the next freeze.
"""

from __future__ import annotations

import contextlib
from typing import Any

import structlog

_log = structlog.get_logger("killswitch.risk")


def say(level: str, event: str, *, by: Any = None, **fields: Any) -> None:
    """Log, and survive a log that cannot be written.

    Args:
        level: the name of a logger's method, such as ``warning``.
        event: what happened.
        by: the logger, that of risk unless one is given.
        fields: the rest of the line.
    """
    with contextlib.suppress(Exception):  # there is nowhere left to say it
        getattr(_log if by is None else by, level)(event, **fields)
