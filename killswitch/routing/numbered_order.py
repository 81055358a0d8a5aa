"""What an order router remembers of one order that it numbered."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from killswitch.risk.exact import EXACT, exact
from killswitch.routing.order_state import OrderState
from killswitch.routing.order_types import OpenOrder, Order


@dataclass(slots=True, eq=False)
class NumberedOrder:
    """What the router knows of one order it numbered. Changed under the registry's lock only."""

    order: Order
    sign: int
    state: OrderState = OrderState.PENDING
    filled: Decimal = Decimal(0)
    handed_over: bool = False
    withdrawn: bool = False
    cancel_when_handed_over: bool = False
    cancelling: bool = False
    cancel_failures: int = 0

    @property
    def is_over(self) -> bool:
        """True when the venue can fill nothing of it any more."""
        return self.withdrawn or self.state.is_final

    @property
    def remaining(self) -> float:
        """Quantity that is not filled yet, never below 0."""
        return float(max(EXACT.subtract(exact(self.order.qty), self.filled), Decimal(0)))

    def report(self) -> OpenOrder:
        """Return the order as a report shows it."""
        order = self.order
        return OpenOrder(
            order.client_order_id, order.symbol, order.side, order.price, self.remaining, self.state, order.sequence
        )
