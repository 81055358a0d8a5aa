"""Whose order it is, remembered with its reservation: a venue tells a fill by the order's id and knows no strategy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from agents.risk.limits import OrderRefused
from agents.risk.order_inputs import refused, text_or_none
from agents.risk.working_orders import MAX_WORKING_ORDERS

MAX_REMEMBERED = 2 * MAX_WORKING_ORDERS
"""Most orders whose strategy is remembered: all that can work, and as many that are over, for fills that come late."""


class OrderStrategies:
    """The strategy of every order that works and of the newest that are over. Every step is atomic by itself.

    Args:
        works: whether an order is reserved; such a one is never forgotten.
        most: orders remembered at once, beside those that work.
    """

    def __init__(self, works: Callable[[str], bool], *, most: int = MAX_REMEMBERED) -> None:
        self._works = works
        self._most = most
        self._of: OrderedDict[str, str] = OrderedDict()

    def remember(self, client_order_id: str, strategy: str) -> None:
        """The order is reserved."""
        self._of[client_order_id] = strategy
        for _ in range(2):  # one for the new one and one in place of an order that works, so that it never takes long
            if len(self._of) <= self._most:
                return
            oldest, its_strategy = self._of.popitem(last=False)
            if self._works(oldest):
                self._of[oldest] = its_strategy

    def of(self, client_order_id: object) -> str | None:
        """The strategy that an order was admitted for, ``""`` for none; ``None`` when it is not known."""
        return self._of.get(client_order_id) if isinstance(client_order_id, str) else None

    def executed(self, client_order_id: object, told: object) -> tuple[str, ...]:
        """The strategies that a fill counts for: the order's own, and another one if the fill names it.

        Args:
            client_order_id: the order's id, ``None`` when the fill has none.
            told: the strategy that the fill names, ``None`` or ``""`` when it names none.
        """
        own, other = self.of(text_or_none(client_order_id)) or "", str(told or "")
        return (own, other) if own and other and own != other else (own or other,)

    def to_json(self) -> dict[str, str]:
        """Return the strategies of the orders that work as JSON values."""
        return {order: strategy for order, strategy in list(self._of.items()) if strategy and self._works(order)}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`to_json` returned; what is known already stands.

        Raises:
            ValueError: a strategy is no text, or there are too many.
        """
        if len(data) > self._most:
            raise ValueError(f"{len(data)} orders with a strategy are more than can be kept")
        for order, strategy in data.items():
            if not isinstance(strategy, str):
                raise ValueError(f"the strategy of the order {order!r} is {strategy!r}")  # noqa: TRY004 - of the data
        for order, strategy in data.items():
            self._of.setdefault(order, strategy)


def read_strategy(symbol: object, strategy: object) -> str | OrderRefused:
    """Return the name as plain text, ``""`` for ``None``; the refusal (``bad_input``) when it is no text.

    Numbers are no names: ``7`` and ``"7"`` would be two strategies to one control and one to another.
    """
    if strategy is None:
        return ""
    if not isinstance(strategy, str):
        sentence = f"{symbol}: the strategy {strategy!r} is no text; name it as text, or leave it out"
        return refused("bad_input", symbol, sentence)
    return str.__str__(strategy)  # the text alone, whatever a kind of text of somebody's own makes of it


def another_strategy(symbol: str, client_order_id: str, own: str, told: str) -> OrderRefused:
    """The refusal of an amendment that names another strategy than its order has."""
    whose = f"of the strategy {own!r}" if own else "of no strategy"
    sentence = f"{symbol}: the order {client_order_id} is {whose}, not of {told!r}; amend it as what it is"
    return refused("bad_input", symbol, sentence)
