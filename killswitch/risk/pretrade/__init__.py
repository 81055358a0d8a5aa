"""Pre-trade controls: one a file, and :class:`PreTradeControls`, which asks them all in a stated order."""

from killswitch.risk.pretrade.controls import PreTradeControls
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule

__all__ = ["PreTradeControls", "PretradeOrder", "PretradeRule"]
