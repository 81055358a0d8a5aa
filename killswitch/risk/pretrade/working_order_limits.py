"""How many orders may work at one time, in all and per symbol."""

from __future__ import annotations

from killswitch.risk.pretrade.pretrade_settings import WorkingOrderSettings
from killswitch.risk.refusal import OrderRefused


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
