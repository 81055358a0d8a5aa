"""Amounts as exact decimals within stated bounds: what is outside them is unknown, not rounded."""

from __future__ import annotations

import math
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

from killswitch.risk.exact import ZERO, exact
from killswitch.risk.order_inputs import finite_number

LARGEST: Final = Decimal(10) ** 15
"""No quantity, price, multiplier or Greek is larger."""

LARGEST_EQUITY_USD: Final = Decimal(10) ** 18

MOST_DECIMAL_PLACES: Final = 30
"""No amount has more decimal places, trailing zeros apart."""

_MOST_DIGITS: Final = 100
_SHORTEST_FLOAT: Final = 1e-13  # a float has at most 17 digits, so from here on it has at most 30 decimal places
_LARGEST_FLOAT: Final = 1e15

SUMS: Final = Context(prec=600, traps=[Inexact, InvalidOperation])
"""Sums and products of amounts within these bounds are exact; one that were not would raise, never drift."""

_QUOTIENTS: Final = Context(prec=50)
_HUNDRED: Final = Decimal(100)


def amount(value: object, largest: Decimal = LARGEST) -> Decimal | None:
    """Return the decimal that a number is written as, ``None`` for what is not finite, not a number or out of bounds.

    A float is what its shortest text says: 0.1 is one tenth. A decimal is taken as it is.
    """
    if isinstance(value, float) and _SHORTEST_FLOAT <= value <= _LARGEST_FLOAT:
        return exact(value)
    if isinstance(value, Decimal):
        found = value
    else:
        number = finite_number(value)
        if number is None:
            return None
        found = exact(number)
    if not found.is_finite() or found.copy_abs() > largest:
        return None
    if not found:
        return ZERO
    _, digits, exponent = found.as_tuple()
    places = -exponent if isinstance(exponent, int) else 0
    trailing_zeros = next((count for count, digit in enumerate(reversed(digits)) if digit), len(digits))
    return found if len(digits) <= _MOST_DIGITS and places - trailing_zeros <= MOST_DECIMAL_PLACES else None


def percentage(usd: Decimal, equity_usd: Decimal | None) -> float:
    """Return per cent of equity: NaN without a known equity, infinity for one of 0 or less.

    An equity of 0 or less carries nothing, not even an empty book: its percentages are infinite, never 0.
    """
    if equity_usd is None:
        return math.nan
    if equity_usd <= 0:
        return math.inf
    return float(_QUOTIENTS.multiply(_QUOTIENTS.divide(usd, equity_usd), _HUNDRED))
