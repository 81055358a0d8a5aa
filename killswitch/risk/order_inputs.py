"""What comes in from outside as an order, read and checked: sides, numbers, names. Nothing here is ever raised."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from killswitch.risk.exact import exact
from killswitch.risk.refusal import OrderRefused, RefusalKind

SIGNS: Mapping[str, int] = {"buy": 1, "BUY": 1, "Buy": 1, "sell": -1, "SELL": -1, "Sell": -1}
"""+1 for every accepted spelling of a buy, -1 for every one of a sell."""

LARGEST_NUMBER = 1e15
"""No quantity and no price is above this. Beyond it a float does not tell neighbouring whole numbers apart for long,
and nothing that is traded is counted so: it is a fault of whoever sent it."""

SMALLEST_NUMBER = 1e-18
"""No quantity and no price is below this, one wei of an ether: so that sums of both ends stay exact."""

_PLAIN = (float, int)

RANGE_WORDS = "a finite number above 0 (1e-18 to 1e15)"


class ReadOrder:
    """An order whose name, side and numbers make sense. It is read once, at the door, and then passed on as it is.

    Args:
        symbol: name of the instrument.
        sign: +1 for a buy, -1 for a sell.
        qty: quantity in units of the symbol, in the range of :func:`in_range`.
        price: USD, likewise; ``None`` for a market order.
    """

    __slots__ = ("price", "qty", "sign", "symbol")

    def __init__(self, symbol: str, sign: int, qty: float, price: float | None) -> None:
        self.symbol = symbol
        self.sign = sign
        self.qty = qty
        self.price = price

    @property
    def side(self) -> Literal["buy", "sell"]:
        """The side in one word."""
        return "buy" if self.sign > 0 else "sell"

    @property
    def quantity(self) -> Decimal:
        """The quantity as an exact decimal."""
        return exact(self.qty)


class RestOfOrder(ReadOrder):
    """What may still fill of an order: a difference, so that it may have more digits than a float."""

    __slots__ = ("_rest",)

    def __init__(self, order: ReadOrder, rest: Decimal) -> None:
        super().__init__(order.symbol, order.sign, float(rest), order.price)
        self._rest = rest

    @property
    def quantity(self) -> Decimal:
        """The quantity as an exact decimal."""
        return self._rest


def read_order(symbol: Any, side: Any, qty: Any, price: Any) -> ReadOrder | OrderRefused:
    """Return the order, or the refusal (``bad_input``) that says what of it makes no sense."""
    plain = plain_sign(symbol, side, qty, 1.0 if price is None else price)
    if plain:
        return ReadOrder(symbol, plain, qty, price)
    sign, quantity, paid = side_sign(side), finite_number(qty), finite_number(price)
    if not isinstance(symbol, str) or not symbol:  # not is_name: the type checker follows isinstance only
        return refused("bad_input", symbol, f"an order needs the name of a symbol; {symbol!r} is none")
    if sign is None:
        return refused("bad_input", symbol, f"{symbol}: side {side!r} is neither buy nor sell")
    if quantity is None or not in_range(quantity):
        return refused("bad_input", symbol, f"{symbol}: quantity {qty!r} is not {RANGE_WORDS}")
    if price is not None and (paid is None or not in_range(paid)):
        return refused("bad_input", symbol, f"{symbol}: price {price!r} is not {RANGE_WORDS}")
    # The text alone: an Enum that is text is told by its name when it is printed, and by its text when it is looked up.
    return ReadOrder(str.__str__(symbol), sign, quantity, paid)


def plain_sign(symbol: object, side: Any, qty: Any, price: Any) -> int:
    """The sign of an order whose name, side and numbers are plain and in range; 0 for any other, sound or not."""
    try:
        if (
            symbol.__class__ is str
            and symbol
            and qty.__class__ in _PLAIN
            and price.__class__ in _PLAIN
            and SMALLEST_NUMBER <= qty <= LARGEST_NUMBER
            and SMALLEST_NUMBER <= price <= LARGEST_NUMBER
        ):
            return SIGNS.get(side, 0)
    except TypeError:  # a side that cannot be looked up
        pass
    return 0


def side_sign(side: object) -> int | None:
    """+1 for a buy, -1 for a sell, ``None`` for anything that is not one of the accepted spellings."""
    return SIGNS.get(side) if isinstance(side, str) else None


def finite_number(value: object) -> float | None:
    """Return a finite number as a float, ``None`` for everything else. Text is not a number, nor is a boolean."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def in_range(number: float) -> bool:
    """True for what can be a quantity or a price: from :data:`SMALLEST_NUMBER` to :data:`LARGEST_NUMBER`."""
    return SMALLEST_NUMBER <= number <= LARGEST_NUMBER


def is_name(symbol: object) -> bool:
    """True for text that is not empty."""
    return isinstance(symbol, str) and bool(symbol)


def text_or_none(value: object) -> str | None:
    """Return any value as text, ``None`` as itself."""
    return None if value is None else str(value)


def refused(kind: RefusalKind, symbol: object, sentence: str) -> OrderRefused:
    """Return a refusal that no limit is the cause of."""
    return OrderRefused(kind, None, None, str(symbol), sentence)
