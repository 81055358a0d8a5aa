"""What an account looks like at one tick, and what comes in as a tick."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class AlertLevel(enum.StrEnum):
    """How an account stands: within its limits, past a warning level, past a hard level or not to be told."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"


class Holding(NamedTuple):
    """One position as a venue tells it.

    Attributes:
        quantity: signed; above 0 long.
        entry_price_usd: average price that it was entered at.
        mark_price_usd: price that it is valued at.
    """

    quantity: float
    entry_price_usd: float
    mark_price_usd: float


class PriceTick(NamedTuple):
    """A new mark price of one symbol. One that is not held changes nothing, and is checked all the same.

    Attributes:
        symbol: name of the instrument.
        price_usd: greater than 0.
    """

    symbol: str
    price_usd: float


class AccountTick(NamedTuple):
    """The whole account as its keeper tells it; it replaces what was known.

    Attributes:
        closed_pnl_usd: realised profit and loss since the initial balance.
        holdings: every position.
    """

    closed_pnl_usd: float
    holdings: Mapping[str, Holding]


Tick = PriceTick | AccountTick


class AccountState(NamedTuple):
    """An account at one tick. Money is in USD. A named tuple, since one is made on every tick.

    Attributes:
        timestamp: when, for people: RFC 3339 in UTC with microseconds. Nothing is decided from it.
        balance: initial balance and closed profit and loss.
        open_pnl: profit and loss of what is held, at the marks.
        closed_pnl: realised profit and loss.
        total_pnl: both.
        positions: signed quantity of each symbol held.
        total_exposure: sum of absolute positions at the marks.
        leverage: exposure over equity, at most the cap that is reported; the cap also when there is no equity left.
        drawdown: what is lost of the day's highest equity.
        drawdown_pct: the same in per cent of that: 2.5 is two and a half per cent.
        alert_level: how it stands; ``CRITICAL`` also when the tick made no sense and the figures are those before it.
    """

    timestamp: str
    balance: float
    open_pnl: float
    closed_pnl: float
    total_pnl: float
    positions: Mapping[str, float]
    total_exposure: float
    leverage: float
    drawdown: float
    drawdown_pct: float
    alert_level: AlertLevel

    @property
    def equity(self) -> float:
        """Balance and open profit and loss."""
        return self.balance + self.open_pnl

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**self._asdict(), "positions": dict(self.positions), "alert_level": self.alert_level.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngagementRecord:
    """An engagement of the circuit breaker with the account around it.

    Attributes:
        engagement: its number.
        mode: mode of the breaker when it was recorded.
        causes: class and sentence of everything that held the breaker.
        before: the last account before it.
        after: the first account at or after it: that of the tick that engaged, or of the next one when somebody else
            did. Without another tick it is the same as ``before``.
    """

    engagement: int
    mode: str
    causes: Mapping[str, str]
    before: AccountState
    after: AccountState

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "engagement": self.engagement,
            "mode": self.mode,
            "causes": dict(self.causes),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


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


class TickStamp:
    """The time for people, as ``killswitch.clock.wall_now`` writes it, at a tenth of its cost: seconds are kept."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        """Start with no second."""
        self._second: tuple[int, str] = (-1, "")

    def __call__(self) -> str:
        """Return now as ``2026-01-31T09:30:00.123456Z``."""
        seconds, rest_ns = divmod(time.time_ns(), 1_000_000_000)
        second, text = self._second
        if second != seconds:
            text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))
            self._second = (seconds, text)
        return f"{text}{rest_ns // 1000:06d}Z"
