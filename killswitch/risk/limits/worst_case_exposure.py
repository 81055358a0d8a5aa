"""Positions and working orders together: what would be held if the worst subset of the working orders filled.

The worth of an outcome is its signed notional: the position at its price plus or minus every filled order at what that
counts at. A buy counts at its own price. A sell may fetch more than it asks: it counts at what the symbol was known to
be worth when it was sent, where that is more, and all sells of a symbol together at no less than it is worth now. The
worst over all subsets is then, for each symbol, the larger of "position and all buys" and "all sells less the
position". The total is the sum of the worst of every symbol. Everything is exact, and every event costs the same
however many symbols are held and however many orders work.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.working_orders import MAX_UNBOOKED, SymbolWork, WorkingOrder, WorkingOrders
from killswitch.risk.order_inputs import LARGEST_NUMBER, is_name

MAX_SYMBOLS = 100_000
"""Most symbols that are held at once. A fill of one more cannot be added, and so freezes."""

MAX_QUICK_EVENTS = 50_000
"""After so many new orders everything is made exact, whatever else happens, so that roundings cannot add up."""


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


class WorstCaseExposure:
    """Positions, reservations, and the total of the worst cases. It has no lock: its owner's lock guards it.

    Everything exact wants :meth:`book` first; the floats hold at every moment, to within a rounding.

    Attributes:
        held: positions by symbol, each at the price known of it: the newest mark, or a fill since then if it was
            higher; the last fill where nobody tells marks. One that is flat is not among them.
        working: what may still fill.
        marks: the newest mark of every symbol that one was told of, in USD.
        exact_total_usd: sum over symbols of the worst case.
        total_usd: the same as a float.
    """

    __slots__ = (
        "_ahead",
        "_extra_usd",
        "_held_usd",
        "_quick_events",
        "exact_total_usd",
        "held",
        "marks",
        "total_usd",
        "working",
    )

    def __init__(self, max_working_orders: int) -> None:
        """Start flat, with nothing working."""
        self.held: dict[str, Held] = {}
        self.working = WorkingOrders(max_working_orders)
        self.marks: dict[str, float] = {}
        self._held_usd = self._extra_usd = ZERO
        self._quick_events = 0
        self._ahead = 0.0  # how far the float of the total is ahead of the exact one, which does not know some orders
        self.exact_total_usd = ZERO
        self.total_usd = 0.0

    def reserve(self, client_order_id: str, symbol: str, sign: int, qty: float, price: float, at_least: float) -> None:
        """Count an order whose id is new: in floats at once, exactly at the next :meth:`book`.

        A unit of it counts at its price or at ``at_least``, whichever is more, and of a sell at no less than is known.
        """
        worth = price if price > at_least else at_least
        if sign < 0:
            known = self.known_price(symbol)
            if known is not None and known > worth:
                worth = known
        work = self.working.add(client_order_id, symbol, sign, qty, price, worth)
        self._adjust(symbol, work)
        self._quick_events += 1
        if len(self.working.unbooked) > MAX_UNBOOKED:
            self._book_oldest()
        if self._quick_events >= MAX_QUICK_EVENTS:
            self.book()

    def release(self, client_order_id: str) -> WorkingOrder | None:
        """The order is over. ``None`` for an unknown id."""
        order = self.working.remove(client_order_id)
        if order is not None:
            work = self.working.by_symbol[order.symbol]
            if work.unbooked:
                self._adjust(order.symbol, work)
            else:
                self._refresh(order.symbol)
        return order

    def _adjust(self, symbol: str, work: SymbolWork) -> None:
        """Bring the floats of a symbol and of the total to what its sums of floats are now."""
        held = self.held.get(symbol)
        buys_usd, sells_usd = work.buys.usd, work.sells.usd
        if sells_usd:
            known = held.price if held is not None else self.marks.get(symbol, 0.0)
            sells_usd = max(sells_usd, work.sells.quantity * known)
        if held is not None:
            if held.quantity > 0:
                sells_usd -= 2.0 * held.notional
            else:
                buys_usd -= 2.0 * held.notional
        extra = buys_usd if buys_usd > sells_usd else sells_usd
        extra = max(extra, 0.0)
        more = extra - work.extra
        self._ahead += more
        self.total_usd += more
        work.extra = extra

    def book(self) -> None:
        """Bring everything exact up to date, and the floats to what it says."""
        while self.working.unbooked:
            self._book_oldest()
        self._quick_events = 0

    def _book_oldest(self) -> None:
        symbol = self.working.book_oldest()
        if symbol is not None:
            self._refresh(symbol)

    def fill(self, symbol: str, change: Decimal, price: float, client_order_id: str | None) -> bool:
        """Add a fill and take it out of its order's reservation, in one step.

        Returns:
            False, and nothing has changed, when the position or the number of symbols is more than can be held.
        """
        self.book()
        # A fill far below the market says nothing of what the rest is worth; one above the mark may know it first.
        price = max(price, self.marks.get(symbol, 0.0))
        held = self.held.get(symbol)
        if held is None and len(self.held) >= MAX_SYMBOLS:
            return False
        quantity = EXACT.add(held.exact_quantity, change) if held else change
        if abs(float(quantity)) > LARGEST_NUMBER:
            return False
        self._hold(symbol, quantity, price)
        if client_order_id is not None:
            order = self.working.fill(client_order_id, change.copy_abs())
            # A fill that is told in another symbol than was ordered still uses its order up.
            if order is not None and order.symbol != symbol:
                self._refresh(order.symbol)
        self._refresh(symbol)
        return True

    def mark(self, symbol: str, price: float) -> bool:
        """Value a symbol at this price from now on.

        Returns:
            False when that changes no figure: nothing of the symbol is held or works. One symbol too many has no mark.
        """
        if symbol not in self.marks and len(self.marks) >= MAX_SYMBOLS:
            return False
        self.marks[symbol] = price
        held = self.held.get(symbol)
        if held is None and symbol not in self.working.by_symbol:
            return False
        self.book()
        if held is not None:
            self._hold(symbol, held.exact_quantity, price)
        self._refresh(symbol)
        return True

    def known_price(self, symbol: str) -> float | None:
        """What a unit is known to be worth in USD: as it is held, else by its mark; ``None`` when it is not known."""
        held = self.held.get(symbol)
        return held.price if held is not None else self.marks.get(symbol)

    def amend(self, client_order_id: str, quantity: Decimal, price: Decimal, at_least: Decimal) -> None:
        """Count the larger of before and after, the latter at its price or at ``at_least``. The id is known."""
        self.book()
        order = self.working.orders[client_order_id]
        worth = max(price, at_least)
        if order.sign < 0:
            known = self.known_price(order.symbol)
            worth = worth if known is None else max(worth, exact(known))
        self.working.amend(client_order_id, quantity, price, worth)
        self._refresh(order.symbol)

    def settle(self, client_order_id: str, *, accepted: bool) -> WorkingOrder | None:
        """The venue has answered an amendment. ``None`` for an unknown id."""
        self.book()
        order = self.working.settle(client_order_id, accepted=accepted)
        if order is not None:
            self._refresh(order.symbol)
        return order

    def replace_position(self, symbol: str, quantity: Decimal, price: float) -> None:
        """Set one position, as a saved state says it."""
        self.book()
        self._hold(symbol, quantity, price)
        self._refresh(symbol)

    def _hold(self, symbol: str, quantity: Decimal, price: float) -> None:
        """Replace one position and keep the sum of them exact."""
        before = self.held.pop(symbol, None) if quantity == 0 else self.held.get(symbol)
        total_usd = EXACT.subtract(self._held_usd, before.exact_notional) if before else self._held_usd
        if quantity != 0:
            notional = EXACT.multiply(quantity.copy_abs(), exact(price))
            total_usd = EXACT.add(total_usd, notional)
            self.held[symbol] = Held(quantity, notional, price, float(quantity), float(notional))
        self._held_usd = total_usd if self.held else ZERO

    def replace_working(self, working: WorkingOrders) -> None:
        """Take over all reservations of a saved state."""
        self.working = working
        self._extra_usd = ZERO
        self._ahead = 0.0
        for work in working.by_symbol.values():
            work.extra_usd, work.extra = ZERO, 0.0
        for symbol in tuple(working.by_symbol):
            self._refresh(symbol)
        self._total()

    def clear_positions(self) -> None:
        """Forget every position; what works still counts."""
        self.book()
        self.held.clear()
        self._held_usd = ZERO
        self.replace_working(self.working)

    def worst_usd(self, symbol: str) -> Decimal:
        """The worst case of one symbol, exactly; after :meth:`book`."""
        held, work = self.held.get(symbol), self.working.by_symbol.get(symbol)
        usd = held.exact_notional if held else ZERO
        return EXACT.add(usd, work.extra_usd) if work else usd

    def order(self, client_order_id: str) -> WorkingOrder | None:
        """The order of this id, with everything booked; ``None`` when no such order works."""
        self.book()
        return self.working.orders.get(client_order_id) if is_name(client_order_id) else None

    def symbols(self) -> set[str]:
        """Every symbol that is held or works."""
        return {*self.held, *self.working.by_symbol}

    def exposed(self, symbol: str) -> Exposed:
        """What is held of a symbol and works in it; after :meth:`book`."""
        held, work = self.held.get(symbol), self.working.by_symbol.get(symbol)
        if work is None:
            return Exposed(held, ZERO, ZERO, ZERO)
        return Exposed(held, work.buys.exact_usd, work.sells.exact_usd, work.sells.exact_quantity)

    def same_side(self, symbol: str, sign: int, own: WorkingOrder | None) -> tuple[Decimal, Decimal]:
        """Units and USD that work on one side, without the order itself; after :meth:`book`."""
        work = self.working.by_symbol.get(symbol)
        if work is None:
            return ZERO, ZERO
        sums = work.side(sign)
        if own is None or own.symbol != symbol or own.sign != sign:
            return sums.exact_quantity, sums.exact_usd
        return (
            EXACT.subtract(sums.exact_quantity, own.counted_quantity),
            EXACT.subtract(sums.exact_usd, own.counted_usd),
        )

    def _refresh(self, symbol: str) -> None:
        """Bring the total to what the symbol's worst case is now."""
        work = self.working.by_symbol.get(symbol)
        if work is not None and work.orders == 0 and not work.extra_usd and self.working.unbooked:
            # Whatever worked here is over and never became exact: only the floats have to forget it.
            self._ahead -= work.extra
            self.total_usd -= work.extra
            self.working.forget_if_empty(symbol)
            return
        if work is not None:
            extra, before = self._extra(symbol, work), work.extra_usd
            if extra != work.extra_usd:
                self._extra_usd = EXACT.add(self._extra_usd, EXACT.subtract(extra, work.extra_usd))
                work.extra_usd = extra
            if work.unbooked == 0:
                self._ahead -= work.extra - float(before)
                work.extra = float(extra)
            self.working.forget_if_empty(symbol)
        self._total()

    def _extra(self, symbol: str, work: SymbolWork) -> Decimal:
        """How far the worst case lies above what is held; never below 0."""
        held, buys_usd, sells_usd = self.held.get(symbol), work.buys.exact_usd, work.sells.exact_usd
        known = held.price if held is not None else self.marks.get(symbol)
        if sells_usd and known is not None:
            sells_usd = max(sells_usd, EXACT.multiply(work.sells.exact_quantity, exact(known)))
        if held is None:
            return max(buys_usd, sells_usd)
        along_usd, against_usd = (buys_usd, sells_usd) if held.quantity > 0 else (sells_usd, buys_usd)
        # Everything on the position's own side fills and nothing else, or everything on the other side fills and turns
        # it into a larger one of the other sign.
        return max(along_usd, EXACT.subtract(against_usd, EXACT.add(held.exact_notional, held.exact_notional)))

    def _total(self) -> None:
        self.exact_total_usd = EXACT.add(self._held_usd, self._extra_usd)
        if not self.working.unbooked:
            self._ahead = 0.0
        self.total_usd = float(self.exact_total_usd) + self._ahead
