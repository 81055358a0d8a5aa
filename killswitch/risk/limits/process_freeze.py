"""The freeze of one process: it stands first, is told once, and cancels until nothing is open."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from killswitch.clock import WallClock, time_or_unknown
from killswitch.link.messages import CancelResult
from killswitch.risk.events import FREEZE_TRIGGERS, MONITOR_ERROR, FreezeEvent, FreezeTrigger, json_figures
from killswitch.risk.metrics import freeze_counter
from killswitch.risk.order_inputs import finite_number
from killswitch.safe_log import say

FREEZE_EVENTS_KEPT = 1_000
"""Newest freeze events kept in memory; ``freezes_total`` says how many there were, the log has all of them."""


class OrderCanceller(Protocol):
    """Whatever cancels everything that is working; an :class:`~killswitch.routing.order_router.OrderRouter` is one."""

    def cancel_all_orders(self, reason: str) -> int | CancelResult:
        """Cancel every working order and return how many were cancelled, or the full result."""


class ProcessFreeze:
    """Whether this process is frozen, why, and how the cancelling went. Only a person lifts it.

    Args:
        lock: guards it; the owner's, since some things must change in one moment with it.
        wall_clock: the time that events carry.
        on_freeze: told every freeze, once, with no lock held. If it raises, the freeze stands.
        registry: where ``freeze_triggered_total`` is counted; the default registry of the process when ``None``.

    Attributes:
        in_force: True while no order passes.
        count: freezes, ever; a freeze on top of a freeze does not count.
        last_reason: newest cause, also of a freeze on top of a freeze; ``None`` before the first.
        last_symbol: its symbol, ``None`` when it has none.
        events: the newest freezes, oldest first.
    """

    def __init__(
        self,
        *,
        lock: threading.Lock,
        wall_clock: WallClock,
        on_freeze: Callable[[FreezeEvent], None] | None,
        registry: CollectorRegistry | None,
    ) -> None:
        self.in_force = False
        self.count = 0
        self.last_reason: str | None = None
        self.last_symbol: str | None = None
        self.events: deque[FreezeEvent] = deque(maxlen=FREEZE_EVENTS_KEPT)
        self._lock = lock
        self._wall_clock = wall_clock
        self._on_freeze = on_freeze
        self._counter = freeze_counter(registry)
        self._cancel_claimed = 0  # number of the freeze whose cancelling is under way or done; freezes count from 1

    def freeze(
        self, reason: str, symbol: str | None, trigger: FreezeTrigger, metadata: Mapping[str, Any]
    ) -> FreezeEvent | None:
        """Freeze first, then tell. Returns the event when this call froze.

        Raises:
            ValueError: the trigger does not exist. It is frozen as ``manual`` all the same.
        """
        if trigger not in FREEZE_TRIGGERS:
            self.freeze(reason, symbol, "manual", metadata)
            raise ValueError(f"{trigger!r} is not a trigger; frozen as 'manual'")
        at = self.time()
        with self._lock:
            already, self.in_force = self.in_force, True
            self.last_reason = reason
            self.last_symbol = symbol
            if not already:
                self.count += 1
                figures = json_figures(metadata)  # what is no mapping must not come between a freeze and its telling
                if symbol is not None:
                    figures = {"symbol": symbol, **figures}
                event = FreezeEvent(at, trigger, reason, figures)
                self.events.append(event)
        if already:
            say("info", "frozen already", reason=reason, symbol=symbol, trigger=trigger)
            return None
        if self._on_freeze is not None:
            try:
                self._on_freeze(event)
            except Exception as error:  # whatever it raises, the freeze stands
                event = self._amend(event, {"on_freeze_error": repr(error)})
                say("error", "the freeze could not be passed on", error=repr(error), reason=reason)
        self._counter.labels(reason=trigger).inc()
        say("critical", "risk monitor froze", **event.to_json(), symbol=symbol)
        return event

    def for_monitor_error(self, reason: str, symbol: str | None, figures: Mapping[str, Any]) -> FreezeEvent | None:
        """Freeze because what the monitor is told can no longer be judged. As :meth:`freeze`."""
        return self.freeze(reason, symbol, "limit_violation", {"cause": MONITOR_ERROR, **figures})

    def for_edge(self, net_bps: object, symbol: str | None, threshold_bps: float) -> tuple[bool, FreezeEvent | None]:
        """Freeze when an edge is strictly below the threshold, or cannot be compared with it.

        Returns:
            Whether the edge is bad, and the event when this call froze.
        """
        edge = finite_number(net_bps)
        if edge is None:
            reason = f"the edge is {net_bps}: it cannot be compared with {threshold_bps:.2f} BPS"
            figures = {"current_edge_bps": str(net_bps), "threshold_bps": threshold_bps}
            return True, self.for_monitor_error(reason, symbol, figures)
        if edge >= threshold_bps:
            return False, None
        reason = f"Edge degradation: {edge:.2f} BPS < {threshold_bps:.2f} BPS"
        figures = {"current_edge_bps": edge, "threshold_bps": threshold_bps}
        return True, self.freeze(reason, symbol, "edge_collapse", figures)

    def lift(self, reason: str) -> bool:
        """Let orders pass again. Returns True when it was in force.

        Raises:
            ValueError: no reason is given; it stays in force.
        """
        if not reason or not reason.strip():
            raise ValueError("a release needs a reason; the monitor stays frozen")
        with self._lock:
            was_in_force, self.in_force = self.in_force, False
        say("warning", "risk monitor released", reason=reason, was_frozen=was_in_force)
        return was_in_force

    def forget(self) -> None:
        """Forget freeze and cause; count and events stay. The lock is held."""
        self.in_force = False
        self.last_reason = None
        self.last_symbol = None

    def take_over(
        self,
        *,
        frozen: bool,
        count: int,
        last_reason: str | None,
        last_symbol: str | None,
        events: Sequence[FreezeEvent],
    ) -> None:
        """Go on from a saved state, which may freeze but never lifts. The lock is held."""
        self.in_force = self.in_force or frozen
        self.count = count
        self.last_reason, self.last_symbol = last_reason, last_symbol
        self.events = deque(events, maxlen=FREEZE_EVENTS_KEPT)

    def cancel_working(self, reason: str, order_router: OrderCanceller, *, again: bool) -> None:
        """Cancel through the router and note in the newest event how it went. Nothing here undoes the freeze.

        Unless ``again``, only once for the freeze in force, whichever thread comes first, until it leaves nothing open.
        """
        with self._lock:
            number = self.count
            if self._cancel_claimed == number and not again:
                return
            self._cancel_claimed = number
            event = self.events[-1] if self.events else None
        notes: dict[str, Any]
        done = False
        try:
            result = order_router.cancel_all_orders(reason)
            if isinstance(result, CancelResult):
                notes = {
                    "orders_cancelled": result.cancelled,
                    "orders_open": result.open,
                    "cancels_failed": result.failed,
                }
                done = result.open == 0
            else:
                notes, done = {"orders_cancelled": int(result)}, True
        except Exception as error:  # whatever the router raises, the monitor stays frozen
            notes = {"cancel_error": repr(error)}
            say("error", "cancelling failed; the monitor stays frozen", error=repr(error), reason=reason)
        with self._lock:
            if not done and self._cancel_claimed == number:
                self._cancel_claimed = 0
        if event is not None:
            before = event.metadata.get("orders_cancelled", 0)
            self._amend(event, {**notes, "orders_cancelled": before + notes.get("orders_cancelled", 0)})

    def _amend(self, event: FreezeEvent, notes: Mapping[str, Any]) -> FreezeEvent:
        """Put notes into an event that is kept."""
        with self._lock:
            for index in range(len(self.events) - 1, -1, -1):
                if self.events[index] is event:
                    self.events[index] = replace(event, metadata={**event.metadata, **notes})
                    return self.events[index]
        return event

    def time(self) -> str:
        """The present time for people, ``unknown`` when the clock fails."""
        return time_or_unknown(self._wall_clock)
