"""What comes in from outside as an order, read and checked: sides, numbers, names. Nothing here is ever raised."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from agents.risk.exact import exact
from agents.risk.limits import OrderRefused, RefusalKind

SIGNS: Mapping[str, int] = {"buy": 1, "BUY": 1, "Buy": 1, "sell": -1, "SELL": -1, "Sell": -1}
"""+1 for every accepted spelling of a buy, -1 for every one of a sell."""


@dataclass(frozen=True, slots=True)
class ReadOrder:
    """An order whose numbers make sense; the price is ``None`` when none was given."""

    symbol: str
    sign: int
    quantity: Decimal
    price: float | None


def read_order(symbol: object, side: object, qty: object, price: object) -> ReadOrder | OrderRefused:
    """Return the order, or the refusal (``bad_input``) that says what of it makes no sense."""
    sign, quantity, paid = side_sign(side), finite_number(qty), finite_number(price)
    if not isinstance(symbol, str) or not symbol:  # not is_name: the type checker follows isinstance only
        return refused("bad_input", symbol, f"an order needs the name of a symbol; {symbol!r} is none")
    if sign is None:
        return refused("bad_input", symbol, f"{symbol}: side {side!r} is neither buy nor sell")
    if quantity is None or quantity <= 0.0:
        return refused("bad_input", symbol, f"{symbol}: quantity {qty!r} is not a finite number above 0")
    if price is not None and (paid is None or paid <= 0.0):
        return refused("bad_input", symbol, f"{symbol}: price {price!r} is not a finite number above 0")
    return ReadOrder(symbol, sign, exact(quantity), paid)


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


def is_name(symbol: object) -> bool:
    """True for text that is not empty."""
    return isinstance(symbol, str) and bool(symbol)


def text_or_none(value: object) -> str | None:
    """Return any value as text, ``None`` as itself."""
    return None if value is None else str(value)


def refused(kind: RefusalKind, symbol: object, sentence: str) -> OrderRefused:
    """Return a refusal that no limit is the cause of."""
    return OrderRefused(kind, None, None, str(symbol), sentence)
