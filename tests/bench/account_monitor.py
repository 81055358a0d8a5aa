"""A tick through the account monitor, beside the same sums without monitor; and how many ticks pass in a second.

Every tick is timed on its own, monitor and baseline in turn; the cost of reading the timer is in both. The rate is
taken over a run without a timer in it. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_state import AccountState, AccountTick, Holding, PriceTick
from killswitch.risk.account_limits import AccountLimits
from tests.bench.timed_calls import figures_beside, no_collection, print_rows

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
    with no_collection():
        for name in picked:
            tick = PriceTick(name, 1_000.5)
            began = timer()
            monitor.on_fill(name, "buy", 0.001, 1_000.5)
            between = timer()
            monitor.monitor_tick(tick)
            took[0].append(between - began)
            took[1].append(timer() - between)
    row = {"name": f"account fill, {symbols:,} symbols", "unit": "us", "baseline_name": "a tick of the same account"}
    return row | figures_beside(*(times[WARM_UP:] for times in took))


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
    with no_collection():
        for tick in played:
            for index, door in enumerate(doors):
                before = timer()
                door(tick)
                took[index].append(timer() - before)
        rate = _rate(monitor.monitor_tick, played)
    summary = monitor.get_summary()
    assert set(summary["breaches_total"].values()) == {0}, "the bench must measure ticks without a breach"
    assert summary["bad_inputs_total"] == 0, "the bench must measure ticks that make sense"
    row: dict[str, Any] = {
        "name": f"account tick, {kind}, {symbols:,} held: {rate / 1_000:.0f}k/s",
        "unit": "us",
        "baseline_name": "two running sums and two comparisons",
        "target": f">= {TARGET_PER_SECOND // 1_000}k/s",
        "ticks_per_second": round(rate),
    }
    return row | figures_beside(*(times[WARM_UP:] for times in took))


def _rate(door: Callable[[PriceTick], AccountState], ticks: list[PriceTick]) -> float:
    """Ticks in a second, the best of three runs: the other runs met other people's work."""
    best_s = float("inf")
    for _ in range(3):
        began_s = time.perf_counter()
        for tick in ticks:
            door(tick)
        best_s = min(best_s, time.perf_counter() - began_s)
    return len(ticks) / best_s


def main() -> None:
    """Print the rows."""
    print_rows(run())


if __name__ == "__main__":
    main()
