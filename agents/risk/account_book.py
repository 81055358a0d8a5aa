"""Positions of an account with what they cost, valued at marks; it has no lock: its owner's lock guards it.

Fills are exact decimals, so that a position that was bought and sold is flat and its profit is the sum of its cash
flows, however many fills there were. Marks are floats and change two running totals. A running total of floats drifts,
so that it is added up anew with one rounding after every fill and every few hundred marks; between two of these its
error is below 1e-13 of the largest exposure seen in between, which is far below what the levels count as equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from agents.risk.account_state import Holding
from agents.risk.exact import EXACT, ZERO, exact

MARKS_BETWEEN_SUMS: Final = 256


class Line:
    """One position that is not flat. ``cost_usd`` is signed as the quantity is; open profit is value less cost.

    ``marked`` tells a mark that came as a price from one that is the last fill's, for want of another.
    """

    __slots__ = (
        "absolute", "cost_usd", "exact_cost", "exact_quantity", "mark", "marked", "open_usd", "quantity", "value_usd",
    )  # fmt: skip

    def __init__(self, quantity: Decimal, cost: Decimal, mark: float, *, marked: bool) -> None:
        self.exact_quantity = quantity
        self.exact_cost = cost
        self.quantity = float(quantity)
        self.cost_usd = float(cost)
        self.absolute = abs(self.quantity)
        self.mark = mark
        self.marked = marked
        self.value_usd = self.absolute * mark
        self.open_usd = self.quantity * mark - self.cost_usd


class AccountBook:
    """What an account holds.

    Attributes:
        lines: positions by symbol; one that is flat is not among them.
        positions: signed quantities, read-only; a new mapping after every change.
        exposure_usd: sum of absolute positions at their marks.
        open_usd: profit and loss of what is held.
        closed: realised profit and loss, exact.
    """

    __slots__ = ("_marks_left", "closed", "exposure_usd", "lines", "open_usd", "positions")

    def __init__(self) -> None:
        """Start flat."""
        self.lines: dict[str, Line] = {}
        self.positions: Mapping[str, float] = MappingProxyType({})
        self.exposure_usd = 0.0
        self.open_usd = 0.0
        self.closed = ZERO
        self._marks_left = MARKS_BETWEEN_SUMS

    def mark(self, line: Line, price: float) -> None:
        """Value one position at a new price."""
        value = line.absolute * price
        open_usd = line.quantity * price - line.cost_usd
        if len(self.lines) == 1:
            self.exposure_usd, self.open_usd = value, open_usd
        else:
            self.exposure_usd += value - line.value_usd
            self.open_usd += open_usd - line.open_usd
        line.mark = price
        line.marked = True
        line.value_usd = value
        line.open_usd = open_usd
        self._marks_left -= 1
        if not self._marks_left:
            self._add_up()

    def fill(self, symbol: str, change: Decimal, price: Decimal) -> None:
        """Add a signed quantity at a price; what it closes is realised at the average cost.

        Raises:
            OverflowError: the result is more than a float can hold. Nothing has changed.
        """
        line = self.lines.get(symbol)
        held, cost = (line.exact_quantity, line.exact_cost) if line else (ZERO, ZERO)
        after = EXACT.add(held, change)
        closed = self.closed
        if held == 0 or held.is_signed() == change.is_signed():
            cost = EXACT.add(cost, EXACT.multiply(change, price))
        else:
            closing = min(held.copy_abs(), change.copy_abs()).copy_sign(held)
            whole = closing == held
            removed = cost if whole else EXACT.divide(EXACT.multiply(cost, closing), held)
            closed = EXACT.add(closed, EXACT.subtract(EXACT.multiply(closing, price), removed))
            # Beyond flat the rest is a new position at this price.
            cost = EXACT.multiply(after, price) if whole else EXACT.subtract(cost, removed)
        if not all(math.isfinite(float(value)) for value in (after, cost, closed)):
            raise OverflowError("a position or its cost is more than a float can hold")
        self.closed = closed
        if after == 0:
            self.lines.pop(symbol, None)
        else:
            marked = line is not None and line.marked
            mark = line.mark if line is not None and marked else float(price)
            self.lines[symbol] = Line(after, cost, mark, marked=marked)
        self._changed()

    def replace(self, closed_pnl_usd: float, holdings: Mapping[str, Holding]) -> None:
        """Take an account as its keeper tells it; the numbers have been checked."""
        self.closed = exact(closed_pnl_usd)
        self.lines = {
            symbol: Line(
                exact(holding.quantity),
                EXACT.multiply(exact(holding.quantity), exact(holding.entry_price_usd)),
                float(holding.mark_price_usd),
                marked=True,
            )
            for symbol, holding in holdings.items()
            if holding.quantity != 0
        }
        self._changed()

    def _changed(self) -> None:
        self.positions = MappingProxyType({symbol: line.quantity for symbol, line in self.lines.items()})
        self._add_up()

    def _add_up(self) -> None:
        # More marks between two sums the more lines there are, so that a mark costs the same however many.
        self._marks_left = max(MARKS_BETWEEN_SUMS, len(self.lines))
        self.exposure_usd = math.fsum(line.value_usd for line in self.lines.values())
        self.open_usd = math.fsum(line.open_usd for line in self.lines.values())
