"""What is held, as it is told: fills and marks come in, notionals and utilisation come out."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from killswitch.risk.exact import exact
from killswitch.risk.limits.limit_rule import MarkFault, MarkPriceSource, mark_price
from killswitch.risk.limits.limits import LimitsInForce, RiskLimits
from killswitch.risk.limits.process_freeze import ProcessFreeze
from killswitch.risk.limits.warning_ladder import LimitWarnings
from killswitch.risk.limits.worst_case_exposure import Held, WorstCaseExposure
from killswitch.risk.order_inputs import finite_number, in_range, is_name, side_sign, text_or_none

BAD_FILLS_KEPT = 1_000


class PositionFeed:
    """Brings what happened into a book, and values what is held. Thread-safe.

    Args:
        book: what is held and works.
        limits: the limits of it.
        freeze: what a fill or a mark that cannot be trusted freezes.
        warnings: told the figures that change.
        lock: guards all of these.
        marks: source of mark prices, asked without the lock; ``None``: marks are told.

    Attributes:
        bad_fills: what was not added because it made no sense, as it came, oldest first.
    """

    def __init__(
        self,
        book: WorstCaseExposure,
        limits: LimitsInForce,
        freeze: ProcessFreeze,
        warnings: LimitWarnings,
        *,
        lock: threading.Lock,
        marks: MarkPriceSource | None,
    ) -> None:
        self._book = book
        self._limits = limits
        self._freeze = freeze
        self._warnings = warnings
        self._lock = lock
        self._marks = marks
        self.bad_fills: deque[Mapping[str, Any]] = deque(maxlen=BAD_FILLS_KEPT)

    def on_fill(self, symbol: str, side: str, qty: float, price: float, client_order_id: str | None) -> None:
        """Add a fill, and take it out of the order's reservation; one that makes no sense freezes."""
        sign = side_sign(side)
        quantity = finite_number(qty)
        if sign is None or quantity is None or not in_range(quantity):
            self._distrust("fill", symbol, side, qty, price)
        else:
            self._add(symbol, sign, quantity, price, side=side, client_order_id=client_order_id)

    def on_update(self, symbol: str, qty: float, price: float) -> None:
        """Add a signed quantity; of 0 it only renews the price. One that makes no sense freezes."""
        quantity = finite_number(qty)
        if quantity is None or not (quantity == 0 or in_range(abs(quantity))):
            self._distrust("position update", symbol, None, qty, price)
        else:
            self._add(symbol, -1 if quantity < 0 else 1, abs(quantity), price, side=None)

    def on_mark(self, symbol: str, price: float) -> None:
        """Value a symbol at this price; what is no price, or comes beside a source of marks, is no knowledge."""
        worth = finite_number(price)
        if self._marks is None and worth is not None and in_range(worth) and is_name(symbol):
            self._take_mark(symbol, worth)

    def _add(
        self, symbol: str, sign: int, qty: float, price: float, *, side: str | None, client_order_id: str | None = None
    ) -> None:
        """Add a quantity that makes sense, at a price and to a symbol that may not."""
        paid = finite_number(price)
        if paid is None or not in_range(paid) or not is_name(symbol):
            self._distrust("fill", symbol, side, qty, price)
            return
        if qty == 0.0:
            self._take_mark(symbol, paid)
            return
        change = exact(qty) if sign > 0 else exact(qty).copy_negate()
        with self._lock:
            added = self._book.fill(symbol, change, paid, text_or_none(client_order_id))
            warnings = self._warnings.look_at_fill(symbol) if added else ()
        if warnings:
            self._warnings.tell(warnings)
        if not added:
            self._distrust("fill", symbol, side, qty, price)

    def _distrust(self, what: str, symbol: object, side: object, qty: object, price: object) -> None:
        """Freeze because a position is no longer known, and keep what came."""
        as_it_came = {"symbol": str(symbol), "side": str(side), "qty": str(qty), "price": str(price)}
        at = self._freeze.time()
        with self._lock:
            self.bad_fills.append({"at": at, **as_it_came})
        reason = f"a {what} of {symbol} cannot be trusted: side {side}, quantity {qty}, price {price}"
        self._freeze.for_monitor_error(reason, text_or_none(symbol), as_it_came)

    def _take_mark(self, symbol: str, price: float) -> None:
        """Value a symbol at this price from now on; both make sense."""
        book = self._book
        with self._lock:
            held = book.held.get(symbol)
            if book.marks.get(symbol) == price and (held is None or held.price == price):
                return
            warnings = self._warnings.look(symbol, self._limits.quick(symbol)) if book.mark(symbol, price) else ()
        self._warnings.tell(warnings)

    def notionals(self) -> tuple[dict[str, float], dict[str, float]]:
        """Notional per held symbol in USD, and the mark of each that its source has told."""
        held, prices = self.marks_of_held()
        notionals = {
            symbol: abs(position.quantity) * prices[symbol] if symbol in prices else position.notional
            for symbol, position in held.items()
        }
        return notionals, prices

    def marks_of_held(self) -> tuple[dict[str, Held], dict[str, float]]:
        """What is held, and the mark of each that its source has told; one that is not usable freezes.

        No lock is held.
        """
        with self._lock:
            held = dict(self._book.held)
        prices: dict[str, float] = {}
        if self._marks is None:
            return held, prices
        for symbol in held:
            try:
                prices[symbol] = mark_price(self._marks, symbol)
            except MarkFault as fault:
                self._freeze.for_monitor_error(str(fault), symbol, {})
        return held, prices

    def look_again(self) -> None:
        """Hold every figure against the warning ladder of limits that have changed. No lock is held."""
        self._warnings.look_again(self.marks_of_held()[1])

    def utilization(self, limits: RiskLimits) -> dict[str, float]:
        """How much of each limit is used, in per cent; the warning ladder looks at figures that a source has told."""
        notionals_usd, prices = self.notionals()
        if self._marks is not None:
            self._warnings.look_again(prices)
        used = {
            symbol: 100.0 * notional_usd / limits.max_inventory_usd for symbol, notional_usd in notionals_usd.items()
        }
        total_usd = math.fsum(used.values()) * limits.max_inventory_usd / 100.0
        return {
            "total_notional_utilization_pct": 100.0 * total_usd / limits.max_total_notional,
            "max_inventory_utilization_pct": max(used.values(), default=0.0),
            **{f"inventory_utilization_pct:{symbol}": pct for symbol, pct in used.items()},
        }
