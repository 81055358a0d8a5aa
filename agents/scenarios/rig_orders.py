"""The rig's orders: a registry in memory, and fills that are the same in every run."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

MAX_ORDERS: Final = 10_000

FILL_RATIOS: Final = {
    "cross_spread": Decimal("1"),
    "near_last": Decimal("0.9"),
    "resting": Decimal("0.5"),
}
"""Part of an order that fills: all of a hard one, nine tenths of a soft one, half of any other."""


class RigOrderState(enum.StrEnum):
    """Where an order is in its life."""

    ACCEPTED = "ACCEPTED"
    WORKING = "WORKING"
    PARTIAL_FILL = "PARTIAL_FILL"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


LIVE: Final = frozenset({RigOrderState.ACCEPTED, RigOrderState.WORKING, RigOrderState.PARTIAL_FILL})


@dataclass(slots=True)
class RigOrder:
    """One order. ``filled`` and ``quantity`` are absolute; ``urgency`` is a key of :data:`FILL_RATIOS`."""

    order_id: str
    intent_id: str
    symbol: str
    bucket: str
    side: str
    quantity: Decimal
    price: Decimal
    urgency: str
    state: RigOrderState = RigOrderState.ACCEPTED
    filled: Decimal = Decimal(0)

    @property
    def remaining(self) -> Decimal:
        """What may still fill; 0 once it is over."""
        return self.quantity - self.filled if self.state in LIVE else Decimal(0)


class OrderError(ValueError):
    """An order cannot do what is asked of it; the message says why."""


class OrderRegistry:
    """Every order, by its id, its intent, its symbol and its side. The same intent never makes two orders."""

    def __init__(self) -> None:
        self._by_id: dict[str, RigOrder] = {}
        self._by_intent: dict[str, RigOrder] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def submit(
        self,
        intent_id: str,
        *,
        symbol: str,
        bucket: str,
        side: str,
        quantity: Decimal,
        price: Decimal,
        urgency: str,
        rejected: bool = False,
    ) -> tuple[RigOrder, bool]:
        """Make an order of an intent, or return the one that it made before.

        Returns:
            The order, and whether this call made it.

        Raises:
            OrderError: the registry is full.
        """
        known = self._by_intent.get(intent_id)
        if known is not None:
            return known, False
        if len(self._by_id) >= MAX_ORDERS:
            raise OrderError(f"the registry holds {MAX_ORDERS} orders already")
        order = RigOrder(f"O{len(self._by_id) + 1:05d}", intent_id, symbol, bucket, side, quantity, price, urgency)
        if rejected:
            order.state = RigOrderState.REJECTED
        self._by_id[order.order_id] = self._by_intent[intent_id] = order
        return order, True

    def acknowledge(self, order_id: str) -> RigOrder:
        """The venue has it: ACCEPTED becomes WORKING.

        Raises:
            OrderError: it does not exist or is past that.
        """
        order = self._one(order_id)
        if order.state is not RigOrderState.ACCEPTED:
            raise OrderError(f"{order_id} is {order.state}, so it cannot be acknowledged")
        order.state = RigOrderState.WORKING
        return order

    def fill(self, order_id: str) -> Decimal:
        """Fill the part that its urgency says, once; return how much.

        Raises:
            OrderError: it does not exist or is not working.
        """
        order = self._one(order_id)
        if order.state is not RigOrderState.WORKING:
            raise OrderError(f"{order_id} is {order.state}, so it cannot fill")
        order.filled = order.quantity * FILL_RATIOS[order.urgency]
        order.state = RigOrderState.FILLED if order.filled == order.quantity else RigOrderState.PARTIAL_FILL
        return order.filled

    def cancel(self, order_id: str) -> bool:
        """Cancel what remains. False when it was over already.

        Raises:
            OrderError: it does not exist.
        """
        order = self._one(order_id)
        if order.state not in LIVE:
            return False
        order.state = RigOrderState.CANCELED
        return True

    def replace(self, order_id: str, intent_id: str, *, quantity: Decimal, price: Decimal) -> RigOrder:
        """Cancel, have it acknowledged, and send a new order in its place.

        Raises:
            OrderError: it does not exist or is over: an order that has just filled must not be sent again.
        """
        old = self._one(order_id)
        known = self._by_intent.get(intent_id)
        if known is not None:
            return known
        if not self.cancel(order_id):
            raise OrderError(f"{order_id} is {old.state}, so it cannot be replaced")
        new, _ = self.submit(
            intent_id,
            symbol=old.symbol,
            bucket=old.bucket,
            side=old.side,
            quantity=quantity,
            price=price,
            urgency=old.urgency,
        )
        return self.acknowledge(new.order_id)

    def find(self, *, symbol: str | None = None, side: str | None = None, live_only: bool = False) -> list[RigOrder]:
        """Return the orders of a symbol and a side, oldest first; all of them when neither is given."""
        return [
            order
            for order in self._by_id.values()
            if symbol in (None, order.symbol) and side in (None, order.side) and (order.state in LIVE or not live_only)
        ]

    def by_intent(self, intent_id: str) -> RigOrder | None:
        """Return the order that an intent made."""
        return self._by_intent.get(intent_id)

    def _one(self, order_id: str) -> RigOrder:
        order = self._by_id.get(order_id)
        if order is None:
            raise OrderError(f"there is no order {order_id}")
        return order
