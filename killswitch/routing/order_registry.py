"""Orders by intent: the steps that a registry takes them, what it keeps, and fills that are the same in every run.

Which state follows which is :mod:`killswitch.routing.order_state`'s; a registry says its words, ACCEPTED to FILLED.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from killswitch.routing.order_state import OrderEvent, OrderState, next_state

MAX_ORDERS: Final = 10_000

FILL_RATIOS: Final = {
    "cross_spread": Decimal("1"),
    "near_last": Decimal("0.9"),
    "resting": Decimal("0.5"),
}
"""Part of an order that fills: all of a hard one, nine tenths of a soft one, half of any other."""


@dataclass(frozen=True, slots=True)
class RegisteredOrder:
    """One order as it stood when it was asked for.

    ``filled`` and ``quantity`` are absolute; ``urgency`` is a key of :data:`FILL_RATIOS`.
    """

    order_id: str
    intent_id: str
    symbol: str
    bucket: str
    side: str
    quantity: Decimal
    price: Decimal
    urgency: str
    state: OrderState = OrderState.ACCEPTED
    filled: Decimal = Decimal(0)

    @property
    def is_live(self) -> bool:
        """True while it may still fill."""
        return not self.state.is_final

    @property
    def remaining(self) -> Decimal:
        """What may still fill; 0 once it is over."""
        return self.quantity - self.filled if self.is_live else Decimal(0)


class OrderError(ValueError):
    """An order cannot do what is asked of it; the message says why."""


class RegistryUnavailable(Exception):
    """The registry did not answer, or refuses; what was asked of it may have happened."""


# -- the steps of a life: each takes an order and returns it as it is afterwards --------------------------------------


def acknowledged(order: RegisteredOrder) -> RegisteredOrder:
    """The venue has it: ACCEPTED becomes WORKING.

    Raises:
        OrderError: it is past that.
    """
    state = next_state(order.state, OrderEvent.ACK)
    # An acknowledgement that says nothing new is for a venue to send twice, and not for whoever keeps the order.
    if state is None or state is order.state:
        raise OrderError(f"{order.order_id} is {order.state.word}, so it cannot be acknowledged")
    return replace(order, state=state)


def filled(order: RegisteredOrder) -> RegisteredOrder:
    """The part that its urgency says has filled.

    Raises:
        OrderError: it is not working.
    """
    quantity = order.quantity * FILL_RATIOS[order.urgency]
    event = OrderEvent.FULL_FILL if quantity == order.quantity else OrderEvent.PARTIAL_FILL
    state = next_state(order.state, event)
    # The table has fills that overtake the acknowledgement, and second ones; here an order fills once, when it works.
    if order.state is not OrderState.WORKING or state is None:
        raise OrderError(f"{order.order_id} is {order.state.word}, so it cannot fill")
    return replace(order, state=state, filled=quantity)


def cancelled(order: RegisteredOrder) -> RegisteredOrder:
    """What remained is cancelled; one that was over stays as it is."""
    return replace(order, state=next_state(order.state, OrderEvent.CANCELED) or order.state)


# -- registries -------------------------------------------------------------------------------------------------------


class OrderRegistry(ABC):
    """Every order, by its id, its intent, its symbol and its side. The same intent never makes two orders.

    May be shared by threads. What it returns are orders as they stood then; a step that somebody else has made in
    between is never undone, because each is written only over the state that it was taken from.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def by_id(self, order_id: str) -> RegisteredOrder | None:
        """Return an order as it stands."""

    @abstractmethod
    def by_intent(self, intent_id: str) -> RegisteredOrder | None:
        """Return the order that an intent made."""

    @abstractmethod
    def find(
        self, *, symbol: str | None = None, side: str | None = None, live_only: bool = False
    ) -> list[RegisteredOrder]:
        """Return the orders of a symbol and a side, oldest first; all of them when neither is given."""

    @abstractmethod
    def _make(self, draft: RegisteredOrder, replaced: RegisteredOrder | None) -> tuple[RegisteredOrder, bool] | None:
        """At one instant: return the order of the draft's intent, or make it and cancel the one that it replaces.

        Returns:
            The order with its id, and whether this call made it; ``None``, and nothing was done, when the order to be
            replaced does not stand as it did.

        Raises:
            OrderError: the registry is full; nothing was done.
        """

    @abstractmethod
    def _change(self, before: RegisteredOrder, after: RegisteredOrder) -> bool:
        """Write an order's next state over the one that it had. False, and nothing was done, when it has another."""

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
    ) -> tuple[RegisteredOrder, bool]:
        """Make an order of an intent, or return the one that it made before.

        Returns:
            The order, and whether this call made it.

        Raises:
            OrderError: the registry is full.
        """
        state = OrderState.REJECTED if rejected else OrderState.ACCEPTED
        made = self._make(RegisteredOrder("", intent_id, symbol, bucket, side, quantity, price, urgency, state), None)
        assert made is not None, "where nothing is replaced nothing can stand in the way"
        return made

    def acknowledge(self, order_id: str) -> RegisteredOrder:
        """The venue has it: ACCEPTED becomes WORKING.

        Raises:
            OrderError: it does not exist or is past that.
        """
        return self._step(order_id, acknowledged)[0]

    def fill(self, order_id: str) -> Decimal:
        """Fill the part that its urgency says, once; return how much.

        Raises:
            OrderError: it does not exist or is not working.
        """
        return self._step(order_id, filled)[0].filled

    def cancel(self, order_id: str) -> bool:
        """Cancel what remains. False when it was over already.

        Raises:
            OrderError: it does not exist.
        """
        return self._step(order_id, cancelled)[1]

    def replace(self, order_id: str, intent_id: str, *, quantity: Decimal, price: Decimal) -> RegisteredOrder:
        """Cancel, have it acknowledged, and send a new order in its place.

        Raises:
            OrderError: it does not exist or is over: an order that has just filled must not be sent again.
        """
        for _ in OrderState:
            old = self._one(order_id)
            known = self.by_intent(intent_id)
            if known is not None:
                return known
            if not old.is_live:
                raise OrderError(f"{order_id} is {old.state.word}, so it cannot be replaced")
            draft = RegisteredOrder("", intent_id, old.symbol, old.bucket, old.side, quantity, price, old.urgency)
            made = self._make(draft, old)
            if made is not None:
                new, is_new = made
                return self.acknowledge(new.order_id) if is_new else new
        raise _restless(order_id)

    def _step(self, order_id: str, step: Callable[[RegisteredOrder], RegisteredOrder]) -> tuple[RegisteredOrder, bool]:
        """Take an order one step on from where it stands; return it, and whether anything changed."""
        # A life goes through each state once at most, so nobody can be in the way more often than that.
        for _ in OrderState:
            before = self._one(order_id)
            after = step(before)
            if after == before:
                return before, False
            if self._change(before, after):
                return after, True
        raise _restless(order_id)

    def _one(self, order_id: str) -> RegisteredOrder:
        order = self.by_id(order_id)
        if order is None:
            raise OrderError(f"there is no order {order_id}")
        return order


