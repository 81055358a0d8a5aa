"""The node's own risk monitor: the seeds' RuntimeRiskMonitor over the sum of what the node's routers hold.

Its limits refuse nothing here (routers check before each order); they show as utilisation. Its edge threshold freezes.
A monitor that raises is a breach and not a nuisance: it freezes too (UNKNOWN IS FROZEN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from agents.risk.events import FreezeEvent
from agents.risk.runtime_monitor import RuntimeRiskMonitor
from agents.routers import NodeExposure
from killswitch.config import NodeLimits

log = structlog.get_logger(__name__)

NO_LIMIT_USD = 1e15
"""Stands for a limit that is not set; beyond what any node holds, and still exact as a float."""

OnMonitorFreeze = Callable[[str, str, str | None, Mapping[str, Any]], None]
"""Takes trigger, reason, symbol and figures."""


class NodeMonitor:
    """Feeds the monitor with the node's exposure and passes its freezes on.

    Args:
        limits: those of this node; each may be absent.
        on_freeze: how a freeze reaches the cluster.
        registry: where ``freeze_triggered_total`` is counted.
    """

    def __init__(self, limits: NodeLimits, *, on_freeze: OnMonitorFreeze, registry: CollectorRegistry) -> None:
        self._limits = limits
        self._pass_on = on_freeze
        self._gross_usd = 0.0
        threshold = limits.edge_freeze_threshold_bps
        self._monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=limits.max_inventory_usd_per_symbol or NO_LIMIT_USD,
            max_total_notional_usd=limits.max_total_notional_usd or NO_LIMIT_USD,
            edge_freeze_threshold_bps=-NO_LIMIT_USD if threshold is None else threshold,
            on_freeze=self._frozen,
            registry=registry,
        )

    def observe(self, exposure: NodeExposure) -> None:
        """Take the newest exposure of the node; freezes when an edge has collapsed or the monitor itself fails."""
        try:
            self._gross_usd = exposure.gross_usd
            for symbol, edge_bps in exposure.edges_bps.items():
                self._monitor.on_edge_update(symbol, edge_bps)
        except Exception as error:
            log.exception("monitor_failed")
            self._pass_on("monitor_error", f"the node's risk monitor failed: {error!r}", None, {})

    def released(self) -> None:
        """The cluster has been released from this monitor's freeze: watch for the next one."""
        if self._monitor.is_frozen():
            self._monitor.unfreeze("released in the cluster")

    def utilization_pct(self) -> float | None:
        """Use of the node's total limit in per cent, ``None`` when no total limit is set."""
        if self._limits.max_total_notional_usd is None:
            return None
        return 100.0 * self._gross_usd / self._limits.max_total_notional_usd

    def _frozen(self, event: FreezeEvent) -> None:
        trigger = "monitor_error" if event.metadata.get("cause") == "monitor_error" else event.trigger
        symbol = event.metadata.get("symbol")
        self._pass_on(trigger, event.reason, symbol if isinstance(symbol, str) else None, event.metadata)
