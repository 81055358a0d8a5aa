"""Whose order it is, remembered with its reservation: a venue tells a fill by the order's id and knows no strategy."""

from __future__ import annotations

from collections import OrderedDict

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.order_inputs import refused, text_or_none
from killswitch.risk.refusal import OrderRefused

MAX_REMEMBERED = 10_000
"""Newest orders that were filled or are over of which the strategy is remembered, for fills that come late."""


class OrderStrategies:
    """The strategy of every order that works, and of the newest that were. Every step is atomic by itself.

    Args:
        monitor: which keeps the strategy of an order with its reservation.
        most: orders remembered that work no more.
    """

    def __init__(self, monitor: RuntimeRiskMonitor, *, most: int = MAX_REMEMBERED) -> None:
        self._monitor = monitor
        self._most = most
        self._were: OrderedDict[str, str] = OrderedDict()

    def of(self, client_order_id: object) -> str | None:
        """The strategy that an order was admitted for, ``""`` for none; ``None`` when it is not known."""
        if not isinstance(client_order_id, str):
            return None
        own = self._monitor.strategy_of(client_order_id)
        return self._were.get(client_order_id) if own is None else own

    def executed(self, client_order_id: object, told: object) -> tuple[str, ...]:
        """The strategies that a fill counts for: the order's own, and another one if the fill names it.

        Call it before the monitor is told the fill: an order may be over with it.

        Args:
            client_order_id: the order's id, ``None`` when the fill has none.
            told: the strategy that the fill names, ``None`` or ``""`` when it names none.
        """
        own, other = self.remember(text_or_none(client_order_id)) or "", str(told or "")
        return (own, other) if own and other and own != other else (own or other,)

    def remember(self, client_order_id: object) -> str | None:
        """Know the strategy of an order also when it is over, which it will be in a moment; return it."""
        own = self.of(client_order_id)
        if own is not None and isinstance(client_order_id, str):
            self._were[client_order_id] = own
            if len(self._were) > self._most:
                self._were.popitem(last=False)
        return own


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
