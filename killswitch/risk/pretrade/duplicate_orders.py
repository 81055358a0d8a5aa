"""Orders that are all the same, sent again and again: an order loop, or a button that is held down."""

from __future__ import annotations

from collections import deque

from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import DuplicateSettings
from killswitch.risk.refusal import OrderRefused

MAX_REMEMBERED = 100_000

_NANOSECONDS_PER_MS = 1_000_000
_DROPPED_AT_ONCE = 2
_KEPT_IDLY = 256
_Key = tuple[str, int, float, float | None]


class DuplicateOrders:
    """Refuses one more order of the same symbol, side, quantity and price within the window. Amendments are not asked.

    What has left the window is forgotten a little at every order, so the memory is bounded by what one window can hold,
    and the cost of an order does not depend on it. When too many different orders lie within one window, new ones are
    refused (``table_full``): whether they are duplicates could not be told.
    """

    name = "duplicate_orders"

    def __init__(self, settings: DuplicateSettings) -> None:
        # Newest last: an order that comes again moves to the end.
        self._sent: dict[_Key, deque[int]] = {}
        self.set_settings(settings)

    def set_settings(self, settings: DuplicateSettings) -> None:
        """Compare by another number or window; the orders remembered stay. The lock of the controls is held.

        What an earlier, shorter window has forgotten is not remembered again.
        """
        self._most = settings.max_same_orders
        self._window_ms = settings.window_ms
        self._window_ns = settings.window_ms * _NANOSECONDS_PER_MS

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse one of the same too many."""
        if order.amends:
            return None
        times = self._sent.get((order.symbol, order.sign, order.qty, order.price))
        if times is None:
            if len(self._sent) < MAX_REMEMBERED or self._oldest_is_past(order.now_ns):
                return None
            sentence = (
                f"{order.symbol}: {MAX_REMEMBERED} different orders in {self._window_ms} ms; no more are compared"
            )
            most = float(MAX_REMEMBERED)
            return OrderRefused("table_full", most, most + 1, order.symbol, sentence, "orders")
        # Of more times than the limit, from when that was higher, the newest count.
        if len(times) < self._most or order.now_ns - times[-self._most] >= self._window_ns:
            return None
        sentence = (
            f"{order.symbol}: {self._most} orders of the same side, quantity and price within {self._window_ms} ms; "
            "one more is taken for a duplicate"
        )
        return OrderRefused("duplicate_order", float(self._most), self._most + 1.0, order.symbol, sentence, "orders")

    def count(self, order: PretradeOrder) -> None:
        """Remember the order, and forget some that have left the window."""
        if order.amends:
            return
        key = (order.symbol, order.sign, order.qty, order.price)
        times = self._sent.pop(key, None)
        if times is None or times.maxlen != self._most:
            times = deque(times or (), maxlen=self._most)
        times.append(order.now_ns)
        self._sent[key] = times
        if len(self._sent) > _KEPT_IDLY:
            for _ in range(_DROPPED_AT_ONCE):
                if not self._oldest_is_past(order.now_ns):
                    break
                del self._sent[next(iter(self._sent))]

    def take_back(self, order: PretradeOrder) -> None:
        """Forget the newest one of its kind."""
        times = None if order.amends else self._sent.get((order.symbol, order.sign, order.qty, order.price))
        if times:
            times.pop()

    def _oldest_is_past(self, now_ns: int) -> bool:
        times = next(iter(self._sent.values()), None)
        return times is not None and (not times or now_ns - times[-1] >= self._window_ns)
