"""Eight threads on one monitor: what they lose of each other's counts, which is nothing, and what a call then costs.

The baseline is the same number of calls by one thread. Python runs one thread at a time, so more threads do not make
more calls; the ratio says what waiting for each other adds. That nothing is lost is also asserted by tests.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_state import PriceTick
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor

CALLS = 40_000
THREADS = 8
SWITCH_S = 1e-5
"""How often threads take turns while they are measured: five hundred times as often as Python does by itself."""

Row = dict[str, Any]


def run(calls: int = CALLS) -> list[Row]:
    """Measure and return two rows for each monitor: counts lost, and microseconds a call."""
    rows = []
    for name, make in {"RuntimeRiskMonitor": _runtime, "RiskMonitor": _account, "ExposureBook": _exposure}.items():
        one_us, _ = _played(*make(), calls, threads=1)
        each_us, counted = _played(*make(), calls, threads=THREADS)
        beside = {"baseline_name": "the same calls by one thread"}
        cost = {"unit": "us", "baseline_p50": round(one_us, 3), "ratio_p50": round(each_us / one_us, 2)}
        rows.append({"name": f"{name}, {THREADS} threads: a call", "p50": round(each_us, 3), **cost, **beside})
        lost = {"unit": "n", "p50": calls - counted, "target": "0"}
        rows.append({"name": f"{name}, {THREADS} threads: lost of {calls:,}", **lost, **beside})
    return rows


def _runtime() -> tuple[Callable[[], object], Callable[[], int]]:
    """A fill and a refusal; counted in the position and in ``blocks_total``, of which the smaller is returned."""
    monitor = RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=1e9,
        max_total_notional_usd=1e9,
        edge_freeze_threshold_bps=1.5,
        registry=CollectorRegistry(),
    )

    def call() -> None:
        monitor.on_fill("SHARED", "buy", 0.1, 1.0)
        monitor.check_before_order("SHARED", "buy", 1e12, 1.0)

    return call, lambda: min(round(monitor.get_position("SHARED") * 10), monitor.blocks_total)


def _account() -> tuple[Callable[[], object], Callable[[], int]]:
    """A fill and a tick."""
    limits = AccountLimits(max_account_leverage=9_000.0, leverage_warning=8_000.0)
    monitor = RiskMonitor(None, None, 1e9, limits=limits, registry=CollectorRegistry())

    def call() -> None:
        monitor.on_fill("SHARED", "buy", 0.1, 1.0)
        monitor.monitor_tick(PriceTick("SHARED", 1.0))

    def counted() -> int:
        summary = monitor.get_summary()
        return min(round(summary["state"]["positions"]["SHARED"] * 10), summary["ticks_total"], summary["fills_total"])

    return call, counted


def _exposure() -> tuple[Callable[[], object], Callable[[], int]]:
    """A fill."""
    book = ExposureBook()
    return (
        lambda: book.on_fill("SHARED", "buy", 0.1, 1.0, bucket="LT"),
        lambda: round(book.figures().gross_usd * 10),
    )


def _played(call: Callable[[], object], counted: Callable[[], int], calls: int, *, threads: int) -> tuple[float, int]:
    """Microseconds a call over all threads, and what was counted."""
    start = threading.Barrier(threads + 1)

    def hammer() -> None:
        start.wait()
        for _ in range(calls // threads):
            call()

    workers = [threading.Thread(target=hammer) for _ in range(threads)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        for worker in workers:
            worker.start()
        start.wait()
        began_s = time.perf_counter()
        for worker in workers:
            worker.join()
        took_s = time.perf_counter() - began_s
    finally:
        sys.setswitchinterval(before)
    return took_s / calls * 1e6, counted()


def main() -> None:
    """Print the rows."""
    for row in run():
        print(f"{row['name']}: {row['p50']} {row['unit']}; {row['baseline_name']}: {row.get('baseline_p50', '-')}")


if __name__ == "__main__":
    main()
