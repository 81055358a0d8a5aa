"""The limits that every order is held against before it is sent: as they are configured, and as they are now."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from killswitch.clock import NowNs
from killswitch.risk.exact import exact
from killswitch.risk.limits.limit_schedule import EffectiveLimits, LimitSchedule, LimitScheduleSettings, MinuteOfDay
from killswitch.settings.section import Usd

_EdgeBps = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class RiskLimits(BaseModel):
    """The three limits of a :class:`RuntimeRiskMonitor`, validated; unknown names refused.

    Numbers must be numbers (no text, no booleans) and finite: a limit of infinity or NaN would pass every order.

    Attributes:
        max_inventory_usd: most that may be held in one symbol, in USD of notional; reaching it exactly is allowed.
        max_total_notional: most that may be held over all symbols, in USD of notional; reaching it is allowed.
        edge_freeze_threshold_bps: an expected net edge strictly below this many basis points freezes. May be
            negative, for a strategy that is content with a rebate.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) a limit is missing, not a number, not finite or not positive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_inventory_usd: Usd
    max_total_notional: Usd
    edge_freeze_threshold_bps: _EdgeBps


class LimitsInForce:
    """The limits of one monitor as they are now. It has no lock: its owner's lock guards every change.

    Attributes:
        fixed: the three limits.
        fixed_quick: what :meth:`quick` says while there is no schedule.
        schedule: what tightens them; ``None`` when nothing does. The same object when its settings change.
        changes: how often anything of them has changed: two answers are of the same limits when it has not.
    """

    __slots__ = ("_fixed_effective", "_known_schedule", "changes", "fixed", "fixed_quick", "schedule")

    def __init__(self, limits: RiskLimits, schedule: LimitSchedule | None) -> None:
        self.schedule = schedule
        self._known_schedule = schedule  # also while it is switched off: volatilities go on coming to it
        self.changes = 0
        self.fixed = limits
        self.set_limits(limits)

    def set_limits(self, limits: RiskLimits) -> RiskLimits:
        """Take other limits, and return those of before."""
        before, self.fixed = self.fixed, limits
        symbol_usd, total_usd = limits.max_inventory_usd, limits.max_total_notional
        self._fixed_effective = EffectiveLimits(symbol_usd, total_usd, exact(symbol_usd), exact(total_usd))
        self.fixed_quick = symbol_usd, total_usd
        self.changes += 1
        return before

    def set_schedule(
        self, settings: LimitScheduleSettings | None, session_clock: MinuteOfDay | None, clock: NowNs
    ) -> LimitScheduleSettings | None:
        """Take another schedule, or none, and return the settings of before.

        Raises:
            ValueError: there are sessions and no session clock. Nothing has changed.
        """
        before = None if self.schedule is None else self.schedule.settings
        if settings is None:
            self.schedule = None
        elif self._known_schedule is None:
            self.schedule = self._known_schedule = LimitSchedule(settings, session_clock=session_clock, clock=clock)
        else:
            self._known_schedule.set_settings(settings, session_clock=session_clock)
            self.schedule = self._known_schedule
        self.changes += 1
        return before

    def of(self, symbol: str) -> EffectiveLimits:
        """The limits of a symbol: by symbol, time of day and volatility."""
        schedule, fixed = self.schedule, self._fixed_effective
        return fixed if schedule is None else schedule.limits(symbol, fixed.symbol_usd, fixed.total_usd)

    def quick(self, symbol: str) -> tuple[float, float]:
        """Limit of the symbol and total limit, as floats; to within a rounding of what :meth:`of` says."""
        schedule = self.schedule
        if schedule is None:
            return self.fixed_quick
        symbol_usd, total_usd = self.fixed_quick
        table = schedule.table
        own_usd = table.symbol_limits_usd.get(symbol)
        if own_usd is not None and own_usd < symbol_usd:
            symbol_usd = own_usd
        symbol_pct, total_pct = table.percent(symbol)
        return symbol_usd * symbol_pct / 100.0, total_usd * total_pct / 100.0
