"""Positions of an account with what they cost, valued at marks; it has no lock: its owner's lock guards it.

Fills are exact decimals, so that a position that was bought and sold is flat and its profit is the sum of its cash
flows, however many fills there were. Its value is a float, and so are the two running totals that marks and fills
change. A running total of floats drifts, so that it is added up anew with one rounding after every few hundred of them,
or as many as there are symbols: between two of these each adds at most 2.3e-16 of the largest exposure, 3e-12 in all
with 10,000 symbols, which is far below what the levels count as equal. Neither a mark nor a fill costs more with more
symbols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final
from zlib import crc32

from killswitch.risk.account.account_state import Holding
from killswitch.risk.exact import EXACT, ZERO, exact

MARKS_BETWEEN_SUMS: Final = 256

PARTS: Final = 128
"""A change of a snapshot copies one: some eighty of 10,000 symbols. They do not depend on the hashes of the process."""

_NONE: Final[dict[str, float]] = {}


class Line:
    """One position that is not flat. ``cost_usd`` is signed as the quantity is; open profit is value less cost.

    ``marked`` tells a mark that came as a price from one that is the last fill's, for want of another; ``at_ns`` is
    when the one or the other came.
    """

    __slots__ = (
        "absolute", "at_ns", "cost_usd", "exact_cost", "exact_quantity", "mark", "marked", "open_usd", "quantity",
        "value_usd",
    )  # fmt: skip

    def __init__(self, quantity: Decimal, cost: Decimal, mark: float, *, marked: bool, at_ns: int) -> None:
        self.exact_quantity = quantity
        self.exact_cost = cost
        self.quantity = float(quantity)
        self.cost_usd = float(cost)
        self.absolute = abs(self.quantity)
        self.mark = mark
        self.marked = marked
        self.at_ns = at_ns
        self.value_usd = self.absolute * mark
        self.open_usd = self.quantity * mark - self.cost_usd


class QuantitySnapshot(Mapping[str, float]):
    """Quantities by symbol that nobody can change, of which a changed one is made without copying the others.

    In no order that means anything, but in the same one in every process.
    """

    __slots__ = ("_length", "_parts")

    def __init__(self, quantities: Mapping[str, float] | None = None) -> None:
        parts: list[dict[str, float]] = [_NONE] * PARTS
        for symbol, quantity in (quantities or {}).items():
            index = _part_of(symbol)
            if parts[index] is _NONE:
                parts[index] = {}
            parts[index][symbol] = quantity
        self._parts = tuple(parts)
        self._length = sum(map(len, parts))

    def changed(self, symbol: str, quantity: float | None) -> QuantitySnapshot:
        """Return these with one symbol at another quantity, or without it for ``None``."""
        index = _part_of(symbol)
        part = dict(self._parts[index])
        if quantity is None:
            part.pop(symbol, None)
        else:
            part[symbol] = quantity
        made = QuantitySnapshot.__new__(QuantitySnapshot)
        made._parts = (*self._parts[:index], part, *self._parts[index + 1 :])
        made._length = self._length + len(part) - len(self._parts[index])
        return made

    def __getitem__(self, symbol: str) -> float:
        """Return the quantity of a symbol that is held."""
        return self._parts[_part_of(symbol)][symbol]

    def __iter__(self) -> Iterator[str]:
        """Yield the symbols."""
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        """Return how many symbols are held."""
        return self._length

    def __repr__(self) -> str:
        """Show it as a dict."""
        return repr(dict(self))


def _part_of(symbol: object) -> int:
    if not isinstance(symbol, str):
        raise KeyError(symbol)
    return crc32(symbol.encode("utf-8", "surrogatepass")) % PARTS


class AccountBook:
    """What an account holds.

    Attributes:
        lines: positions by symbol; one that is flat is not among them.
        positions: signed quantities, read-only; another mapping after every change.
        exposure_usd: sum of absolute positions at their marks.
        open_usd: profit and loss of what is held.
        closed: realised profit and loss, exact.
    """

    __slots__ = ("_until_sum", "closed", "exposure_usd", "lines", "open_usd", "positions")

    def __init__(self) -> None:
        """Start flat."""
        self.lines: dict[str, Line] = {}
        self.positions = QuantitySnapshot()
        self.exposure_usd = 0.0
        self.open_usd = 0.0
        self.closed = ZERO
        self._until_sum = MARKS_BETWEEN_SUMS

    def mark(self, line: Line, price: float, at_ns: int = 0) -> None:
        """Value one position at a new price, which came at this time."""
        value = line.absolute * price
        open_usd = line.quantity * price - line.cost_usd
        if len(self.lines) == 1:
            self.exposure_usd, self.open_usd = value, open_usd
        else:
            self.exposure_usd += value - line.value_usd
            self.open_usd += open_usd - line.open_usd
        line.mark = price
        line.marked = True
        line.at_ns = at_ns
        line.value_usd = value
        line.open_usd = open_usd
        self._until_sum -= 1
        if not self._until_sum:
            self._add_up()

    def fill(self, symbol: str, change: Decimal, price: Decimal, at_ns: int = 0) -> None:
        """Add a signed quantity at a price, which came at this time; what it closes is realised at the average cost.

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
        new: Line | None = None
        if after == 0:
            self.lines.pop(symbol, None)
        else:
            if line is not None and line.marked:
                new = Line(after, cost, line.mark, marked=True, at_ns=line.at_ns)
            else:
                new = Line(after, cost, float(price), marked=False, at_ns=at_ns)
            self.lines[symbol] = new
        self.positions = self.positions.changed(symbol, None if new is None else new.quantity)
        self._exchange(line, new)

    def _exchange(self, before: Line | None, after: Line | None) -> None:
        """Exchange what one position adds to the totals."""
        self._until_sum -= 1
        if len(self.lines) <= 1 or self._until_sum <= 0:
            self._add_up()
            return
        for line, sign in ((before, -1.0), (after, 1.0)):
            if line is not None:
                self.exposure_usd += sign * line.value_usd
                self.open_usd += sign * line.open_usd

    def replace(self, closed_pnl_usd: float, holdings: Mapping[str, Holding], at_ns: int = 0) -> None:
        """Take an account as its keeper tells it, at this time; the numbers have been checked."""
        self.closed = exact(closed_pnl_usd)
        self.lines = {
            symbol: Line(
                exact(holding.quantity),
                EXACT.multiply(exact(holding.quantity), exact(holding.entry_price_usd)),
                float(holding.mark_price_usd),
                marked=True,
                at_ns=at_ns,
            )
            for symbol, holding in holdings.items()
            if holding.quantity != 0
        }
        self.positions = QuantitySnapshot({symbol: line.quantity for symbol, line in self.lines.items()})
        self._add_up()

    def _add_up(self) -> None:
        # The more lines there are the more marks and fills lie between two sums, so that one costs the same always.
        self._until_sum = max(MARKS_BETWEEN_SUMS, len(self.lines))
        self.exposure_usd = math.fsum(line.value_usd for line in self.lines.values())
        self.open_usd = math.fsum(line.open_usd for line in self.lines.values())
