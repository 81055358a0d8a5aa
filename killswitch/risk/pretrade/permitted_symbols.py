"""Only what may be traded is traded: RTS 6 Art. 15(5), SEC 15c3-5(c)(2)."""

from __future__ import annotations

from collections.abc import Iterable

from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.refusal import OrderRefused


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
