"""Reservation of working orders: an order counts from the moment it is sent until it is over.

What is counted is the worst case over all subsets of the working orders: any of them may fill, wholly or in part, in
any order, and a cancel that is not confirmed still may. Per symbol two sums are enough for that, one for each side,
since the worst subset for a long position is "all buys and no sell", and for a short one the reverse. So every event
costs the same however many orders work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.order_inputs import finite_number, in_range

MAX_WORKING_ORDERS = 100_000
"""Most orders that are remembered at once; one more is refused (``working_orders``)."""

MAX_UNBOOKED = 32
"""From here on every new order makes the oldest of them exact, so that no event ever has more of them to do."""


class SideSums:
    """All working orders of one symbol and one side together: units and USD, each order at what it counts at."""

    __slots__ = ("exact_quantity", "exact_usd", "quantity", "usd")

    def __init__(self) -> None:
        """Start with nothing working."""
        self.exact_quantity = self.exact_usd = ZERO
        self.quantity = self.usd = 0.0

    def add(self, quantity: Decimal, usd: Decimal) -> None:
        """Add to the exact sums what may be negative; the floats follow with :meth:`sync`."""
        self.exact_quantity = EXACT.add(self.exact_quantity, quantity)
        self.exact_usd = EXACT.add(self.exact_usd, usd)

    def take(self, quantity: float, usd: float) -> None:
        """Subtract from the floats alone."""
        self.quantity -= quantity
        self.usd -= usd

    def sync(self) -> None:
        """Bring the floats to what the exact sums say."""
        self.quantity, self.usd = float(self.exact_quantity), float(self.exact_usd)


class SymbolWork:
    """What works in one symbol.

    Attributes:
        buys: sums of the buys.
        sells: sums of the sells.
        orders: how many work.
        unbooked: how many of them only the floats know.
        extra_usd: how far the worst case of the symbol lies above the notional that is held, kept by the owner.
        extra: the same as a float, with what is not booked.
    """

    __slots__ = ("buys", "extra", "extra_usd", "orders", "sells", "unbooked")

    def __init__(self) -> None:
        """Start with nothing working."""
        self.buys, self.sells = SideSums(), SideSums()
        self.orders = self.unbooked = 0
        self.extra_usd, self.extra = ZERO, 0.0

    def side(self, sign: int) -> SideSums:
        """The sums of the buys for +1, of the sells for -1."""
        return self.buys if sign > 0 else self.sells


class WorkingOrder:
    """One order that the venue may still fill.

    Attributes:
        symbol: its symbol.
        sign: +1 for a buy, -1 for a sell.
        sent_qty: what was ordered.
        sent_price: its own price in USD; of a market order the one that it was judged at.
        sent_worth: USD that each unit counts at, never below its price: a sell may fetch more than it asks.
        is_booked: the exact sums hold it.
        strategy: whose it is, ``""`` for nobody's, ``None`` while nobody has said.
        is_over: it is no longer among the orders; what is not booked yet never will be.
        quantity: what was ordered or amended to, filled parts included. This and all below: once it is booked.
        price: its own price in USD, as sent or amended to.
        worth: USD that each unit counts at.
        filled: what of it has filled.
        amended_quantity: what it will be when the amendment that is on its way is taken, ``None`` without one.
        amended_price: likewise.
        amended_worth: likewise.
        counted_quantity: what the exact sums hold of it.
        counted_usd: likewise.
    """

    __slots__ = (
        "amended_price",
        "amended_quantity",
        "amended_worth",
        "counted_quantity",
        "counted_usd",
        "filled",
        "is_booked",
        "is_over",
        "price",
        "quantity",
        "sent_price",
        "sent_qty",
        "sent_worth",
        "sign",
        "strategy",
        "symbol",
        "worth",
    )  # fmt: skip

    quantity: Decimal
    price: Decimal
    worth: Decimal
    filled: Decimal
    amended_quantity: Decimal | None
    amended_price: Decimal | None
    amended_worth: Decimal | None
    counted_quantity: Decimal
    counted_usd: Decimal

    def __init__(self, symbol: str, sign: int, qty: float, price: float, worth: float) -> None:
        self.symbol = symbol
        self.sign = sign
        self.sent_qty = qty
        self.sent_price = price
        self.sent_worth = worth
        self.is_booked = self.is_over = False
        self.strategy: str | None = None

    def book(self) -> None:
        """Work out the exact figures of what was sent."""
        self.quantity = self.counted_quantity = exact(self.sent_qty)
        self.price = self.worth = exact(self.sent_price)
        if self.sent_worth != self.sent_price:
            self.worth = exact(self.sent_worth)
        self.counted_usd = EXACT.multiply(self.quantity, self.worth)
        self.filled = ZERO
        self.is_booked = True
        self.amended_quantity = self.amended_price = self.amended_worth = None

    def worst(self) -> tuple[Decimal, Decimal]:
        """Units and USD that may still fill: while an amendment is on its way, the larger of before and after."""
        remaining = _remaining(self.quantity, self.filled)
        usd = EXACT.multiply(remaining, self.worth)
        if self.amended_quantity is None or self.amended_worth is None:
            return remaining, usd
        amended = _remaining(self.amended_quantity, self.filled)
        return max(remaining, amended), max(usd, EXACT.multiply(amended, self.amended_worth))


class WorkingOrders:
    """All reservations. It has no lock: its owner's lock guards it.

    To send must be quick, and exact decimals are not: a new order counts in floats at once, and exactly when the next
    thing is done that needs it, such as a fill, or an order near a limit; one that is over before that never is.
    Everything but :meth:`add`, :meth:`remove` and reading :attr:`orders` wants :meth:`book_oldest` first, until
    :attr:`unbooked` is empty.

    Args:
        max_orders: most orders at once.

    Attributes:
        orders: by client order id.
        by_symbol: sums of every symbol that has working orders, and of those that :meth:`forget_if_empty` has not
            dropped yet.
        unbooked: orders that only the floats know yet, oldest first.
    """

    __slots__ = ("by_symbol", "max_orders", "orders", "unbooked")

    def __init__(self, max_orders: int = MAX_WORKING_ORDERS) -> None:
        self.max_orders = max_orders
        self.orders: dict[str, WorkingOrder] = {}
        self.by_symbol: dict[str, SymbolWork] = {}
        self.unbooked: deque[WorkingOrder] = deque()

    @property
    def is_full(self) -> bool:
        """True when one more order cannot be remembered."""
        return len(self.orders) >= self.max_orders

    def orders_of(self, symbol: str) -> int:
        """How many orders of a symbol work."""
        work = self.by_symbol.get(symbol)
        return work.orders if work else 0

    def add(self, client_order_id: str, symbol: str, sign: int, qty: float, price: float, worth: float) -> SymbolWork:
        """Count an order whose id is new, in floats at once and exactly when it is booked.

        ``worth`` is what each unit counts at in USD; the rest is as it was sent.
        """
        order = self.orders[client_order_id] = WorkingOrder(symbol, sign, qty, price, worth)
        self.unbooked.append(order)
        work = self.by_symbol.get(symbol)
        if work is None:
            work = self.by_symbol[symbol] = SymbolWork()
        work.orders += 1
        work.unbooked += 1
        sums = work.buys if sign > 0 else work.sells
        sums.quantity += qty
        sums.usd += qty * worth
        return work

    def book_oldest(self) -> str | None:
        """Make the oldest order exact that is not yet, and return its symbol when nothing else of it is left to do."""
        order = self.unbooked.popleft()
        work = self.by_symbol[order.symbol]
        work.unbooked -= 1
        if not order.is_over:
            order.book()
            work.side(order.sign).add(order.counted_quantity, order.counted_usd)
        if work.unbooked:
            return None
        if work.orders:
            work.buys.sync()
            work.sells.sync()
        return order.symbol

    def fill(self, client_order_id: str, quantity: Decimal) -> WorkingOrder | None:
        """Take a fill out of the reservation; the order is over when nothing is left. ``None`` for an unknown id.

        More than was ordered takes out what was left of it, never more.
        """
        order = self.orders.get(client_order_id)
        if order is None:
            return None
        order.filled = EXACT.add(order.filled, quantity)
        if order.worst()[0] == 0:
            return self.remove(client_order_id)
        self._count(order, self.by_symbol[order.symbol])
        return order

    def amend(self, client_order_id: str, quantity: Decimal, price: Decimal, worth: Decimal) -> None:
        """Count the larger of before and after from now on, until :meth:`settle`. The id is known."""
        order = self.orders[client_order_id]
        order.amended_quantity, order.amended_price, order.amended_worth = quantity, price, worth
        self._count(order, self.by_symbol[order.symbol])

    def note_strategy(self, client_order_id: str, strategy: str) -> None:
        """Keep with an order which strategy it is of, where there is such an order."""
        order = self.orders.get(client_order_id)
        if order is not None:
            order.strategy = strategy

    def strategy_of(self, client_order_id: str) -> str | None:
        """Return what was noted, ``None`` for an unknown id."""
        order = self.orders.get(client_order_id)
        return None if order is None else order.strategy

    def settle(self, client_order_id: str, *, accepted: bool) -> WorkingOrder | None:
        """The venue has answered the amendment. ``None`` for an unknown id; nothing to settle changes nothing."""
        order = self.orders.get(client_order_id) if client_order_id.__class__ is str else None
        if order is None:
            return None
        if accepted and order.amended_quantity is not None:
            assert order.amended_price is not None
            assert order.amended_worth is not None
            order.quantity, order.price, order.worth = order.amended_quantity, order.amended_price, order.amended_worth
        order.amended_quantity = order.amended_price = order.amended_worth = None
        if order.worst()[0] == 0:
            return self.remove(client_order_id)
        self._count(order, self.by_symbol[order.symbol])
        return order

    def remove(self, client_order_id: str) -> WorkingOrder | None:
        """The order is over. ``None`` for an unknown id."""
        try:
            order = self.orders.pop(client_order_id, None)
        except TypeError:  # no id at all: what cannot be a key names no order
            return None
        if order is None:
            return None
        work = self.by_symbol[order.symbol]
        work.orders -= 1
        sums = work.side(order.sign)
        if not order.is_booked:
            order.is_over = True
            sums.take(order.sent_qty, order.sent_qty * order.sent_worth)
            return order
        sums.add(order.counted_quantity.copy_negate(), order.counted_usd.copy_negate())
        if work.unbooked == 0:
            sums.sync()
        else:
            sums.take(float(order.counted_quantity), float(order.counted_usd))
        return order

    def forget_if_empty(self, symbol: str) -> None:
        """Drop the sums of a symbol in which nothing works any more."""
        work = self.by_symbol.get(symbol)
        if work is not None and work.orders == 0 and work.unbooked == 0:
            del self.by_symbol[symbol]

    def _count(self, order: WorkingOrder, work: SymbolWork) -> None:
        """Bring the sums to what the order is worth at worst now."""
        quantity, usd = order.worst()
        sums = work.side(order.sign)
        sums.add(EXACT.subtract(quantity, order.counted_quantity), EXACT.subtract(usd, order.counted_usd))
        sums.sync()
        order.counted_quantity, order.counted_usd = quantity, usd

    # ---- over a restart

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return every reservation as JSON values."""
        return {
            name: {
                "symbol": order.symbol,
                "sign": order.sign,
                "quantity": str(order.quantity),
                "price_usd": str(order.price),
                "counts_at_usd": str(order.worth),
                "filled": str(order.filled),
                "strategy": order.strategy,
                "amended": None
                if order.amended_quantity is None
                else [str(order.amended_quantity), str(order.amended_price), str(order.amended_worth)],
            }
            for name, order in self.orders.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], max_orders: int = MAX_WORKING_ORDERS) -> WorkingOrders:
        """Read what :meth:`to_json` returned.

        Raises:
            Exception: whatever Python raises for what is missing or of another kind.
        """
        working = cls(max_orders)
        for name, raw in data.items():
            if working.is_full or raw["sign"] not in (1, -1) or not name or not raw["symbol"]:
                raise ValueError(f"a working order is {raw!r}")
            quantity, price, filled = _read(raw["quantity"]), _read(raw["price_usd"]), Decimal(raw["filled"])
            if not filled.is_finite() or filled < 0:
                raise ValueError(f"a working order is {raw!r}")
            # States from before a sell could count above its price say only that.
            worth = max(price, _read(raw.get("counts_at_usd", raw["price_usd"])))
            working.add(str(name), str(raw["symbol"]), raw["sign"], float(quantity), float(price), float(worth))
            working.book_oldest()
            strategy = raw.get("strategy")  # likewise
            if not (strategy is None or isinstance(strategy, str)):
                raise ValueError(f"a working order is {raw!r}")
            working.orders[str(name)].strategy = strategy
            if raw["amended"] is not None:
                amended_quantity, amended_price, *amended_worth = map(_read, raw["amended"])
                working.amend(name, amended_quantity, amended_price, max([amended_price, *amended_worth]))
            if filled:
                working.fill(name, filled)
        return working


def _remaining(quantity: Decimal, filled: Decimal) -> Decimal:
    return max(EXACT.subtract(quantity, filled), ZERO)


def _read(text: str) -> Decimal:
    number = Decimal(text)
    as_float = finite_number(number)
    if as_float is None or not in_range(as_float):
        raise ValueError(f"{text!r} is not a quantity or a price")
    return number
