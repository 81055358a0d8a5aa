"""A monitor from its limits, as one value or by name."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from killswitch.clock import WallClock, wall_now
from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.limit_schedule import LimitSchedule
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import LimitWarning


def create_risk_monitor(
    limits: RiskLimits | None = None,
    *,
    max_inventory_usd: float | None = None,
    max_total_notional: float | None = None,
    edge_freeze_threshold_bps: float | None = None,
    get_mark_price: Callable[[str], float] | None = None,
    wall_clock: WallClock = wall_now,
    on_freeze: Callable[[FreezeEvent], None] | None = None,
    registry: CollectorRegistry | None = None,
    schedule: LimitSchedule | None = None,
    on_warning: Callable[[LimitWarning], None] | None = None,
) -> RuntimeRiskMonitor:
    """Make a monitor from :class:`RiskLimits`, or from the fields of one by name.

    Raises:
        TypeError: both are given.
        ValueError: a field is missing or not valid.
    """
    fields = {
        "max_inventory_usd": max_inventory_usd,
        "max_total_notional": max_total_notional,
        "edge_freeze_threshold_bps": edge_freeze_threshold_bps,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if limits is not None and given:
        raise TypeError(f"give the limits once: as RiskLimits, or by name ({', '.join(given)})")
    valid = limits if limits is not None else RiskLimits.model_validate(given)
    return RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=valid.max_inventory_usd,
        max_total_notional_usd=valid.max_total_notional,
        edge_freeze_threshold_bps=valid.edge_freeze_threshold_bps,
        get_mark_price=get_mark_price,
        wall_clock=wall_clock,
        on_freeze=on_freeze,
        registry=registry,
        schedule=schedule,
        on_warning=on_warning,
    )
