"""The node's own RuntimeRiskMonitor as a rule: use of its limits, and edges that have collapsed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry

from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.limits.limit_schedule import LimitSchedule, LimitScheduleSettings, MinuteOfDay, session_clock_of
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import STEPS_PCT
from killswitch.risk.node_rule import NodeFinding, NodeSnapshot
from killswitch.risk.order_inputs import finite_number
from killswitch.risk.process.risk_limits_file import OrderLimitSettings

WARN_FROM_PCT: Final = min(STEPS_PCT)


class NodeLimitsRule:
    """Limits of inventory warn here, step by step (routers refuse before each order); an edge that collapsed freezes.

    The schedule of the file tightens them here too, by symbol and by time of day. Volatilities are not told to a node,
    so that its steps by volatility are left to the routers.

    Args:
        limits: those of the node; each may be absent.
        registry: where ``freeze_triggered_total`` is counted.
        session_clock: minutes since midnight; in the time zone of the schedule when ``None``.
    """

    name = "limits"

    def __init__(
        self, limits: OrderLimitSettings, *, registry: CollectorRegistry, session_clock: MinuteOfDay | None = None
    ) -> None:
        self._session_clock = session_clock
        self._take(limits)
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=limits.to_risk_limits().max_inventory_usd,
            max_total_notional_usd=limits.to_risk_limits().max_total_notional,
            edge_freeze_threshold_bps=limits.to_risk_limits().edge_freeze_threshold_bps,
            registry=registry,
        )

    def set_limits(self, limits: OrderLimitSettings) -> None:
        """Hold the node against other limits from now on."""
        self._take(limits)
        self.monitor.set_limits(limits.to_risk_limits())

    def _take(self, limits: OrderLimitSettings) -> None:
        schedule = LimitScheduleSettings() if limits.schedule is None else limits.schedule
        self._limits = limits
        self._schedule = LimitSchedule(
            schedule.model_copy(update={"volatility": ()}),
            session_clock=session_clock_of(schedule, self._session_clock),
        )

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return every edge that is below the threshold or no number, and every limit that is nearly used up."""
        return [*self._edges(snapshot), *self._uses(snapshot)]

    def _edges(self, snapshot: NodeSnapshot) -> list[NodeFinding]:
        found = []
        for symbol, edge_bps in sorted(snapshot.edges_bps.items()):
            self.monitor.on_edge_update(symbol, edge_bps)
            threshold = self.monitor.limits.edge_freeze_threshold_bps
            edge = finite_number(edge_bps)
            if edge is None or edge < threshold:
                trigger = MONITOR_ERROR if edge is None else "edge_collapse"
                figures = {"current_edge_bps": edge_bps, "threshold_bps": threshold}
                reason = (
                    f"the edge of {symbol} is {edge_bps}: it cannot be compared"
                    if edge is None
                    else f"Edge degradation: {edge:.2f} BPS < {threshold:.2f} BPS"
                )
                # How far below: what is worse is larger, so that a person can accept the edge as it is.
                below_bps = None if edge is None else threshold - edge
                found.append(
                    NodeFinding(
                        trigger=trigger, level="freeze", reason=reason, symbol=symbol, value=below_bps, figures=figures
                    )
                )
        return found

    def _uses(self, snapshot: NodeSnapshot) -> list[NodeFinding]:
        own = self._limits.to_risk_limits()
        now = {symbol: self._schedule.limits(symbol, own.max_inventory_usd, own.max_total_notional) for symbol in
               ("", *snapshot.holdings)}  # fmt: skip
        uses: list[tuple[str | None, float, float]] = [(None, snapshot.gross_usd, now[""].total_usd)]
        uses += [
            (symbol, abs(held.value_usd), now[symbol].symbol_usd) for symbol, held in sorted(snapshot.holdings.items())
        ]
        found = []
        for symbol, used_usd, limit_usd in uses:
            # A limit of nothing, which a schedule may ask for, is used up by anything.
            used_pct = 100.0 * used_usd / limit_usd if limit_usd > 0.0 else (math.inf if used_usd > 0.0 else 0.0)
            if used_pct < WARN_FROM_PCT:
                continue
            step_pct = max(step for step in STEPS_PCT if used_pct >= step)
            what = "notional over all symbols" if symbol is None else f"inventory in {symbol}"
            reason = f"{what} is at {used_pct:.1f} % of {limit_usd:.2f} USD, past {step_pct} %"
            found.append(
                NodeFinding(trigger="limit_use", level="warning", reason=reason, symbol=symbol,
                            value=used_usd, limit=limit_usd)
            )  # fmt: skip
        return found

    def released(self) -> None:
        """A person has released this node's freezes: watch for the next one."""
        if self.monitor.is_frozen():
            self.monitor.unfreeze("released in the cluster")
