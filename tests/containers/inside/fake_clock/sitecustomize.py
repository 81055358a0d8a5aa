"""Sleep by select: libfaketime spoils the absolute sleep that ``time.sleep`` uses (EINVAL), and leaves select alone."""

from __future__ import annotations

import select
import time


def sleep(seconds: float) -> None:
    """As ``time.sleep``."""
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = sleep  # type: ignore[assignment]
