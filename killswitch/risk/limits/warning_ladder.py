"""Warnings on the way to a limit: at 50, 75, 85, 90 and 95 per cent of it, each told once on the way up.

A step is told again only after the figure has fallen :data:`HYSTERESIS_PCT` points below it, so that a figure that
trembles around a step is told once and not a thousand times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter

from killswitch.risk.metrics import counter_of

STEPS_PCT = (50, 75, 85, 90, 95)
HYSTERESIS_PCT = 2.0

LimitName = Literal["symbol_limit", "total_limit"]
LIMIT_NAMES: tuple[LimitName, ...] = ("symbol_limit", "total_limit")

_FIRST = STEPS_PCT[0] / 100.0  # a half, so exact


@dataclass(frozen=True, slots=True)
class LimitWarning:
    """A figure has reached a step of the ladder of its limit.

    Attributes:
        limit_name: which limit.
        symbol: the symbol, ``None`` for the limit over all symbols.
        step_pct: the step, in per cent of the limit.
        value_usd: the figure: what is held and what could be if working orders fill, at worst.
        limit_usd: the limit as it is now.
    """

    limit_name: LimitName
    symbol: str | None
    step_pct: int
    value_usd: float
    limit_usd: float

    @property
    def sentence(self) -> str:
        """The warning for people."""
        what = f"{self.symbol}: position" if self.symbol is not None else "the total over all symbols"
        return (
            f"{what} with working orders is {self.value_usd:.2f} USD, at least {self.step_pct} % of the limit of "
            f"{self.limit_usd:.2f} USD"
        )


class WarningLadder:
    """Which step each figure stands on. It has no lock: its owner's lock guards it.

    It remembers only figures that stand on a step, so its size is bounded by what its owner holds.
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        """Start with every figure below the first step."""
        self._steps: dict[str | None, int] = {}

    @property
    def is_warned(self) -> bool:
        """True while any figure stands on a step."""
        return bool(self._steps)

    def is_quiet(self, value_usd: float, limit_usd: float) -> bool:
        """True when a figure is below the first step and none stands on any."""
        return not self._steps and value_usd < limit_usd * _FIRST

    def see(
        self, symbol: str | None, value_usd: float, limit_usd: float, *, falls: bool = True
    ) -> tuple[LimitWarning, ...]:
        """Take in a figure and return the steps that it has just reached, lowest first; mostly none.

        A figure that is not a number stands on the highest step, as does any figure above a limit of 0. One that is not
        known to be the whole truth may raise the step and not lower it: ``falls`` is then False.
        """
        if value_usd < limit_usd * _FIRST and symbol not in self._steps:
            return ()
        before = self._steps.get(symbol, 0)
        now = self._step(before, value_usd, limit_usd)
        if now < before and not falls:
            return ()
        if now == 0:
            self._steps.pop(symbol, None)
        else:
            self._steps[symbol] = now
        name: LimitName = "total_limit" if symbol is None else "symbol_limit"
        return tuple(LimitWarning(name, symbol, STEPS_PCT[index], value_usd, limit_usd) for index in range(before, now))

    def would_reach(self, symbol: str | None, value_usd: float, limit_usd: float) -> tuple[LimitWarning, ...]:
        """What :meth:`see` would return, without taking anything in."""
        before = self._steps.get(symbol, 0)
        now = self._step(before, value_usd, limit_usd)
        name: LimitName = "total_limit" if symbol is None else "symbol_limit"
        return tuple(LimitWarning(name, symbol, STEPS_PCT[index], value_usd, limit_usd) for index in range(before, now))

    @staticmethod
    def _step(before: int, value_usd: float, limit_usd: float) -> int:
        """How many steps are reached now."""
        if not math.isfinite(value_usd):
            return len(STEPS_PCT)
        # Multiplied before it is divided: 90 per cent of 57 is then 51.3, and as 57 * 0.9 a rounding above it.
        now = sum(value_usd >= limit_usd * step / 100.0 for step in STEPS_PCT) if value_usd > 0 else 0
        while now < before and value_usd >= limit_usd * (STEPS_PCT[now] - HYSTERESIS_PCT) / 100.0 and value_usd > 0:
            now += 1
        return now


def warning_counter(registry: CollectorRegistry | None) -> Counter:
    """Return the counter ``killswitch_limit_warnings_total`` of a registry; one, however many monitors."""
    return counter_of(
        registry,
        "killswitch_limit_warnings_total",
        "Times that a figure reached a step of the warning ladder of its limit.",
        ["limit", "step_pct"],
        [(name, str(step)) for name in LIMIT_NAMES for step in STEPS_PCT],
    )
