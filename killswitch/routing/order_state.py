"""The life of an order as a pure table: state and event give the next state, or nothing when that cannot be."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class OrderState(enum.Enum):
    """Where an order stands. ``PENDING``: it may or may not have reached the venue, so it counts as working."""

    PENDING = "PENDING"
    WORKING = "WORKING"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"

    @property
    def is_final(self) -> bool:
        """True when the venue can fill nothing of it any more."""
        return self in _FINAL


class OrderEvent(enum.Enum):
    """What can happen to an order at a venue."""

    ACK = "ACK"
    PARTIAL_FILL = "PARTIAL_FILL"
    FULL_FILL = "FULL_FILL"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


_FINAL = frozenset({OrderState.FILLED, OrderState.CANCELED, OrderState.REJECTED})

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
