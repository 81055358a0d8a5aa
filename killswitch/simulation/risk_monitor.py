"""The risk monitor's demonstration, deterministic to the byte: five steps through the real monitor."""

from __future__ import annotations

import json
import os

from prometheus_client import CollectorRegistry

from killswitch import __version__
from killswitch.clock import wall_now
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor

TIME_VARIABLE = "MM_FREEZE_UTC_ISO"
"""Environment variable that fixes the time of the report."""


def run(utc_iso: str | None, version: str) -> str:
    """Play the five steps and return the report as one line of JSON with one trailing newline.

    Limits of 10,000 USD per symbol, 50,000 USD in total and 1.5 basis points: an order that passes, one over the limit
    of its symbol, one on another symbol that passes, an edge that collapses, and one order after it.

    Args:
        utc_iso: the time in the report, as it is to appear; now when ``None``.
        version: the version in the report.

    Returns:
        The report; ``status`` is ``OK`` when every step went as told here, else ``FAILED``.
    """
    utc = utc_iso if utc_iso is not None else wall_now()
    monitor = RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=10_000.0,
        max_total_notional_usd=50_000.0,
        edge_freeze_threshold_bps=1.5,
        get_mark_price={"BTCUSDT": 50_000.0, "ETHUSDT": 3_000.0}.__getitem__,
        wall_clock=lambda: utc,
        # Not the process's registry: a demonstration must not raise somebody's freeze alert.
        registry=CollectorRegistry(),
    )
    passed = [
        _trade(monitor, "BTCUSDT", "buy", 0.1, 50_000.0),
        _trade(monitor, "BTCUSDT", "buy", 0.15, 50_000.0),
        _trade(monitor, "ETHUSDT", "buy", 1.0, 3_000.0),
    ]
    froze = monitor.on_edge_update("BTCUSDT", 1.2)
    passed.append(_trade(monitor, "ETHUSDT", "sell", 0.5, 3_000.0))
    as_told = passed == [True, False, True, False] and froze
    report = {
        "frozen": monitor.is_frozen(),
        "metrics": {
            "blocks_total": monitor.blocks_total,
            "freezes_total": monitor.freezes_total,
            "last_freeze_reason": monitor.last_freeze_reason,
            "last_freeze_symbol": monitor.last_freeze_symbol,
        },
        "positions": monitor.get_positions(),
        "runtime": {"utc": utc, "version": version},
        "status": "OK" if as_told else "FAILED",
    }
    return json.dumps(report, sort_keys=True, separators=(",", ":")) + "\n"


def main_text() -> str:
    """Return the report with the time of the environment variable and the version of this package."""
    return run(os.environ.get(TIME_VARIABLE) or None, __version__)


def _trade(monitor: RuntimeRiskMonitor, symbol: str, side: str, qty: float, price: float) -> bool:
    """Ask for an order and, when it passes, fill it at once."""
    if not monitor.check_before_order(symbol, side, qty, price):
        return False
    monitor.on_fill(symbol, side, qty, price)
    return True
