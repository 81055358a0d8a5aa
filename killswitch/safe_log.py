"""A log that cannot be written must not come between a freeze and its cancels."""

from __future__ import annotations

import contextlib
from typing import Any

import structlog

_log = structlog.get_logger("killswitch.risk")


def say(level: str, event: str, **fields: Any) -> None:
    """Log, and survive a log that cannot be written: it must not come between a freeze and its cancels."""
    with contextlib.suppress(Exception):  # there is nowhere left to say it
        getattr(_log, level)(event, **fields)
