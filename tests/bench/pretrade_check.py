"""The whole pre-trade check, gate read and both limits, beside a bare limit check of the same process.

Every call is timed on its own, check and baseline in turn, so that both meet the same noise; the cost of reading the
timer is in both. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from agents.risk.runtime_monitor import RuntimeRiskMonitor
from killswitch.clock import now_ns
from killswitch.gate import Gate, GateWriter

CALLS = 20_000
WARM_UP = 2_000
SYMBOL_COUNTS = (10, 100, 10_000)
TARGET_US = 2.0
PERMIT_NS = 3_000_000_000_000  # 50 minutes: longer than any run, within what a gate accepts

Check = Callable[[str, str, float, float], bool]


class Bare:
    """The baseline: one look into a dict of positions and two comparisons, with no lock, no freeze and no bad input."""

    def __init__(self, positions: dict[str, float], total_usd: float) -> None:
        self._positions = positions
        self._total_usd = total_usd
        self._symbol_limit_usd = 1e9
        self._total_limit_usd = 1e12

    def check(self, symbol: str, _side: str, qty: float, price: float) -> bool:
        after_usd = (self._positions.get(symbol, 0.0) + qty) * price
        return after_usd <= self._symbol_limit_usd and self._total_usd + after_usd <= self._total_limit_usd


def run(calls: int = CALLS) -> list[dict[str, Any]]:
    """Measure and return one row per number of symbols held and kind of order, in microseconds."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gate"
        with GateWriter(path, cluster="bench", node="n1") as writer, Gate.open(path) as gate:
            writer.update((), epoch=1, permit_deadline_ns=now_ns() + PERMIT_NS)
            for symbols in SYMBOL_COUNTS:
                rows.append(_row(gate, symbols, "growing", ("buy", 0.1), calls))
            rows.append(_row(gate, 100, "reducing", ("sell", 0.1), calls))
    return rows


def _row(gate: Gate, symbols: int, kind: str, order: tuple[str, float], calls: int) -> dict[str, Any]:
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    monitor = RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=1e9,
        max_total_notional_usd=1e12,
        edge_freeze_threshold_bps=1.5,
        registry=CollectorRegistry(),
    )
    for name in names:
        monitor.on_fill(name, "buy", 0.5, 1_000.0)
    bare = Bare(dict(monitor.get_positions()), monitor.get_total_notional())
    allows, check_before_order = gate.allows, monitor.check_before_order

    def full(symbol: str, side: str, qty: float, price: float) -> bool:
        return allows(symbol, venue="bybit") and check_before_order(symbol, side, qty, price)

    assert full(names[0], *order, 1_000.0), "the bench must measure orders that pass"
    ours, baseline = _interleaved(full, bare.check, names, order, calls)
    assert monitor.blocks_total == 0, "the bench must measure orders that pass"
    row: dict[str, Any] = {
        "name": f"pre-trade check, {kind} order, {symbols} symbols held",
        "unit": "us",
        "baseline_name": "dict lookup and two comparisons",
        "target": f"p50 <= {TARGET_US:g} us",
    }
    for name, per_cent in (("p50", 50), ("p99", 99)):
        row[name] = round(_percentile(ours, per_cent) / 1_000, 3)
        row[f"baseline_{name}"] = round(_percentile(baseline, per_cent) / 1_000, 3)
        row[f"ratio_{name}"] = round(_percentile(ours, per_cent) / _percentile(baseline, per_cent), 2)
    return row


def _interleaved(
    ours: Check, baseline: Check, names: list[str], order: tuple[str, float], calls: int
) -> tuple[list[int], list[int]]:
    side, qty = order
    picked = random.Random(1).choices(names, k=calls)
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    gc.collect()
    gc.disable()  # a collection would be counted on whichever call it falls
    try:
        for symbol in [*picked[:WARM_UP], *picked]:
            for index, check in enumerate((ours, baseline)):
                before = timer()
                check(symbol, side, qty, 1_000.0)
                took[index].append(timer() - before)
    finally:
        gc.enable()
    return took[0][WARM_UP:], took[1][WARM_UP:]


def _percentile(values: list[int], per_cent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * per_cent // 100)]


def main() -> None:
    """Print the rows."""
    for row in run():
        print(
            f"{row['name']}: p50 {row['p50']} {row['unit']}, p99 {row['p99']} {row['unit']}; "
            f"{row['baseline_name']}: p50 {row['baseline_p50']}, p99 {row['baseline_p99']}; "
            f"ratio {row['ratio_p50']} / {row['ratio_p99']} (target {row['target']})"
        )


if __name__ == "__main__":
    main()
