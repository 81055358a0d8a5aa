"""The doors of a local freeze: what freezes a process by itself or by hand, who lifts it, and what is known of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import WallClock
from killswitch.risk.events import FREEZE_TRIGGERS, MONITOR_ERROR, FreezeEvent, FreezeTrigger
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.local_freeze import LocalFreeze, OrderCanceller
from killswitch.risk.metrics import freeze_counter
from killswitch.risk.order_inputs import finite_number
from killswitch.safe_log import say


class FreezeDoors:
    """Freezing by an edge that collapsed or by hand, and release by a person alone. Thread-safe.

    Args:
        limits: where the edge's threshold stands.
        lock: guards the freeze, and whatever of the monitor must change in one moment with it.
        wall_clock, on_freeze, registry: as :class:`RuntimeRiskMonitor` has them.

    Attributes:
        limits: the limits that are in force.
    """

    def __init__(
        self,
        limits: RiskLimits,
        *,
        lock: threading.Lock,
        wall_clock: WallClock,
        on_freeze: Callable[[FreezeEvent], None] | None,
        registry: CollectorRegistry | None,
    ) -> None:
        self.limits = limits
        self._lock = lock
        self._local_freeze = LocalFreeze(
            lock=lock,
            wall_clock=wall_clock,
            on_freeze=on_freeze,
            counter=freeze_counter(registry),
        )

    # ---- the edge

    def on_edge_update(self, symbol: str, net_bps: float) -> bool:
        """Freeze when the expected net edge of a symbol is strictly below the threshold, or is not finite.

        Returns:
            True when this call froze.
        """
        return self._judge_edge(net_bps, symbol)[1] is not None

    def auto_freeze_on_edge_drop(self, current_edge_bps: float, order_router: OrderCanceller) -> bool:
        """As :meth:`on_edge_update` for the whole book, and cancel everything working through the router.

        On an existing freeze it cancels only if no earlier call for that freeze has cancelled everything.

        Returns:
            True when this call froze.
        """
        bad, event = self._judge_edge(current_edge_bps, None)
        if bad:
            self._local_freeze.cancel_working(self.last_freeze_reason or "frozen", order_router, again=False)
        return event is not None

    def _judge_edge(self, net_bps: float, symbol: str | None) -> tuple[bool, FreezeEvent | None]:
        threshold = self.limits.edge_freeze_threshold_bps
        edge = finite_number(net_bps)
        if edge is None:
            reason = f"the edge is {net_bps}: it cannot be compared with {threshold:.2f} BPS"
            figures = {"current_edge_bps": str(net_bps), "threshold_bps": threshold}
            return True, self._freeze_for_monitor_error(reason, symbol, figures)
        if edge >= threshold:
            return False, None
        reason = f"Edge degradation: {edge:.2f} BPS < {threshold:.2f} BPS"
        figures = {"current_edge_bps": edge, "threshold_bps": threshold}
        return True, self._local_freeze.freeze(reason, symbol, "edge_collapse", figures)

    # ---- freeze and release

    def freeze(
        self,
        reason: str,
        symbol: str | None = None,
        *,
        trigger: FreezeTrigger = "manual",
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Freeze this process. On top of a freeze only the newest cause is noted; nothing counts again.

        Returns:
            True when this call froze.

        Raises:
            ValueError: the trigger does not exist. The monitor is frozen all the same.
        """
        known = trigger in FREEZE_TRIGGERS
        event = self._local_freeze.freeze(reason, symbol, trigger if known else "manual", metadata or {})
        if not known:
            raise ValueError(f"{trigger!r} is not a trigger; frozen as 'manual'")
        return event is not None

    def manual_freeze(self, reason: str, order_router: OrderCanceller) -> bool:
        """Freeze and cancel everything working through the router; on top of a freeze it cancels again.

        Returns:
            True when this call froze.
        """
        event = self._local_freeze.freeze(reason, None, "manual", {})
        self._local_freeze.cancel_working(reason, order_router, again=True)
        return event is not None

    def unfreeze(self, reason: str) -> bool:
        """Let orders pass again in this process. A freeze of the cluster is not touched.

        Returns:
            True when it was frozen.

        Raises:
            ValueError: no reason is given; it stays frozen.
        """
        if not reason or not reason.strip():
            raise ValueError("a release needs a reason; the monitor stays frozen")
        was_frozen = self._local_freeze.lift()
        say("warning", "risk monitor released", reason=reason, was_frozen=was_frozen)
        return was_frozen

    def _freeze_for_monitor_error(
        self, reason: str, symbol: str | None, figures: Mapping[str, Any]
    ) -> FreezeEvent | None:
        return self._local_freeze.freeze(reason, symbol, "limit_violation", {"cause": MONITOR_ERROR, **figures})

    # ---- what is known

    @property
    def freezes_total(self) -> int:
        """Freezes, ever; a freeze on top of a freeze does not count."""
        return self._local_freeze.count

    @property
    def last_freeze_reason(self) -> str | None:
        """Newest cause, also of a freeze on top of a freeze; ``None`` before the first."""
        return self._local_freeze.last_reason

    @property
    def last_freeze_symbol(self) -> str | None:
        """Symbol of the newest cause, ``None`` when it has none."""
        return self._local_freeze.last_symbol

    def is_frozen(self) -> bool:
        """True while no order passes."""
        return self._local_freeze.in_force

    def get_freeze_events(self) -> list[FreezeEvent]:
        """The newest freezes (``local_freeze.FREEZE_EVENTS_KEPT``), oldest first, with how their cancelling went."""
        with self._lock:
            return list(self._local_freeze.events)
