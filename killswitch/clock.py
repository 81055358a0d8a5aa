"""The clock that deadlines are kept on. Standard library only: order routers import this.

``CLOCK_BOOTTIME`` goes on while the machine is suspended, so that a machine that wakes up finds its permit expired.
Where it does not exist, ``CLOCK_MONOTONIC`` is the next best, and :data:`CLOCK_NOTE` says what that costs.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

CLOCK_ID: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
CLOCK_NAME = "CLOCK_BOOTTIME" if hasattr(time, "CLOCK_BOOTTIME") else "CLOCK_MONOTONIC"
CLOCK_NOTE = (
    ""
    if CLOCK_NAME == "CLOCK_BOOTTIME"
    else "this system has no CLOCK_BOOTTIME; CLOCK_MONOTONIC may stand still while the machine is suspended, so a "
    "permit can outlive a suspension"
)

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

NowNs = Callable[[], int]
"""A clock for deadlines: nanoseconds since some fixed instant, never going back."""

WallClock = Callable[[], str]
"""A clock for people: RFC 3339 in UTC with microseconds. Nothing is decided from it."""


def now_ns() -> int:
    """Nanoseconds on the clock that deadlines are kept on."""
    return time.clock_gettime_ns(CLOCK_ID)


def boot_id() -> str:
    """Which run of which machine this is, as its kernel writes it; empty where the system does not tell.

    The deadline clock starts over when the machine does, so a time on it means nothing without this.
    """
    try:
        return _BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def wall_now() -> str:
    """The time for people, such as ``2026-01-31T09:30:00.123456Z``."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def time_or_unknown(wall_clock: WallClock) -> str:
    """The time for people, ``unknown`` when the clock fails: it must not stop what it is only noted beside."""
    try:
        return wall_clock()
    except Exception:  # whatever a clock raises, nothing is decided from it
        return "unknown"
