"""What is held and working of one symbol in one bucket, and the most that it could come to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from killswitch.risk.exact import ZERO
from killswitch.risk.exposure.exposure_numbers import SUMS
from killswitch.risk.exposure.exposure_unit import Unit


class Contribution(NamedTuple):
    """What one sleeve adds to every sum, in USD; all exact. A tuple, since one is made at every event."""

    long_usd: Decimal = ZERO
    short_usd: Decimal = ZERO
    potential_usd: Decimal = ZERO
    gamma_usd_per_pct: Decimal = ZERO
    vega_usd_per_point: Decimal = ZERO


NOTHING = Contribution()


class WorkingSide:
    """The working orders of one side of a sleeve.

    Attributes:
        quantity: what they may still fill together.
        orders: how many they are.
        dearest: highest price of any that has worked since the side was empty last; an upper bound that is kept
            without looking through the orders.
    """

    __slots__ = ("dearest", "orders", "quantity")

    def __init__(self) -> None:
        self.quantity = ZERO
        self.orders = 0
        self.dearest = ZERO

    def add(self, quantity: Decimal, price: Decimal | None) -> None:
        """Add one order."""
        self.quantity = SUMS.add(self.quantity, quantity)
        self.orders += 1
        if price is not None and price > self.dearest:
            self.dearest = price

    def remove(self, quantity: Decimal) -> None:
        """Take one order away."""
        self.quantity = SUMS.subtract(self.quantity, quantity)
        self.orders -= 1
        if self.orders == 0:
            self.quantity = self.dearest = ZERO


@dataclass(slots=True)
class WorkingOrder:
    """One order that may still fill; ``sign`` is +1 for one that buys, ``price`` its limit in USD or ``None``."""

    symbol: str
    bucket: str
    sign: int
    remaining: Decimal
    price: Decimal | None


_NO_ORDERS = WorkingSide()
"""Shared by every side without orders, for most symbols have none; it is read only."""


class BucketPosition:
    """One symbol in one bucket. It has no lock: its owner's lock guards it.

    Attributes:
        quantity: signed.
        buys: working orders that buy.
        sells: working orders that sell.
        counted: what the sums hold of it now.
    """

    __slots__ = ("buys", "counted", "quantity", "sells")

    def __init__(self) -> None:
        self.quantity = ZERO
        self.buys = _NO_ORDERS
        self.sells = _NO_ORDERS
        self.counted = NOTHING

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held and nothing works."""
        return self.quantity == 0 and self.buys.orders == 0 and self.sells.orders == 0

    def side(self, sign: int) -> WorkingSide:
        """The side of a sign, to be changed: +1 buys, -1 sells."""
        if sign > 0:
            if self.buys is _NO_ORDERS:
                self.buys = WorkingSide()
            return self.buys
        if self.sells is _NO_ORDERS:
            self.sells = WorkingSide()
        return self.sells

    def work(self, order: WorkingOrder, remaining: Decimal) -> None:
        """Change what remains of an order of this bucket and symbol."""
        side = self.side(order.sign)
        if order.remaining > 0:
            if remaining > 0:
                side.quantity = SUMS.add(SUMS.subtract(side.quantity, order.remaining), remaining)
            else:
                side.remove(order.remaining)
        elif remaining > 0:
            side.add(remaining, order.price)
        order.remaining = remaining

    def contribution(self, unit: Unit) -> Contribution:
        """Return what the sleeve adds at a value of one unit; pure."""
        value = SUMS.multiply(self.quantity, unit.usd)
        is_long = value > 0
        return Contribution(
            long_usd=value if is_long else ZERO,
            short_usd=ZERO if is_long else value.copy_abs(),
            potential_usd=self._potential(unit),
            gamma_usd_per_pct=SUMS.multiply(self.quantity, unit.gamma_usd_per_pct) if unit.gamma_usd_per_pct else ZERO,
            vega_usd_per_point=(
                SUMS.multiply(self.quantity, unit.vega_usd_per_point) if unit.vega_usd_per_point else ZERO
            ),
        )

    def _potential(self, unit: Unit) -> Decimal:
        """The most over every subset of the working orders, each filled wholly or in part.

        The exposure is convex in the quantity, so its most lies at an end: all buys and no sell, or all sells and no
        buy. What an order adds *beyond flat* counts at its own price where that is dearer than the mark: it can only
        fill when the market is there, and then a unit is worth that.
        """
        held = self.quantity
        unit_usd = unit.usd.copy_abs()
        most = SUMS.multiply(held.copy_abs(), unit_usd)
        for side, held_this_way in ((self.buys, held), (self.sells, held.copy_negate())):
            if side.orders == 0:
                continue
            filled = SUMS.add(held_this_way, side.quantity)
            if filled <= 0:  # they only reduce
                continue
            dearest_usd = unit_usd
            if unit.price_multiplier is not None:
                dearest_usd = max(unit_usd, SUMS.multiply(side.dearest, unit.price_multiplier))
            before = max(held_this_way, ZERO)
            added = SUMS.subtract(filled, before)
            most = max(most, SUMS.add(SUMS.multiply(before, unit_usd), SUMS.multiply(added, dearest_usd)))
        return most
