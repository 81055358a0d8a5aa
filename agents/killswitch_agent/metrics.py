"""What an agent shows on /metrics."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from killswitch.core.modes import strictest
from killswitch_agent.gatekeeper import GateKeeper
from killswitch_agent.routers import RouterPresence, RouterRegistry, exposure_of

RENEWAL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0)


class AgentMetrics:
    """Counters that the agent moves, and gauges that are read when somebody looks."""

    def __init__(self, registry: CollectorRegistry, keepers: Sequence[GateKeeper], routers: RouterRegistry) -> None:
        self.renewals = Counter(
            "killswitch_permit_renewals_total", "Attempts to renew the permit.", ["outcome"], registry=registry
        )
        self.renewal_seconds = Histogram(
            "killswitch_permit_renewal_seconds",
            "Time of the linearizable read that renews the permit.",
            buckets=RENEWAL_BUCKETS_S,
            registry=registry,
        )
        self.watch_gaps = Counter(
            "killswitch_watch_gaps_total",
            "Times that the watch on the flag started or started again.",
            registry=registry,
        )
        self.freezes_raised = Counter(
            "killswitch_freezes_raised_total", "Freezes that this node has asked for.", ["trigger"], registry=registry
        )
        gauges = (
            ("killswitch_permit_seconds_left", "How long the permit still lasts; of several stores' the shortest.",
             lambda: min(keeper.permit_ms_left() for keeper in keepers) / 1000),
            ("killswitch_gate_mode", "Strictest mode on this node: 0 active, 1 reduce-only, 2 frozen.",
             lambda: float(strictest(keeper.mode for keeper in keepers))),
            ("killswitch_flag_epoch", "Newest epoch of the flag that the gate shows; of several stores the sum.",
             lambda: float(sum(keeper.view().epoch for keeper in keepers))),
            ("killswitch_routers_live", "Routers connected.",
             lambda: float(sum(state.presence is RouterPresence.LIVE for state in routers.states()))),
            ("killswitch_routers_lost", "Routers whose connection broke without goodbye.",
             lambda: float(sum(state.presence is RouterPresence.LOST for state in routers.states()))),
            ("killswitch_node_gross_usd", "Gross notional that the node's routers hold.",
             lambda: exposure_of(routers.states()).gross_usd),
            ("killswitch_node_pnl_usd", "Profit and loss of the node's routers.",
             lambda: exposure_of(routers.states()).pnl_usd),
        )  # fmt: skip
        for name, meaning, value in gauges:
            Gauge(name, meaning, registry=registry).set_function(value)
