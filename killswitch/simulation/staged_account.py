"""An account on a stage: the real monitor and the real breaker on a clock that the scenario moves."""

from __future__ import annotations

import datetime as dt
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_state import AccountState, AlertLevel, PriceTick
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.events import FreezeEvent

EVENTS_KEPT = 1_000
NS_PER_SECOND = 1_000_000_000


class StagedAccount:
    """Plays ticks and fills into a monitor and notes every change of alert level and breaker.

    Args:
        start: the time of day that the stage begins at.
        balance_usd: initial balance.
        limits: what the account is held against; the defaults when ``None``.

    Attributes:
        monitor: the account monitor.
        breaker: its circuit breaker.
        state: the newest account.
        freezes: what ``on_freeze`` was told.
        events: changes of alert level and breaker, the first :data:`EVENTS_KEPT`.
        events_total: how many there were.
        warnings: times that the alert level rose to WARNING.
        kills: times that the breaker became ENGAGED.
        ticks: ticks and fills played.
    """

    def __init__(self, start: dt.datetime, balance_usd: float, limits: AccountLimits | None = None) -> None:
        self._start = start
        self._elapsed_ns = 0
        limits = limits if limits is not None else AccountLimits()
        # Not the process's registry: a rehearsal must not raise somebody's alert. And no file: nobody else's breaker.
        registry = CollectorRegistry()
        settings = limits.breaker_settings().model_copy(update={"state_file": None})
        self.limits = limits.model_copy(update={"state_file": None})
        self.breaker = CircuitBreaker(settings, clock=self.now_ns, wall_clock=self.utc, registry=registry)
        self.freezes: list[FreezeEvent] = []
        self.monitor = RiskMonitor(
            self.breaker,
            None,
            balance_usd,
            limits=self.limits,
            clock=self.now_ns,
            wall_clock=self.utc,
            on_freeze=self.freezes.append,
            registry=registry,
        )
        self.state: AccountState = self.monitor.state()
        self.events: list[dict[str, Any]] = []
        self.events_total = self.warnings = self.kills = self.ticks = 0
        self._mode = self.breaker.state
        self._level = AlertLevel.NORMAL

    def now_ns(self) -> int:
        """Deadline clock of the stage."""
        return self._elapsed_ns

    def utc(self) -> str:
        """Time of day of the stage."""
        now = self._start + dt.timedelta(microseconds=self._elapsed_ns // 1_000)
        return now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed_ns += int(seconds * NS_PER_SECOND)

    def advance_to(self, moment: dt.datetime) -> None:
        """Let time pass until a moment; one that has been changes nothing."""
        elapsed_ns = int((moment - self._start) / dt.timedelta(microseconds=1)) * 1_000
        self._elapsed_ns = max(self._elapsed_ns, elapsed_ns)

    def price(self, symbol: str, price_usd: float) -> AccountState:
        """Play one price."""
        return self._note(self.monitor.monitor_tick(PriceTick(symbol, price_usd)), price_usd)

    def fill(self, symbol: str, side: str, qty: float, price_usd: float) -> AccountState:
        """Play one fill."""
        return self._note(self.monitor.on_fill(symbol, side, qty, price_usd), price_usd)

    def look(self) -> None:
        """Note what changed without a tick: a release, or time."""
        self._note(self.monitor.state(), None, ticks=0)

    def _note(self, state: AccountState, price_usd: float | None, ticks: int = 1) -> AccountState:
        self.state = state
        self.ticks += ticks
        mode = self.breaker.state
        if mode is self._mode and state.alert_level is self._level:
            return state
        self.warnings += state.alert_level is AlertLevel.WARNING and self._level is AlertLevel.NORMAL
        killed = mode is BreakerMode.ENGAGED and self._mode is not BreakerMode.ENGAGED
        self.kills += killed
        self._mode, self._level = mode, state.alert_level
        self.events_total += 1
        if len(self.events) < EVENTS_KEPT:
            self.events.append(
                {
                    "at": self.utc(),
                    "tick": self.ticks,
                    "price_usd": price_usd,
                    "alert_level": state.alert_level.value,
                    "breaker": mode.value,
                    "killed": killed,
                    "equity_usd": state.equity,
                    "drawdown_pct": state.drawdown_pct,
                    "leverage": state.leverage,
                    "reason": "; ".join(cause.reason for cause in self.breaker.snapshot().causes),
                }
            )
        return state
