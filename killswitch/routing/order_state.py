"""The life of an order, written once: routers, registries and rehearsals all go by this table.

The table is pure: state and event give the next state, or nothing when that cannot be. Beside it stands what a router
remembers of one order on its way through that life.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Self

from killswitch.risk.exact import EXACT, exact
from killswitch.routing.order_types import Order


class OrderState(enum.Enum):
    """Where an order stands. ``PENDING``: it may or may not have reached the venue, so it counts as working.

    A registry, and whoever reads one, says ACCEPTED for ``PENDING`` and PARTIAL_FILL for ``PARTIALLY_FILLED``; both are
    names of the same state here.
    """

    PENDING = "PENDING"
    WORKING = "WORKING"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"

    ACCEPTED = PENDING
    PARTIAL_FILL = PARTIALLY_FILLED

    @property
    def is_final(self) -> bool:
        """True when the venue can fill nothing of it any more."""
        return self in _FINAL

    @property
    def word(self) -> str:
        """What registries write down for it and rehearsals show."""
        return _WORDS.get(self, self.value)

    @classmethod
    def of_word(cls, word: str) -> Self:
        """Return the state that a registry has written down.

        Raises:
            ValueError: no state has that word.
        """
        for state in cls:
            if state.word == word:
                return state
        raise ValueError(f"{word!r} is no state of an order")


class OrderEvent(enum.Enum):
    """What can happen to an order at a venue."""

    ACK = "ACK"
    PARTIAL_FILL = "PARTIAL_FILL"
    FULL_FILL = "FULL_FILL"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


_FINAL = frozenset({OrderState.FILLED, OrderState.CANCELED, OrderState.REJECTED})

# Redis holds these words: they stay readable, whatever a state is called here.
_WORDS: Mapping[OrderState, str] = MappingProxyType(
    {OrderState.PENDING: "ACCEPTED", OrderState.PARTIALLY_FILLED: "PARTIAL_FILL"}
)

TRANSITIONS: Mapping[tuple[OrderState, OrderEvent], OrderState] = MappingProxyType(
    {
        (OrderState.PENDING, OrderEvent.ACK): OrderState.WORKING,
        # A fill may overtake the acknowledgement: venues send the two on different channels.
        (OrderState.PENDING, OrderEvent.PARTIAL_FILL): OrderState.PARTIALLY_FILLED,
        (OrderState.PENDING, OrderEvent.FULL_FILL): OrderState.FILLED,
        (OrderState.PENDING, OrderEvent.CANCELED): OrderState.CANCELED,
        (OrderState.PENDING, OrderEvent.REJECTED): OrderState.REJECTED,
        (OrderState.WORKING, OrderEvent.ACK): OrderState.WORKING,
        (OrderState.WORKING, OrderEvent.PARTIAL_FILL): OrderState.PARTIALLY_FILLED,
        (OrderState.WORKING, OrderEvent.FULL_FILL): OrderState.FILLED,
        (OrderState.WORKING, OrderEvent.CANCELED): OrderState.CANCELED,
        (OrderState.WORKING, OrderEvent.REJECTED): OrderState.REJECTED,
        (OrderState.PARTIALLY_FILLED, OrderEvent.ACK): OrderState.PARTIALLY_FILLED,
        (OrderState.PARTIALLY_FILLED, OrderEvent.PARTIAL_FILL): OrderState.PARTIALLY_FILLED,
        (OrderState.PARTIALLY_FILLED, OrderEvent.FULL_FILL): OrderState.FILLED,
        (OrderState.PARTIALLY_FILLED, OrderEvent.CANCELED): OrderState.CANCELED,
        # Late acknowledgements of what is over say nothing new.
        (OrderState.FILLED, OrderEvent.ACK): OrderState.FILLED,
        (OrderState.CANCELED, OrderEvent.ACK): OrderState.CANCELED,
    }
)
"""Every step that an order can take. No final state is ever left."""


def next_state(state: OrderState, event: OrderEvent) -> OrderState | None:
    """Return the state after the event, ``None`` when the venue says something that cannot be.

    After ``None`` the caller keeps the state and reports the contradiction; a fill still counts in the position.
    """
    return TRANSITIONS.get((state, event))


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order that the venue may still fill, as a report shows it."""

    client_order_id: str
    symbol: str
    side: str
    price: float
    remaining: float
    state: OrderState
    sequence: int


@dataclass(slots=True, eq=False)
class NumberedOrder:
    """What the router knows of one order it numbered. Changed under the registry's lock only."""

    order: Order
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
