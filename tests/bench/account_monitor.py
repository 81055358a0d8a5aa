"""A tick through the account monitor, beside the same sums without monitor; and how many ticks pass in a second.

Every tick is timed on its own, monitor and baseline in turn; the cost of reading the timer is in both. The rate is
taken over a run without a timer in it. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from agents.risk.account_limits import AccountLimits
from agents.risk.account_monitor import RiskMonitor
from agents.risk.account_state import AccountState, AccountTick, Holding, PriceTick

TICKS = 50_000
WARM_UP = 2_000
SYMBOL_COUNTS = (1, 100, 10_000)
BALANCE_USD = 1e9
TARGET_PER_SECOND = 200_000


class Bare:
    """The baseline: equity, exposure and two comparisons over running sums; no lock, clock, state or bad input."""

    def __init__(self, quantities: dict[str, float], price_usd: float) -> None:
        self._held = {symbol: [quantity, price_usd] for symbol, quantity in quantities.items()}
        self._exposure_usd = sum(quantity * price_usd for quantity in quantities.values())
        self._equity_usd = self._peak_usd = BALANCE_USD

    def tick(self, tick: PriceTick) -> bool:
        held = self._held[tick.symbol]
        change_usd = held[0] * (tick.price_usd - held[1])
        held[1] = tick.price_usd
        self._exposure_usd += change_usd
        self._equity_usd += change_usd
        self._peak_usd = max(self._peak_usd, self._equity_usd)
        return self._equity_usd > 0.98 * self._peak_usd and self._exposure_usd < 5.0 * self._equity_usd


def run(ticks: int = TICKS) -> list[dict[str, Any]]:
    """Measure and return one row per number of symbols held, in microseconds, and one in the warning zone."""
    rows = [_row(count, ticks, "normal", AccountLimits()) for count in SYMBOL_COUNTS]
    warned = AccountLimits(leverage_warning=1e-6)
    rows.append(_row(1, ticks, "past a warning", warned))
    return [*rows, *(_fill_row(count, ticks) for count in (SYMBOL_COUNTS[0], SYMBOL_COUNTS[-1]))]


def _fill_row(symbols: int, ticks: int) -> dict[str, Any]:
    """A fill beside a tick of the same monitor."""
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    monitor = RiskMonitor(None, None, BALANCE_USD, registry=CollectorRegistry())
    monitor.monitor_tick(AccountTick(0.0, {name: Holding(0.5, 1_000.0, 1_000.0) for name in names}))
    picked = random.Random(1).choices(names, k=ticks // 5 + WARM_UP)
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        for name in picked:
            tick = PriceTick(name, 1_000.5)
            began = timer()
            monitor.on_fill(name, "buy", 0.001, 1_000.5)
            between = timer()
            monitor.monitor_tick(tick)
            took[0].append(between - began)
            took[1].append(timer() - between)
    finally:
        gc.enable()
    row = {"name": f"account fill, {symbols:,} symbols", "unit": "us", "baseline_name": "a tick of the same account"}
    return row | _figures(took)


def _row(symbols: int, ticks: int, kind: str, limits: AccountLimits) -> dict[str, Any]:
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    monitor = RiskMonitor(None, None, BALANCE_USD, limits=limits, registry=CollectorRegistry())
    monitor.monitor_tick(AccountTick(0.0, {name: Holding(0.5, 1_000.0, 1_000.0) for name in names}))
    rng = random.Random(1)
    played = [PriceTick(rng.choice(names), 1_000.0 + rng.randint(0, 100) / 10) for _ in range(ticks + WARM_UP)]
    bare = Bare(dict(monitor.state().positions), 1_000.0)
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    doors: tuple[Callable[[PriceTick], AccountState | bool], ...] = (monitor.monitor_tick, bare.tick)
    gc.collect()
    gc.disable()  # a collection would be counted on whichever tick it falls
    try:
        for tick in played:
            for index, door in enumerate(doors):
                before = timer()
                door(tick)
                took[index].append(timer() - before)
        rate = _rate(monitor.monitor_tick, played)
    finally:
        gc.enable()
    summary = monitor.get_summary()
    assert summary["breaches_total"] == {"drawdown": 0, "leverage": 0}, "the bench must measure ticks without a breach"
    assert summary["bad_inputs_total"] == 0, "the bench must measure ticks that make sense"
    row: dict[str, Any] = {
        "name": f"account tick, {kind}, {symbols:,} held: {rate / 1_000:.0f}k/s",
        "unit": "us",
        "baseline_name": "two running sums and two comparisons",
        "target": f">= {TARGET_PER_SECOND // 1_000}k/s",
        "ticks_per_second": round(rate),
    }
    return row | _figures(took)


def _figures(took: tuple[list[int], list[int]]) -> dict[str, float]:
    """Percentiles of ours and of the baseline in microseconds, and their ratios."""
    figures = {}
    for name, per_cent in (("p50", 50), ("p99", 99)):
        ours, baseline = (_percentile(times[WARM_UP:], per_cent) for times in took)
        figures[name] = round(ours / 1_000, 3)
        figures[f"baseline_{name}"] = round(baseline / 1_000, 3)
        figures[f"ratio_{name}"] = round(ours / baseline, 2)
    return figures


def _rate(door: Callable[[PriceTick], AccountState], ticks: list[PriceTick]) -> float:
    """Ticks in a second, the best of three runs: the other runs met other people's work."""
    best_s = float("inf")
    for _ in range(3):
        began_s = time.perf_counter()
        for tick in ticks:
            door(tick)
        best_s = min(best_s, time.perf_counter() - began_s)
    return len(ticks) / best_s


def _percentile(values: list[int], per_cent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * per_cent // 100)]


def main() -> None:
    """Print the rows."""
    for row in run():
        print(
            f"{row['name']}: p50 {row['p50']} {row['unit']}, p99 {row['p99']} {row['unit']}; "
            f"{row['baseline_name']}: p50 {row['baseline_p50']}, p99 {row['baseline_p99']}"
        )


if __name__ == "__main__":
    main()
