"""The rule that the limits are, in exact decimals: what an order would bring a position and the total to."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from agents.risk.exact import EXACT, ZERO, exact
from agents.risk.limits import OrderRefused, RiskLimits
from agents.risk.mark_prices import MarkPriceSource, mark_price, marked_total
from agents.risk.order_inputs import ReadOrder
from agents.risk.position_book import Held

DEFAULT_MARK_PRICE_USD = 1.0

# Floats decide alone only when they are this far inside a limit; nearer to it the exact decimals decide. The float
# result is a handful of roundings (2.2e-16 each) away from the exact one, so this is thousands of times too wide.
_FLOAT_MARGIN = 1e-12


class LimitRule:
    """Both notional limits, as section A of the seed systems has them.

    Args:
        limits: the limits.
        marks: source of mark prices; without one a position counts at its last fill.

    Attributes:
        symbol_sure_usd: up to this a float result passes the limit of a symbol for certain.
        total_sure_usd: the same for the total.
    """

    def __init__(self, limits: RiskLimits, marks: MarkPriceSource | None) -> None:
        self.symbol_sure_usd = limits.max_inventory_usd * (1 - _FLOAT_MARGIN)
        self.total_sure_usd = limits.max_total_notional * (1 - _FLOAT_MARGIN)
        self._limits = limits
        self._marks = marks
        self._exact_symbol_limit = exact(limits.max_inventory_usd)
        self._exact_total_limit = exact(limits.max_total_notional)

    def judge(
        self, order: ReadOrder, held: Held | None, total_usd: Decimal, others: Mapping[str, Held]
    ) -> OrderRefused | None:
        """Return why an order would break a limit, ``None`` when it would not.

        Args:
            order: the order.
            held: the position of its symbol, ``None`` when flat.
            total_usd: total over all symbols, this one included, each at its last fill.
            others: positions of all other symbols; they matter with mark prices only.

        Raises:
            MarkFault: a mark price is not usable.
        """
        before = held.exact_quantity if held else ZERO
        after = EXACT.add(before, order.quantity if order.sign > 0 else order.quantity.copy_negate())
        price = order.price if order.price is not None else self._price_of(order.symbol, held)
        if after.copy_abs() < before.copy_abs() and (after == 0 or after.is_signed() == before.is_signed()):
            return None
        after_usd = EXACT.multiply(after.copy_abs(), exact(price))
        if after_usd > self._exact_symbol_limit:
            limit = self._limits.max_inventory_usd
            sentence = (
                f"{order.symbol}: the order would bring the position to {after_usd:.2f} USD, "
                f"above the limit of {limit:.2f} USD per symbol"
            )
            return OrderRefused("symbol_limit", limit, float(after_usd), order.symbol, sentence)
        if self._marks is not None:
            others_usd = marked_total(self._marks, others, beside_usd=after_usd, sure_usd=self.total_sure_usd)
        else:
            others_usd = EXACT.subtract(total_usd, held.exact_notional) if held else total_usd
        with_order_usd = EXACT.add(others_usd, after_usd)
        if with_order_usd > self._exact_total_limit:
            limit = self._limits.max_total_notional
            sentence = (
                f"{order.symbol}: the order would bring the total over all symbols to {with_order_usd:.2f} USD, "
                f"above the limit of {limit:.2f} USD"
            )
            return OrderRefused("total_limit", limit, float(with_order_usd), order.symbol, sentence)
        return None

    def _price_of(self, symbol: str, held: Held | None) -> float:
        if self._marks is not None:
            return mark_price(self._marks, symbol)
        return held.price if held else DEFAULT_MARK_PRICE_USD
