"""The days of an account: when one ends, what it was measured from, and its worst moment.

It has no lock: its owner's lock guards it. The time of day is read once, and then follows the deadline clock: a step of
the wall clock neither ends a day nor lengthens one.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from killswitch.risk.account_limits import DAY_SECONDS
from killswitch.risk.breaker.breaker_settings import NS_PER_SECOND


@dataclass(slots=True, kw_only=True)
class DayRecord:
    """One day of an account: what it was measured from, and its worst moment."""

    day: str
    peak_equity_usd: float
    lowest_equity_usd: float
    max_drawdown_usd: float = 0.0
    max_drawdown_ratio: float = 0.0
    max_leverage: float = 0.0
    ticks: int = 0
    first_at: dict[str, str] = field(default_factory=dict)
    """When a level was first reached: ``drawdown WARNING`` and the like."""

    def note_equity(self, equity_usd: float, peak_usd: float, lost_ratio: float) -> None:
        """Take in a new highest or lowest equity or a deeper drawdown."""
        self.peak_equity_usd = max(self.peak_equity_usd, equity_usd)
        self.lowest_equity_usd = min(self.lowest_equity_usd, equity_usd)
        if lost_ratio > self.max_drawdown_ratio:
            self.max_drawdown_ratio, self.max_drawdown_usd = lost_ratio, peak_usd - equity_usd

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "day": self.day,
            "peak_equity_usd": self.peak_equity_usd,
            "lowest_equity_usd": self.lowest_equity_usd,
            "max_drawdown_usd": self.max_drawdown_usd,
            "max_drawdown_pct": self.max_drawdown_ratio * 100.0,
            "max_leverage": self.max_leverage,
            "ticks": self.ticks,
            "first_at": dict(self.first_at),
        }


class AccountDays:
    """Today, and the newest days before it.

    Args:
        stamp: the time for people now, as RFC 3339 writes it.
        now_ns: the same moment on the deadline clock.
        starts: when a day begins, in UTC.
        kept: how many days before today are kept.
        peak_usd: highest equity of the day so far.
        equity_usd: the equity now.

    Raises:
        ValueError: the stamp is no time.

    Attributes:
        today: the running day.
        ends_ns: when it ends, on the deadline clock.
    """

    __slots__ = ("_before", "_longer", "ends_ns", "today")

    def __init__(
        self, stamp: str, now_ns: int, *, starts: dt.time, kept: int, peak_usd: float, equity_usd: float
    ) -> None:
        try:
            wall = dt.datetime.fromisoformat(stamp).astimezone(dt.UTC)
        except ValueError as error:
            raise ValueError(f"the wall clock says {stamp!r}, which is no time as RFC 3339 writes it") from error
        ends = next_day_start(wall, starts)
        self.ends_ns = now_ns + _ns(ends - wall)
        self._before: deque[DayRecord] = deque(maxlen=kept)
        self._longer = dt.timedelta(0)
        self._begin(ends - dt.timedelta(days=1), peak_usd, equity_usd)

    def turn(self, now_ns: int, *, peak_usd: float, equity_usd: float) -> None:
        """Begin the day that it is now, with this highest equity and this equity; the one that has ended is kept."""
        days = 1 + (now_ns - self.ends_ns) // (DAY_SECONDS * NS_PER_SECOND)
        self.ends_ns += days * DAY_SECONDS * NS_PER_SECOND
        self._before.append(self.today)
        began = dt.datetime.fromisoformat(self.today.day) + dt.timedelta(days=days) + self._longer
        self._longer = dt.timedelta(0)
        self._begin(began, peak_usd, equity_usd)

    def change(self, *, longer: dt.timedelta, kept: int) -> None:
        """Let today end so much later, and keep so many days before it."""
        self._longer += longer
        self.ends_ns += _ns(longer)
        self._before = deque(self._before, maxlen=kept)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the days as JSON values, today last."""
        return [record.to_json() for record in (*self._before, self.today)]

    def _begin(self, began: dt.datetime, peak_usd: float, equity_usd: float) -> None:
        self.today = DayRecord(day=began.isoformat(), peak_equity_usd=peak_usd, lowest_equity_usd=equity_usd)


def next_day_start(now: dt.datetime, starts: dt.time) -> dt.datetime:
    """The next moment after ``now``, which is in UTC, that a day begins at."""
    today = dt.datetime.combine(now.date(), starts)
    return today if today > now else today + dt.timedelta(days=1)


def _ns(time: dt.timedelta) -> int:
    return int(time / dt.timedelta(microseconds=1)) * 1_000
