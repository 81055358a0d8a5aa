"""Limits that remember nothing: what may be traded, how large one order may be, how many may work at one time.

RTS 6 Art. 15(1)(b) and (c) for the size, Art. 15(5) and SEC 15c3-5(c)(2) for the symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from killswitch.risk.exact import EXACT, exact
from killswitch.risk.limits.limit_rule import FLOAT_MARGIN
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import OrderSizeSettings, WorkingOrderSettings
from killswitch.risk.refusal import OrderRefused

KnownPrice = Callable[[str], float | None]
"""What a unit of a symbol is known to be worth, in USD; ``None`` when it is not."""

_NONE = float("inf")
_SURE = 1 - FLOAT_MARGIN


class PermittedSymbols:
    """Refuses every symbol that is not on the list.

    Args:
        symbols: the list; when it is empty nothing may be traded.
    """

    name = "permitted_symbols"

    def __init__(self, symbols: Iterable[str]) -> None:
        self._symbols = frozenset(symbols)

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse a symbol that is not on the list."""
        if order.symbol in self._symbols:
            return None
        sentence = f"{order.symbol}: is not among the {len(self._symbols)} symbols that may be traded"
        return OrderRefused("symbol_not_permitted", None, None, order.symbol, sentence)


class OrderSize:
    """Refuses an order that is too large. Exactly the limit passes, in decimals and not in floats.

    A buy is worth its price, which is the most that it can cost. A sell is worth its price or the newest one of its
    symbol, whichever is more: a low limit only says that it goes at any price. A market order is worth the newest price
    of its symbol; without one its value is unknown, which refuses it where there is a limit of value.

    Args:
        settings: the limits.
        known_price: asked where no price of the symbol is watched.
    """

    name = "order_size"

    def __init__(self, settings: OrderSizeSettings, *, known_price: KnownPrice = lambda _symbol: None) -> None:
        self._known_price = known_price
        self._all = (
            _NONE if settings.max_quantity is None else settings.max_quantity,
            _NONE if settings.max_value_usd is None else settings.max_value_usd,
        )
        self._symbols = {
            symbol: (
                self._all[0] if own.max_quantity is None else own.max_quantity,
                self._all[1] if own.max_value_usd is None else own.max_value_usd,
            )
            for symbol, own in settings.symbols.items()
        }

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse too large a quantity or value."""
        max_quantity, max_value_usd = self._symbols.get(order.symbol, self._all)
        if order.qty > max_quantity:
            sentence = (
                f"{order.symbol}: the quantity {order.qty:g} is above the limit of {max_quantity:g} for one order"
            )
            return OrderRefused("order_quantity", max_quantity, order.qty, order.symbol, sentence, "units")
        if max_value_usd == _NONE:
            return None
        price = order.price
        if price is None or order.sign < 0:
            known = order.watched.price if order.watched is not None else self._known_price(order.symbol)
            if price is None or (known is not None and known > price):
                price = known
            if price is None:
                sentence = f"{order.symbol}: a market order without a price of the symbol has no known value"
                return OrderRefused("price_missing", max_value_usd, None, order.symbol, sentence)
        if order.qty * price < max_value_usd * _SURE:
            return None
        value_usd = EXACT.multiply(exact(order.qty), exact(price))
        if value_usd <= exact(max_value_usd):
            return None
        sentence = f"{order.symbol}: the order is worth {value_usd:.2f} USD, above the limit of {max_value_usd:.2f} USD"
        return OrderRefused("order_value", max_value_usd, float(value_usd), order.symbol, sentence)


class WorkingOrderLimits:
    """Refuses one order too many. The monitor asks it in the step in which it reserves, so no two slip through."""

    name = "working_orders"

    def __init__(self, settings: WorkingOrderSettings) -> None:
        self._max_total = settings.max_total
        self._max_per_symbol = settings.max_per_symbol

    def __call__(self, symbol: str, in_symbol: int, in_all: int) -> OrderRefused | None:
        """Refuse one more order beside those that work already."""
        if self._max_per_symbol is not None and in_symbol >= self._max_per_symbol:
            sentence = f"{symbol}: {in_symbol} orders work in it, and {self._max_per_symbol} may"
            most, value = float(self._max_per_symbol), in_symbol + 1.0
            return OrderRefused("working_orders_symbol", most, value, symbol, sentence, "orders")
        if self._max_total is not None and in_all >= self._max_total:
            sentence = f"{symbol}: {in_all} orders work over all symbols, and {self._max_total} may"
            return OrderRefused("working_orders", float(self._max_total), in_all + 1.0, symbol, sentence, "orders")
        return None
