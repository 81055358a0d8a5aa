"""What an order router asks before an order goes: the gate, the order itself, the pre-trade controls, the monitor.

The router owns the order of the questions; this is what each of them is. Whoever let an order pass here has reserved
it: it counts in the limits from then on, so :meth:`OrderChecks.release` must follow when it is over or was not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.order_inputs import ReadOrder, is_name
from killswitch.risk.refusal import OrderRefused
from killswitch.routing.order_types import Order, Refused, RouterGate, VenueEvent

if TYPE_CHECKING:
    from killswitch.risk.pretrade import PreTradeControls

_log = structlog.get_logger("killswitch.router")


class OrderChecks:
    """The questions, for one router.

    Args:
        gate: the gate.
        monitor: limits, positions and reservations; ``None`` asks for none.
        controls: pre-trade controls; their monitor is then the monitor.
        scope: what every order of the router is: venue, account, desk, trader, client, strategy.

    Raises:
        ValueError: the controls have another monitor than the one that was given.
    """

    def __init__(
        self,
        *,
        gate: RouterGate,
        monitor: RuntimeRiskMonitor | None,
        controls: PreTradeControls | None,
        scope: Mapping[str, str | None],
    ) -> None:
        if controls is not None and monitor is not None and controls.monitor is not monitor:
            raise ValueError("the pre-trade controls have another monitor than the router; give the router one of them")
        self.monitor = controls.monitor if controls is not None else monitor
        self.controls = controls
        self._gate = gate
        self._scope = scope

    def gate_refusal(
        self, client_order_id: str, symbol: str, read: ReadOrder | OrderRefused, *, reserved: bool
    ) -> Refused | None:
        """Ask the gate; whether the order reduces is worked out only when it matters.

        Args:
            client_order_id, symbol: of the order, as they were given.
            read: the order; one that makes no sense does not reduce.
            reserved: the order is reserved already, so it must not count against itself.
        """
        try:
            if self._gate.allows(symbol, **self._scope, reduces=False) is True:
                return None
            own = client_order_id if reserved else None
            reduces = False
            if self.monitor is not None and not isinstance(read, OrderRefused):
                reduces = self.monitor.would_reduce(read.symbol, read.side, read.qty, client_order_id=own)
            self._gate.check(symbol, **self._scope, reduces=reduces)
        except Exception as error:  # Blocked, or a gate that cannot be asked: both mean no
            return Refused(str(client_order_id), "gate", str(error) or repr(error))
        return None

    def freeze_refusal(self, client_order_id: str) -> Refused | None:
        """Refuse while the monitor is frozen."""
        if self.monitor is None or not self.monitor.is_frozen():
            return None
        return Refused(client_order_id, "monitor", f"trading is frozen: {self.monitor.last_freeze_reason}")

    def reserve(self, client_order_id: str, order: ReadOrder) -> Refused | None:
        """Ask the controls and the monitor; ``None`` when the order may go, and counts from now on."""
        why: OrderRefused | None = None
        if self.controls is not None:
            why = self.controls.admit_read(client_order_id, order, self._scope.get("strategy"))
        elif self.monitor is not None:
            why = self.monitor.reserve_read(client_order_id, order)
        if why is None:
            return None
        if why.kind == "duplicate_id":
            return duplicate(client_order_id)
        return Refused(client_order_id, "monitor", why.sentence, why)

    def release(self, client_order_id: str) -> None:
        """The order is over or was never sent."""
        if self.controls is not None:
            self.controls.release(client_order_id)
        elif self.monitor is not None:
            self.monitor.release(client_order_id)

    def on_fill(self, order: Order, event: VenueEvent) -> None:
        """Move what has filled from the reservation to the position."""
        if self.controls is not None:
            self.controls.on_fill(
                order.symbol,
                order.side,
                event.qty,
                event.price,
                client_order_id=order.client_order_id,
                strategy=self._scope.get("strategy"),
            )
        elif self.monitor is not None:
            self.monitor.on_fill(
                order.symbol, order.side, event.qty, event.price, client_order_id=order.client_order_id
            )

    def on_cancel(self) -> None:
        """Count a cancel that was sent. Whatever goes wrong here, the cancel has gone."""
        if self.controls is None:
            return
        try:
            self.controls.on_cancel()
        except Exception as error:  # a count must never come between a stop and its cancels
            _log.error("a cancel could not be counted", error=repr(error))

    def on_unknown_fill(self, event: VenueEvent) -> None:
        """A fill of an order that nobody knows: positions are no longer known."""
        if self.monitor is not None:
            self.monitor.freeze(
                f"a fill of the unknown order {event.client_order_id}: positions are no longer known",
                trigger="limit_violation",
                metadata={"cause": "monitor_error", "qty": event.qty, "price": event.price},
            )


def sound_order(client_order_id: object, read: ReadOrder | OrderRefused) -> ReadOrder | Refused:
    """Return an order that can be sent, or refuse it, also where there is neither monitor nor controls."""
    if not is_name(client_order_id):
        return Refused(str(client_order_id), "bad_input", f"an order needs an id; {client_order_id!r} is none")
    if isinstance(read, OrderRefused):
        return Refused(str(client_order_id), "bad_input", read.sentence)
    if read.price is None:
        return Refused(str(client_order_id), "bad_input", f"{read.symbol}: a router sends no order without a price")
    return read


def duplicate(client_order_id: str) -> Refused:
    """The refusal of an id that was used before."""
    return Refused(client_order_id, "duplicate", f"an order with the id {client_order_id} was sent before")
