"""Warnings on the way to a limit: at 50, 75, 85, 90 and 95 per cent of it, each told once on the way up.

A step is told again only after the figure has fallen :data:`HYSTERESIS_PCT` points below it, so that a figure that
trembles around a step is told once and not a thousand times.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter

from killswitch.risk.exact import EXACT
from killswitch.risk.limits.limit_rule import Verdict
from killswitch.risk.limits.limits import LimitsInForce
from killswitch.risk.limits.worst_case_exposure import WorstCaseExposure
from killswitch.risk.metrics import counter_of
from killswitch.safe_log import say

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


class LimitWarnings:
    """Holds the figures of a book against the ladder, and tells what it says.

    Where the limits use a source of mark prices, the figures of the book are not those that decide, so they say
    nothing: what is asked of the source is held against the ladder instead.

    Args:
        book: what is held and works.
        limits: the limits of it.
        lock: guards book, limits and ladder.
        marked: the limits use a source of mark prices.
        on_warning: told every step, with no lock held. If it raises, that is logged.
        registry: where ``killswitch_limit_warnings_total`` is counted; the default registry when ``None``.

    Attributes:
        ladder: the ladder.
    """

    def __init__(
        self,
        book: WorstCaseExposure,
        limits: LimitsInForce,
        *,
        lock: threading.Lock,
        marked: bool,
        on_warning: Callable[[LimitWarning], None] | None,
        registry: CollectorRegistry | None,
    ) -> None:
        self.ladder = WarningLadder()
        self._book = book
        self._limits = limits
        self._lock = lock
        self._marked = marked
        self._on_warning = on_warning
        self._told = warning_counter(registry)

    def look(self, symbol: str, limits: tuple[float, float]) -> tuple[LimitWarning, ...]:
        """Hold the figures of a symbol and the total in the book against the ladder. The lock is held."""
        if self._marked:
            return ()
        book, ladder = self._book, self.ladder
        held, work = book.held.get(symbol), book.working.by_symbol.get(symbol)
        usd = (held.notional if held is not None else 0.0) + (work.extra if work is not None else 0.0)
        symbol_limit, total_limit = limits
        if ladder.is_quiet(usd, symbol_limit) and ladder.is_quiet(book.total_usd, total_limit):
            return ()
        return (*ladder.see(symbol, usd, symbol_limit), *ladder.see(None, book.total_usd, total_limit))

    def look_at_fill(self, symbol: str) -> tuple[LimitWarning, ...]:
        """Look after a fill. The lock is held.

        A source of mark prices may take its time, and is not asked while the venue's next fill waits. The fill's own
        price is news of its symbol all the same: enough to warn, and not to say that all is well again.
        """
        limits = self._limits.quick(symbol)
        if not self._marked:
            return self.look(symbol, limits)
        return self.ladder.see(symbol, float(self._book.worst_usd(symbol)), limits[0], falls=False)

    def look_at_verdict(self, symbol: str, verdict: Verdict, *, counted: bool) -> tuple[LimitWarning, ...]:
        """Hold the figures of a verdict at mark prices against the ladder. The lock is not held.

        With the order when it counts from now on, without it when it was only asked about.
        """
        if verdict.standing_usd is None:
            return ()
        symbol_usd = max(verdict.standing_usd, verdict.symbol_usd) if counted else verdict.standing_usd
        others_usd = EXACT.subtract(verdict.total_usd, verdict.symbol_usd)
        return self._see(symbol, float(symbol_usd), float(EXACT.add(others_usd, symbol_usd)))

    def look_again(self, prices: Mapping[str, float]) -> None:
        """Hold every figure against the ladder, and tell; the limits have changed, or marks. No lock is held.

        One symbol at a time, so that no order waits for thousands of them.

        Args:
            prices: marks that their source has told; a symbol without one counts at its last fill.
        """
        book = self._book
        if not self._marked:
            with self._lock:
                symbols = book.symbols()
            for symbol in symbols:
                with self._lock:
                    warnings = self.look(symbol, self._limits.quick(symbol))
                self.tell(warnings)
            return
        with self._lock:
            book.book()
            exposed = {symbol: book.exposed(symbol) for symbol in book.symbols()}
        usd = {
            symbol: one.rough_usd(prices.get(symbol, one.held.price if one.held is not None else 0.0))
            for symbol, one in exposed.items()
        }
        total_usd = math.fsum(usd.values())
        for symbol, symbol_usd in usd.items():
            self.tell(self._see(symbol, symbol_usd, total_usd))

    def _see(self, symbol: str, symbol_usd: float, total_usd: float) -> tuple[LimitWarning, ...]:
        """Hold figures at mark prices against the ladder. The lock is not held."""
        with self._lock:
            symbol_limit, total_limit = self._limits.quick(symbol)
            in_symbol = self.ladder.see(symbol, symbol_usd, symbol_limit)
            return (*in_symbol, *self.ladder.see(None, total_usd, total_limit))

    def tell(self, warnings: tuple[LimitWarning, ...]) -> None:
        """Count, log and pass on what the ladder said. No lock is held."""
        for warning in warnings:
            self._told.labels(limit=warning.limit_name, step_pct=str(warning.step_pct)).inc()
            say("warning", "limit nearly reached", step_pct=warning.step_pct, symbol=warning.symbol,
                value_usd=warning.value_usd, limit_usd=warning.limit_usd)  # fmt: skip
            if self._on_warning is None:
                continue
            try:
                self._on_warning(warning)
            except Exception as error:  # a warning that cannot be told must stop no order
                say("error", "a warning could not be passed on", error=repr(error), symbol=warning.symbol)


def warning_counter(registry: CollectorRegistry | None) -> Counter:
    """Return the counter ``killswitch_limit_warnings_total`` of a registry; one, however many monitors."""
    return counter_of(
        registry,
        "killswitch_limit_warnings_total",
        "Times that a figure reached a step of the warning ladder of its limit.",
        ["limit", "step_pct"],
        [(name, str(step)) for name in LIMIT_NAMES for step in STEPS_PCT],
    )