class MemoryOrderRegistry(OrderRegistry):
    """A registry that ends with its process."""

    def __init__(self) -> None:
        self._by_id: dict[str, RegisteredOrder] = {}
        self._ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_id)

    def by_id(self, order_id: str) -> RegisteredOrder | None:
        return self._by_id.get(order_id)

    def by_intent(self, intent_id: str) -> RegisteredOrder | None:
        order_id = self._ids.get(intent_id)
        return None if order_id is None else self._by_id[order_id]

    def find(
        self, *, symbol: str | None = None, side: str | None = None, live_only: bool = False
    ) -> list[RegisteredOrder]:
        with self._lock:
            orders = list(self._by_id.values())
        return [
            order
            for order in orders
            if symbol in (None, order.symbol) and side in (None, order.side) and (order.is_live or not live_only)
        ]

    def _make(self, draft: RegisteredOrder, replaced: RegisteredOrder | None) -> tuple[RegisteredOrder, bool] | None:
        with self._lock:
            known = self._ids.get(draft.intent_id)
            if known is not None:
                return self._by_id[known], False
            if replaced is not None and self._by_id[replaced.order_id] != replaced:
                return None
            if len(self._by_id) >= MAX_ORDERS:
                raise registry_full()
            order = replace(draft, order_id=order_id_of(len(self._by_id) + 1))
            if replaced is not None:
                self._by_id[replaced.order_id] = cancelled(replaced)
            self._by_id[order.order_id] = order
            self._ids[order.intent_id] = order.order_id
            return order, True

    def _change(self, before: RegisteredOrder, after: RegisteredOrder) -> bool:
        with self._lock:
            if self._by_id[before.order_id] != before:
                return False
            self._by_id[before.order_id] = after
            return True


def order_id_of(number: int) -> str:
    """The id of the order that came as the ``number``-th."""
    return f"O{number:05d}"


def registry_full() -> OrderError:
    """What a registry says that takes no more."""
    return OrderError(f"the registry holds {MAX_ORDERS} orders already")


def _restless(order_id: str) -> OrderError:
    return OrderError(f"{order_id} was changed by somebody else at every attempt, against the order of its states")
