"""What one unit of an instrument adds to the exposure.

Of an option the delta counts as so much of the underlying; gamma and vega are figures beside it. The Greeks are given,
not computed here, and so are their conventions: delta per one unit of the underlying, gamma per one USD of the
underlying, vega per one point of volatility (from 20 % to 21 %), all of *one* option on *one* unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from killswitch.risk.exact import ZERO
from killswitch.risk.exposure.exposure_numbers import SUMS, amount

_HUNDRED: Final = Decimal(100)


@dataclass(frozen=True, slots=True)
class OptionGreeks:
    """What one option on one unit of its underlying is worth in risk.

    Attributes:
        delta: change of the option's price in USD per USD of the underlying; 0 to 1 for a call, -1 to 0 for a put.
        gamma: change of delta per USD of the underlying; not negative.
        vega: change of the option's price in USD per point of volatility; not negative.
        underlying_price: USD, the price that they were computed at.

    Raises:
        ValueError: a number is not finite or cannot be. A Greek that came as NaN must not become an exposure of 0.
    """

    delta: float
    gamma: float
    vega: float
    underlying_price: float

    def __post_init__(self) -> None:
        delta, gamma, vega = (amount(value) for value in (self.delta, self.gamma, self.vega))
        price = amount(self.underlying_price)
        if delta is None or not -1 <= delta <= 1:
            raise ValueError(f"delta {self.delta!r} is not a number from -1 to 1")
        if gamma is None or gamma < 0:
            raise ValueError(f"gamma {self.gamma!r} is not a finite number of at least 0")
        if vega is None or vega < 0:
            raise ValueError(f"vega {self.vega!r} is not a finite number of at least 0")
        if price is None or price <= 0:
            raise ValueError(f"underlying_price {self.underlying_price!r} is not a finite number above 0")


@dataclass(frozen=True, slots=True)
class Unit:
    """What one unit of quantity adds to the exposure, in USD.

    Attributes:
        usd: signed, of a long unit: a put is a short exposure.
        price_multiplier: what an order's own price is multiplied by to be compared with ``usd``; ``None`` for an
            option, whose price is a premium and says nothing of its exposure.
        gamma_usd_per_pct: by how much ``usd`` grows when the underlying rises by one per cent.
        vega_usd_per_point: by how much its value grows in USD when volatility rises by one point.
    """

    usd: Decimal
    price_multiplier: Decimal | None
    gamma_usd_per_pct: Decimal = ZERO
    vega_usd_per_point: Decimal = ZERO


def linear_unit(price: Decimal, multiplier: Decimal) -> Unit:
    """Return what one share, coin or contract of a future adds.

    Args:
        price: USD per unit of the underlying.
        multiplier: units of the underlying in one contract, 1 for a share or coin.
    """
    return Unit(price if multiplier == 1 else SUMS.multiply(price, multiplier), multiplier)


def option_unit(greeks: OptionGreeks, multiplier: float) -> Unit:
    """Return what one contract adds.

    Args:
        greeks: of one option on one unit.
        multiplier: units of the underlying in one contract, above 0; 100 for a listed share option.

    Raises:
        ValueError: the multiplier is not a finite number above 0.
    """
    size = amount(multiplier)
    if size is None or size <= 0:
        raise ValueError(f"multiplier {multiplier!r} is not a finite number above 0")
    price = _known(greeks.underlying_price)
    squared = SUMS.multiply(price, price)
    gamma = SUMS.multiply(SUMS.multiply(_known(greeks.gamma), size), squared)
    return Unit(
        usd=SUMS.multiply(SUMS.multiply(_known(greeks.delta), size), price),
        price_multiplier=None,
        gamma_usd_per_pct=SUMS.divide(gamma, _HUNDRED),
        vega_usd_per_point=SUMS.multiply(_known(greeks.vega), size),
    )


def _known(value: float) -> Decimal:
    found = amount(value)
    if found is None:
        raise ValueError(f"{value!r} is not a finite number")
    return found
