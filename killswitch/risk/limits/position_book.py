"""What is held of each symbol, and its exact total however many fills it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.order_inputs import LARGEST_NUMBER

MAX_SYMBOLS = 100_000
"""Most symbols that are held at once. A fill of one more cannot be added, and so freezes."""


class Positions(dict[str, float]):
    """Signed quantity per symbol; a symbol that is not held reads as 0.0 and is not among the keys."""

    def __missing__(self, symbol: str) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """A position that is not flat, exact, with the floats that the fast path compares."""

    exact_quantity: Decimal
    exact_notional: Decimal
    price: float
    quantity: float
    notional: float


class PositionBook:
    """Positions that are not flat, each valued at its last fill. It has no lock: its owner's lock guards it.

    Attributes:
        held: positions by symbol; one that is flat is not among them.
        exact_total_usd: sum of their notionals.
        total_usd: the same as a float.
    """

    __slots__ = ("exact_total_usd", "held", "total_usd")

    def __init__(self) -> None:
        """Start flat."""
        self.held: dict[str, Held] = {}
        self.exact_total_usd = ZERO
        self.total_usd = 0.0

    def add(self, symbol: str, change: Decimal, price: float) -> bool:
        """Add a signed quantity; False, and nothing is added, when the sum or the number of symbols is too large."""
        held = self.held.get(symbol)
        if held is None and len(self.held) >= MAX_SYMBOLS:
            return False
        quantity = EXACT.add(held.exact_quantity, change) if held else change
        if abs(float(quantity)) > LARGEST_NUMBER:
            return False
        self.replace(symbol, quantity, price)
        return True

    def replace(self, symbol: str, quantity: Decimal, price: float) -> None:
        """Replace one position and keep the running total exact."""
        before = self.held.pop(symbol, None) if quantity == 0 else self.held.get(symbol)
        total = EXACT.subtract(self.exact_total_usd, before.exact_notional) if before else self.exact_total_usd
        if quantity != 0:
            notional = EXACT.multiply(quantity.copy_abs(), exact(price))
            total = EXACT.add(total, notional)
            self.held[symbol] = Held(quantity, notional, price, float(quantity), float(notional))
        self.exact_total_usd = total if self.held else ZERO
        self.total_usd = float(self.exact_total_usd)

    def clear(self) -> None:
        """Forget every position."""
        self.held.clear()
        self.exact_total_usd, self.total_usd = ZERO, 0.0
