"""Pre-trade controls with a clock and a calendar that stand still, for the tests of every control."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings

MS = 1_000_000
S = 1_000_000_000
DAY = dt.date(2026, 1, 31)
HEALTHY = {"max_age_ms": 1_000}


class Rig:
    """Controls with a clock and a calendar that stand still, and a monitor with wide limits."""

    def __init__(self, *, rules: Any = (), monitor: Any = None, **sections: Any) -> None:
        self.ns = 10**15
        self.step_ns = 0
        self.day: Any = DAY
        self.registry = CollectorRegistry()
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1e12,
            max_total_notional_usd=1e13,
            edge_freeze_threshold_bps=1.5,
            registry=self.registry,
            **(monitor or {}),
        )
        self.orders = 0
        self.rules = rules
        self.sections = {"throttle": None, **sections}
        self.controls = self.make()

    def make(self) -> PreTradeControls:
        self.controls = PreTradeControls(
            PreTradeSettings.model_validate(self.sections),
            monitor=self.monitor,
            day=lambda: self.day,
            rules=self.rules,
            clock=self.clock,
            registry=self.registry,
        )
        return self.controls

    def clock(self) -> int:
        self.ns += self.step_ns
        return self.ns

    def admit(self, symbol: Any = "A", side: Any = "buy", qty: Any = 1.0, price: Any = 100.0, **more: Any) -> Any:
        """Send an order; ``None`` when it passed, else the kind of its refusal. A what-if must say the same before."""
        self.orders += 1
        before = json.dumps([self.controls.persist_to_dict(), self.monitor.persist_to_dict()], sort_keys=True)
        step_ns, self.step_ns = self.step_ns, 0
        explained = self.controls.explain_order(symbol, side, qty, price, **more)
        simulated = self.controls.simulate_order(symbol, side, qty, price, **more)
        self.step_ns = step_ns
        assert json.dumps([self.controls.persist_to_dict(), self.monitor.persist_to_dict()], sort_keys=True) == before
        self.last = self.controls.admit(f"o{self.orders}", symbol, side, qty, price, **more)
        kind = None if self.last is None else self.last.kind
        if step_ns == 0 and not self.rules:
            assert (None if explained is None else explained.kind) == kind
            assert kind == (simulated.refusals[0].kind if simulated.refusals else None)
        return kind

    def refused_total(self, kind: str) -> float | None:
        return self.registry.get_sample_value("killswitch_orders_refused_total", {"kind": kind})
