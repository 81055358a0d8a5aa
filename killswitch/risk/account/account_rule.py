"""The levels that an account is held against: pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Final, Literal, NamedTuple

from killswitch.risk.account.account_book import Line
from killswitch.risk.account.account_state import AlertLevel
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.mark_ages import AT_UNKNOWN_NS, age_sentence

LEVEL_TOLERANCE: Final = 1e-9
"""A share or a number of times this close below a level counts as at it: rounding of floats errs towards stopping."""

MARKS_SAID: Final = 5
"""Symbols that the sentence about old marks names."""

Measure = Literal["drawdown", "leverage", "marks"]

RANK: Final = {AlertLevel.NORMAL: 0, AlertLevel.WARNING: 1, AlertLevel.CRITICAL: 2}


class Finding(NamedTuple):
    """One level that an account has reached.

    Attributes:
        measure: what is measured.
        level: ``WARNING`` or ``CRITICAL``.
        value: share of the day's highest equity, or number of times the equity, infinite when no equity is left; of
            marks the age of the oldest in milliseconds, infinite when it is not known.
        limit: the level, in the same unit.
        sentence: for people.
    """

    measure: Measure
    level: AlertLevel
    value: float
    limit: float
    sentence: str

    @property
    def name(self) -> str:
        """``drawdown WARNING`` and the like."""
        return f"{self.measure} {self.level.value}"


def drawdown_ratio(equity_usd: float, peak_usd: float) -> float:
    """Share of the peak that is lost; 1.0 when there is neither peak nor equity."""
    return (peak_usd - equity_usd) / peak_usd if peak_usd > 0 else float(equity_usd <= 0)


def true_leverage(exposure_usd: float, equity_usd: float) -> float:
    """Exposure over equity; infinite when something is held and no equity is left, 0 when nothing is held."""
    if exposure_usd == 0:
        return 0.0
    return exposure_usd / equity_usd if equity_usd > 0 else math.inf


def findings(equity_usd: float, peak_usd: float, exposure_usd: float, limits: AccountLimits) -> tuple[Finding, ...]:
    """Return every measure that has reached a level, with the highest level that it has reached.

    A figure that is not a number has reached the hard level: it cannot be told to be below it.

    Args:
        equity_usd: balance and open profit and loss.
        peak_usd: highest equity of the day.
        exposure_usd: sum of absolute positions.
        limits: the levels.
    """
    lost = drawdown_ratio(equity_usd, peak_usd)
    times = true_leverage(exposure_usd, equity_usd)
    found = []
    hard, warning = limits.max_daily_drawdown, limits.drawdown_warning
    if not lost < hard - LEVEL_TOLERANCE or not equity_usd > 0:
        text = f"drawdown {lost:.4%} of the day's highest equity {peak_usd:.2f} USD, at or above the limit {hard:.4%}"
        found.append(Finding("drawdown", AlertLevel.CRITICAL, lost, hard, text))
    elif not lost < warning - LEVEL_TOLERANCE:
        text = f"drawdown {lost:.4%} of the day's highest equity {peak_usd:.2f} USD, warning from {warning:.4%} on"
        found.append(Finding("drawdown", AlertLevel.WARNING, lost, warning, text))
    hard, warning = limits.max_account_leverage, limits.leverage_warning
    if not times < hard - LEVEL_TOLERANCE:
        text = f"leverage {times:.4g}x of the equity {equity_usd:.2f} USD, at or above the limit {hard:g}x"
        found.append(Finding("leverage", AlertLevel.CRITICAL, times, hard, text))
    elif not times < warning - LEVEL_TOLERANCE:
        text = f"leverage {times:.4g}x of the equity {equity_usd:.2f} USD, warning from {warning:g}x on"
        found.append(Finding("leverage", AlertLevel.WARNING, times, warning, text))
    return tuple(found)


def levels_of(found: tuple[Finding, ...]) -> dict[Measure, AlertLevel]:
    """Return which level each measure has reached."""
    return {finding.measure: finding.level for finding in found}


def mark_finding(
    too_old: Mapping[str, int], lines: Mapping[str, Line], now_ns: int, limits: AccountLimits
) -> tuple[Finding, ...]:
    """Return one finding for all marks that are too old, at the strictest level of any.

    Args:
        too_old: symbols, and when their marks came.
        lines: what is held.
        now_ns: nanoseconds, on the clock of these times.
        limits: the age allowed, and what marks do that are missing or stale.
    """
    if not too_old or limits.mark_max_age_ms is None:
        return ()
    hard = {lines[symbol].marked for symbol in too_old}
    severities = {limits.mark_stale if marked else limits.mark_missing for marked in hard}
    level = AlertLevel.CRITICAL if "engage" in severities else AlertLevel.WARNING
    said = [
        age_sentence(symbol, at_ns=at_ns, now_ns=now_ns, max_age_ms=limits.mark_max_age_ms, marked=lines[symbol].marked)
        for symbol, at_ns in islice(too_old.items(), MARKS_SAID)
    ]
    more = [f"and {len(too_old) - MARKS_SAID} more"] if len(too_old) > MARKS_SAID else []
    oldest_ns = min(too_old.values())
    age_ms = (now_ns - oldest_ns) / 1e6 if AT_UNKNOWN_NS < oldest_ns <= now_ns else math.inf
    return (Finding("marks", level, age_ms, float(limits.mark_max_age_ms), "; ".join([*said, *more])),)


def surely_normal_equity(peak_usd: float, limits: AccountLimits) -> float:
    """Equity strictly above this has no finding about drawdown."""
    return peak_usd * (1.0 - limits.drawdown_warning + 2 * LEVEL_TOLERANCE)


def surely_normal_leverage(limits: AccountLimits) -> float:
    """Exposure strictly below this many times the equity has no finding about leverage."""
    return limits.leverage_warning - 2 * LEVEL_TOLERANCE
