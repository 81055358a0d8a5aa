"""What happened in one calendar day: orders, cancels, losses. Which day it is, somebody else says."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.order_inputs import finite_number
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import DailySettings
from killswitch.risk.refusal import OrderRefused, RefusalKind, RefusalUnit

CalendarDay = Callable[[], dt.date]
"""The day that counts run by, in whatever time zone the desk counts in."""


class DailyCounts:
    """Counts of the running day. A later day starts from nothing; an earlier one, a calendar that steps back, does not.

    Orders are counted by whoever holds the lock of the controls; cancels and results may come from any thread and wait
    for no order.

    Args:
        settings: the limits.
        day: the calendar.
        reduces: whether an order can only reduce its position. Such an order passes whatever is used up: one must be
            able to get out.
    """

    name = "daily_counts"

    def __init__(self, settings: DailySettings, day: CalendarDay, *, reduces: Callable[[PretradeOrder], bool]) -> None:
        self._settings = settings
        self._calendar = day
        self._reduces = reduces
        self._lock = threading.Lock()
        self._day = dt.date.min
        self._orders = self._cancels = self._losses = 0
        self._cancels_since_order = 0
        self._result_usd: Decimal = ZERO
        self._result_known = True

    def set_settings(self, settings: DailySettings) -> None:
        """Hold the day to other limits; what was counted stays. The lock of the controls is held."""
        self._settings = settings

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order when a count of the day is used up, and it does not only reduce."""
        day = self._calendar()
        if day is not self._day and day > self._day:
            return None  # the first order of a new day
        refusal = self._used_up(order)
        return None if refusal is None or self._reduces(order) else refusal

    def _used_up(self, order: PretradeOrder) -> OrderRefused | None:
        """The first count that is used up, whatever the order does to its position."""
        most = self._settings
        if most.max_orders is not None and self._orders >= most.max_orders and order.grows:
            return _used_up("daily_orders", order.symbol, self._orders + 1, most.max_orders, "orders")
        if most.max_cancels is not None and self._cancels >= most.max_cancels:
            return _used_up("daily_cancels", order.symbol, self._cancels, most.max_cancels, "cancels")
        if most.max_losses is not None and self._losses >= most.max_losses:
            return _used_up("daily_losses", order.symbol, self._losses, most.max_losses, "losses")
        if most.max_loss_usd is not None and not (self._result_known and self._result_usd >= 0):
            return self._loss_refusal(order.symbol, most.max_loss_usd)
        return None

    def _loss_refusal(self, symbol: str, max_loss_usd: float) -> OrderRefused | None:
        if not self._result_known:
            sentence = f"{symbol}: a result of today was not a number, so what was lost today is unknown"
            return OrderRefused("daily_loss", max_loss_usd, None, symbol, sentence)
        lost = self._result_usd.copy_negate()
        if lost < exact(max_loss_usd):
            return None
        sentence = f"{symbol}: {lost:.2f} USD were lost today, and the limit is {max_loss_usd:.2f} USD"
        return OrderRefused("daily_loss", max_loss_usd, float(lost), symbol, sentence)

    def count(self, order: PretradeOrder) -> None:
        """One order of today: a new one, or an amendment that asks for a larger quantity than works."""
        day = self._calendar()
        with self._lock:
            if day is not self._day:
                self._turn(day)
            self._cancels_since_order = 0
            if order.grows:
                self._orders += 1

    def take_back(self, order: PretradeOrder) -> None:
        """One order of today less."""
        with self._lock:
            if order.grows and self._orders > 0:
                self._orders -= 1

    def on_cancel(self) -> None:
        """A cancel was sent. It never asked here first, and the calendar is not asked now: A CANCEL ALWAYS PASSES."""
        with self._lock:
            self._cancels += 1
            self._cancels_since_order += 1

    def on_result(self, pnl_usd: float) -> None:
        """A trade has ended with this profit (above 0) or loss (below 0), in USD.

        What is not a finite number makes the day's result unknown, which counts as a loss that is too large until the
        day ends.
        """
        result, day = finite_number(pnl_usd), self._today()
        with self._lock:
            self._turn(day)
            if result is None:
                self._result_known = False
                return
            self._result_usd = EXACT.add(self._result_usd, exact(result))
            self._losses += result < 0

    def _today(self) -> dt.date:
        try:
            return self._calendar()
        except Exception:  # a calendar that fails ends no day; orders are refused while it fails
            return self._day

    def _turn(self, day: dt.date) -> None:
        """Start from nothing when the day is a later one. The lock is held."""
        if day > self._day:
            # Cancels since the last order may be of either day; they count in the new one.
            self._orders, self._cancels, self._losses = 0, self._cancels_since_order, 0
            self._result_usd, self._result_known = ZERO, True
            self._day = day

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values: a restart must not start the day again."""
        with self._lock:
            return {
                "day": self._day.isoformat(),
                "orders": self._orders,
                "cancels": self._cancels,
                "losses": self._losses,
                "result_usd": str(self._result_usd),
                "result_known": self._result_known,
            }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over the counts of a day that is not before the one that is counted now.

        Raises:
            ValueError, KeyError, TypeError: the data cannot be read; nothing is taken over.
        """
        day, result = dt.date.fromisoformat(data["day"]), Decimal(data["result_usd"])
        counts = [data[name] for name in ("orders", "cancels", "losses")]
        if not result.is_finite() or any(
            isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in counts
        ):
            raise ValueError(f"the counts of {day} are {counts} with a result of {result}")
        with self._lock:
            if day >= self._day:
                self._day = day
                self._orders, self._cancels, self._losses = counts
                self._result_usd, self._result_known = result, data["result_known"] is True


def _used_up(kind: RefusalKind, symbol: str, value: int, most: int, what: RefusalUnit) -> OrderRefused:
    sentence = f"{symbol}: {value} {what} today, and the limit of the day is {most}"
    return OrderRefused(kind, float(most), float(value), symbol, sentence, what)
