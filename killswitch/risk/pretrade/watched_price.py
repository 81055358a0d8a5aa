"""The newest price of one symbol, and the range that its prices have had of late."""

from __future__ import annotations

from killswitch.risk.refusal import RefusalKind


class WatchedPrice:
    """The newest price of one symbol, and the range that its prices have had of late.

    Attributes:
        price: USD; of a quote the middle. The last good one while ``fault`` is set, NaN before the first good one.
        at_ns: when something came last.
        changed_ns: when it last was another price than before.
        fault: what is wrong with the newest one, ``None`` when nothing is.
        low, high: range of the good prices in the running window; NaN before the first.
        past_low, past_high: range in the window before it.
        window_ns: when the running window began.
    """

    __slots__ = ("at_ns", "changed_ns", "fault", "high", "low", "past_high", "past_low", "price", "window_ns")

    def __init__(self, price: float, now_ns: int) -> None:
        self.start(price, now_ns)

    def start(self, price: float, now_ns: int) -> None:
        """Know this price alone, and no range but it."""
        self.price = self.low = self.high = self.past_low = self.past_high = price
        self.at_ns = self.changed_ns = self.window_ns = now_ns
        self.fault: RefusalKind | None = None
