"""Positions valued at mark prices, which come from outside and may be anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import NamedTuple

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.position_book import Held
from killswitch.risk.order_inputs import finite_number

MarkPriceSource = Callable[[str], float]
"""Price of a symbol in USD; called without any lock held."""

_INFINITY = math.inf


class MarkFault(Exception):
    """The mark price of a symbol is not usable; the message says what came instead."""


def mark_price(source: MarkPriceSource, symbol: str) -> float:
    """Ask the mark price source.

    Raises:
        MarkFault: it raised, or answered anything but a finite positive number.
    """
    try:
        answer = source(symbol)
        price = answer if answer.__class__ is float and 0.0 < answer < _INFINITY else finite_number(answer)
    except Exception as error:  # whatever a price source raises, the price is unknown
        raise MarkFault(f"the mark price of {symbol} is unknown: its source raised {error!r}") from error
    if price is None or price <= 0.0:
        raise MarkFault(f"the mark price of {symbol} is not a finite number above 0")
    return price


def marked_total(
    source: MarkPriceSource, others: Mapping[str, Exposed], *, beside_usd: Decimal, sure_usd: float
) -> Decimal:
    """Sum of worst cases at mark prices: in floats where that decides, else in exact decimals.

    Args:
        source: of the mark prices; asked for the symbols that are held or that orders sell, and for no other.
        others: what is held and working, by symbol.
        beside_usd: what the sum will be added to.
        sure_usd: up to this, floats decide.

    Raises:
        MarkFault: as :func:`mark_price`.
    """
    marked = [
        (one, mark_price(source, symbol) if one.held or one.sells_quantity else 0.0) for symbol, one in others.items()
    ]
    rough_usd = math.fsum(one.rough_usd(mark) for one, mark in marked)
    if rough_usd + float(beside_usd) <= sure_usd:
        return Decimal(rough_usd)
    total = ZERO
    for one, mark in marked:
        total = EXACT.add(total, one.exact_usd(mark))
    return total


class Exposed(NamedTuple):
    """What is held of one symbol and works in it, at one moment. USD of working orders are what each counts at.

    A sell fills at its price or at a better one, so what is sold is worth the mark where that is more.
    """

    held: Held | None
    buys_usd: Decimal
    sells_usd: Decimal
    sells_quantity: Decimal

    def rough_usd(self, mark: float) -> float:
        """The worst case at this mark price, in floats."""
        signed = self.held.quantity * mark if self.held else 0.0
        sells_usd = max(float(self.sells_usd), float(self.sells_quantity) * mark)
        return max(signed + float(self.buys_usd), sells_usd - signed)

    def exact_usd(self, mark: float) -> Decimal:
        """The worst case at this mark price."""
        value = exact(mark)
        signed = EXACT.multiply(self.held.exact_quantity, value) if self.held else ZERO
        sells_usd = max(self.sells_usd, EXACT.multiply(self.sells_quantity, value))
        return max(EXACT.add(signed, self.buys_usd), EXACT.subtract(sells_usd, signed))
