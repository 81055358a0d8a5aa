"""Quantities and prices as the exact decimals that they are written as.

They come as floats. Kept as decimals, buying 0.1 and 0.2 and selling 0.3 is flat, not 5.6e-17, and a running total does
not drift however many fills it has seen.
"""

from __future__ import annotations

from decimal import Context, Decimal

EXACT = Context(prec=60)
"""Sums and products of realistic quantities and prices are exact in 60 digits."""

ZERO = Decimal(0)


def exact(value: float) -> Decimal:
    """The decimal that a float is written as: 0.1 is one tenth."""
    return Decimal(repr(float(value)))
