"""Position and profit of the trading program, from its own fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from killswitch.simulation.quoting import QUANTITY_DECIMALS


@dataclass(slots=True)
class Ledger:
    """Position and profit in each symbol at average cost, from this program's own fills.

    Attributes:
        quantities: units held.
        costs_usd: what the units held have cost.
        realised_usd: profit of what was sold.
    """

    quantities: dict[str, float]
    costs_usd: dict[str, float]
    realised_usd: float = 0.0

    def fill(self, symbol: str, side: str, qty: float, price: float) -> None:
        """Book a fill; a sale of more than is held closes the position and books the rest as a short one."""
        held = self.quantities.get(symbol, 0.0)
        cost = self.costs_usd.get(symbol, 0.0)
        signed = qty if side == "buy" else -qty
        if held * signed >= 0:
            held, cost = held + signed, cost + signed * price
        else:
            average = cost / held
            closing = min(qty, abs(held)) * (1 if held > 0 else -1)
            self.realised_usd += closing * (price - average)
            rest = signed + closing
            held, cost = (held - closing, cost - closing * average) if rest == 0 else (rest, rest * price)
        if abs(held) < 10**-QUANTITY_DECIMALS / 2:
            held, cost = 0.0, 0.0
        self.quantities[symbol], self.costs_usd[symbol] = held, cost

    def pnl_usd(self, prices_usd: Mapping[str, float]) -> float:
        """Realised and unrealised profit at these prices; a symbol without a price counts at cost."""
        unrealised = sum(
            held * prices_usd[symbol] - self.costs_usd[symbol]
            for symbol, held in self.quantities.items()
            if symbol in prices_usd
        )
        return self.realised_usd + unrealised
