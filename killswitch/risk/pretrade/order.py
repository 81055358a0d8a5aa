"""An order as the pre-trade controls see it, and what a control is."""

from __future__ import annotations

from typing import Protocol

from killswitch.risk.pretrade.watched_price import WatchedPrice
from killswitch.risk.refusal import OrderRefused


class PretradeOrder:
    """An order whose name, side and numbers make sense.

    Attributes:
        symbol: name of the instrument.
        sign: +1 for a buy, -1 for a sell.
        qty: quantity, greater than 0; of an amendment the whole new quantity.
        price: USD, ``None`` for a market order.
        strategy: whose order it is, ``""`` when nobody said.
        now_ns: when it is judged, on the clock of the controls.
        watched: the newest price of the symbol, ``None`` when none has come.
        amends: True for a change of an order that works already.
        grows: True when it asks for more than works already: a new order, and an amendment to a larger quantity.
        own_id: id of the order that is amended, ``None`` for a new one.
        ended_ns: when the controls had let it pass, on the same clock.
        counted_by: the controls that have counted it; they alone can take it back, whatever the settings are then.
    """

    __slots__ = (
        "amends", "counted_by", "ended_ns", "grows", "now_ns", "own_id", "price", "qty", "sign", "strategy", "symbol",
        "watched",
    )  # fmt: skip

    now_ns: int
    ended_ns: int
    watched: WatchedPrice | None
    counted_by: tuple[CountingControl, ...]

    def __init__(
        self,
        symbol: str,
        sign: int,
        qty: float,
        price: float | None,
        strategy: str,
        amends: bool = False,
    ) -> None:
        self.symbol = symbol
        self.sign = sign
        self.qty = qty
        self.price = price
        self.strategy = strategy
        self.amends = amends
        self.grows = True
        self.own_id: str | None = None


class PretradeRule(Protocol):
    """One control; a team's own rule is one too.

    It is asked on the thread that sends the order. What it raises, an answer that is neither, and an answer that came
    too late count as a breach.
    """

    name: str

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Return why the order must not go, ``None`` when it may. Must change nothing: it is asked for what-ifs too."""


class CountingControl(PretradeRule, Protocol):
    """A control that remembers the orders that went."""

    def count(self, order: PretradeOrder) -> None:
        """The order goes."""

    def take_back(self, order: PretradeOrder) -> None:
        """The order that was counted does not go after all."""
