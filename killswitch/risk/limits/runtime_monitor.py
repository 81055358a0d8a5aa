"""The pre-trade limits of one process, and the local freeze: the last thing an order is asked before it is sent.

An order that is reserved counts from that moment until it is over, so that what could be held is limited and not only
what is. For whoever reserves nothing it knows fills alone. It reads no clock to decide anything, unless its limits
change by time or volatility; and it stops only its own process. ``on_freeze`` is where an agent makes a freeze of the
cluster out of a freeze here. Cancels never come this way (A CANCEL ALWAYS PASSES).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import WallClock, wall_now
from killswitch.risk.events import FreezeEvent
from killswitch.risk.exact import exact
from killswitch.risk.limits.limit_rule import DEFAULT_MARK_PRICE_USD
from killswitch.risk.limits.limit_schedule import LimitSchedule
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.position_book import Positions
from killswitch.risk.limits.reservations import Reservations
from killswitch.risk.limits.saved_state import SavedState
from killswitch.risk.limits.warning_ladder import LimitWarning
from killswitch.risk.limits.working_orders import MAX_WORKING_ORDERS, WorkingOrders
from killswitch.risk.order_inputs import finite_number, in_range, is_name, side_sign, text_or_none
from killswitch.safe_log import say

BAD_FILLS_KEPT = 1_000


class RuntimeRiskMonitor(Reservations):
    """Limits per symbol and in total, an edge threshold, and a freeze that only a person lifts. Thread-safe.

    Rules (section A of the seed systems):

    * The *resulting* notional of a symbol is ``abs(position after the order) * price``; the total is that plus the
      notional of every other symbol. Both limits are inclusive: equal passes. A breach refuses that one order.
    * Working orders that were reserved (:meth:`reserve`) count as the worst subset of them that could fill: the
      resulting notional is the position, the order and all working orders on the order's side; the other symbols count
      with the worst of both sides. Without a reservation this is the rule above.
    * An order that only brings a position nearer to flat, without crossing zero, even if every working order on its
      side fills too, passes both limits: one must be able to get out from above a limit. It does not pass a freeze.
    * Price is the order's own. A *sell* counts at the price that is known of its symbol when that is more: its own is
      only the least that it may fetch. What is held counts at no less than the known price. An order without a price
      counts at the known price, else at 1.0.
    * The known price is the mark price when ``get_mark_price`` is given; else the newest :meth:`on_mark`, or a fill
      since then that was higher; else the last fill of a position that is held. Other symbols are valued at it too.
    * UNKNOWN IS FROZEN: a bad number in an order refuses the order (``bad_input``). An edge that is not finite, a
      mark price source that raises or returns anything but a finite positive number, and a fill or position update
      with a bad number freeze, with trigger ``limit_violation`` and ``metadata["cause"] == "monitor_error"``.

    Cost of a check: independent of the number of symbols and of working orders. With ``get_mark_price`` it is one call
    per held symbol; :meth:`on_mark` renews the price of one symbol instead, at the same cost for any number of them.

    Args:
        max_inventory_usd_per_symbol: most that may be held in one symbol, USD.
        max_total_notional_usd: most that may be held over all symbols, USD.
        edge_freeze_threshold_bps: an edge strictly below this freezes.
        get_mark_price: price of a symbol in USD; called without the lock that fills need. Without it, tell
            :meth:`on_mark`.
        wall_clock: the time that events carry.
        on_freeze: told every freeze, once, after this monitor is frozen and before anything is cancelled, with no
            lock held. The event does not yet say how the cancelling went. If it raises, the freeze stands and the
            error is logged and kept in the event.
        registry: where ``freeze_triggered_total`` and ``killswitch_limit_warnings_total`` are counted; the default
            registry of the process when ``None``.
        schedule: limits by symbol, by time of day and by volatility; they tighten the two above.
        on_warning: told every step of the warning ladder, with no lock held. If it raises, that is logged.
        max_working_orders: most reservations at once.
        price_required: refuse an order without a price (``price_missing``) while nothing is known of what its symbol is
            worth (:meth:`knows_price`), instead of counting it at 1.0 USD a unit.

    Raises:
        ValueError: a limit is not a finite number, or one of the two notional limits is not positive.

    Attributes:
        limits: the limits that orders are held against.
        blocks_total: orders refused, ever.
    """

    def __init__(
        self,
        *,
        max_inventory_usd_per_symbol: float,
        max_total_notional_usd: float,
        edge_freeze_threshold_bps: float,
        get_mark_price: Callable[[str], float] | None = None,
        wall_clock: WallClock = wall_now,
        on_freeze: Callable[[FreezeEvent], None] | None = None,
        registry: CollectorRegistry | None = None,
        schedule: LimitSchedule | None = None,
        on_warning: Callable[[LimitWarning], None] | None = None,
        max_working_orders: int = MAX_WORKING_ORDERS,
        price_required: bool = False,
    ) -> None:
        super().__init__(
            RiskLimits(
                max_inventory_usd=max_inventory_usd_per_symbol,
                max_total_notional=max_total_notional_usd,
                edge_freeze_threshold_bps=edge_freeze_threshold_bps,
            ),
            marks=get_mark_price,
            wall_clock=wall_clock,
            on_freeze=on_freeze,
            registry=registry,
            schedule=schedule,
            on_warning=on_warning,
            max_working_orders=max_working_orders,
            price_required=price_required,
        )
        self._bad_fills: deque[dict[str, Any]] = deque(maxlen=BAD_FILLS_KEPT)

    # ---- what is configured

    @property
    def max_inventory_usd_per_symbol(self) -> float:
        """Most that may be held in one symbol, USD."""
        return self.limits.max_inventory_usd

    @property
    def max_total_notional_usd(self) -> float:
        """Most that may be held over all symbols, USD."""
        return self.limits.max_total_notional

    @property
    def edge_freeze_threshold_bps(self) -> float:
        """An edge strictly below this freezes."""
        return self.limits.edge_freeze_threshold_bps

    def get_mark_price(self, symbol: str) -> float:
        """Return what the mark price source says of a symbol, unchecked; 1.0 without a source."""
        return DEFAULT_MARK_PRICE_USD if self._marks is None else self._marks(symbol)

    # ---- after a fill

    def on_fill(self, symbol: str, side: str, qty: float, price: float, *, client_order_id: str | None = None) -> None:
        """Add a fill to the position: buys add, sells subtract. Counts when frozen too, for a fill is a fact.

        With the id of an order that is reserved, the filled quantity leaves the reservation in the same step, and the
        last fill ends it. Without one, or with an id that is not reserved (a fill that comes after the cancel), only
        the position changes; a reservation then counts until it is released, which can only refuse too much.

        A fill with an unknown side or a number that is not finite and positive is *not* added, and freezes: from then
        on the position is not known. It is kept as it came (``get_bad_fills``). Nothing is raised, because the caller
        is the thread that brings the venue's next fill.
        """
        sign = side_sign(side)
        quantity = finite_number(qty)
        if sign is None or quantity is None or not in_range(quantity):
            self._distrust("fill", symbol, side, qty, price)
            return
        self._add(symbol, sign, quantity, price, side=side, client_order_id=client_order_id)

    def update_position(self, symbol: str, qty: float, price: float) -> None:
        """Add a signed quantity to the position, as a position tracker says it: above 0 bought, below 0 sold.

        A quantity of 0 only renews the price that the symbol is valued at, as :meth:`on_mark` does; but bad numbers
        freeze, as for :meth:`on_fill`.
        """
        quantity = finite_number(qty)
        if quantity is None or not (quantity == 0 or in_range(abs(quantity))):
            self._distrust("position update", symbol, None, qty, price)
            return
        self._add(symbol, -1 if quantity < 0 else 1, abs(quantity), price, side=None)

    def _add(
        self, symbol: str, sign: int, qty: float, price: float, *, side: str | None, client_order_id: str | None = None
    ) -> None:
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
            warnings = self._look_at_fill(symbol, self._quick_limits(symbol)) if added else ()
        if warnings:
            self._warn(warnings)
        if not added:
            self._distrust("fill", symbol, side, qty, price)

    def _distrust(self, what: str, symbol: object, side: object, qty: object, price: object) -> None:
        """Freeze because a position is no longer known, and keep what came."""
        as_it_came = {"symbol": str(symbol), "side": str(side), "qty": str(qty), "price": str(price)}
        at = self._local_freeze.time()
        with self._lock:
            self._bad_fills.append({"at": at, **as_it_came})
        reason = f"a {what} of {symbol} cannot be trusted: side {side}, quantity {qty}, price {price}"
        self._freeze_for_monitor_error(reason, text_or_none(symbol), as_it_came)

    def reset(self) -> None:
        """Forget the freeze, its cause and all positions. Counters, events and reservations stay.

        An order that works at the venue goes on working there, so it goes on counting until it is released.
        """
        with self._lock:
            self._local_freeze.forget()
            self._book.clear_positions()
        say("warning", "risk monitor reset")

    def get_position(self, symbol: str) -> float:
        """Signed quantity held of one symbol, 0.0 when flat."""
        held = self._book.positions.held.get(symbol)
        return held.quantity if held else 0.0

    def get_positions(self) -> Positions:
        """Signed quantity of every symbol that is not flat, as a copy that reads 0.0 for any other symbol."""
        with self._lock:
            return Positions((symbol, held.quantity) for symbol, held in self._book.positions.held.items())

    def get_total_notional(self) -> float:
        """Sum over symbols of ``abs(position) * price`` in USD.

        Freezes when a mark price is not usable; that symbol then counts at its last fill.
        """
        return math.fsum(self._notionals()[0].values())

    def get_potential_notional(self, symbol: str | None = None) -> float:
        """What would be held at worst if any of the working orders filled, in USD; of one symbol or over all.

        Positions are worth their newest mark (:meth:`on_mark`) or their last fill, buys that work their own price, and
        sells their own price or what their symbol is worth, whichever is more. ``get_mark_price`` is not asked. Without
        reservations this is the notional that is held.
        """
        with self._lock:
            self._book.book()
            return self._book.total_usd if symbol is None else float(self._book.worst_usd(symbol))

    def get_utilization(self) -> dict[str, float]:
        """How much of each limit is used, in per cent.

        ``total_notional_utilization_pct``, ``max_inventory_utilization_pct`` (the symbol that holds most, 0 when flat)
        and ``inventory_utilization_pct:SYMBOL`` for every symbol held. With ``get_mark_price`` the warning ladder looks
        at the figures as well; a bad mark freezes, as for :meth:`get_total_notional`.
        """
        limits = self.limits  # of one moment: they may change meanwhile
        notionals_usd, prices = self._notionals()
        if self._marks is not None:
            self._look_at_prices(prices)
        used = {
            symbol: 100.0 * notional_usd / limits.max_inventory_usd for symbol, notional_usd in notionals_usd.items()
        }
        total_usd = math.fsum(used.values()) * limits.max_inventory_usd / 100.0
        return {
            "total_notional_utilization_pct": 100.0 * total_usd / limits.max_total_notional,
            "max_inventory_utilization_pct": max(used.values(), default=0.0),
            **{f"inventory_utilization_pct:{symbol}": pct for symbol, pct in used.items()},
        }

    def get_bad_fills(self) -> list[dict[str, Any]]:
        """Fills and updates that were not added because they made no sense, as they came, oldest first."""
        with self._lock:
            return [dict(fill) for fill in self._bad_fills]

    def _notionals(self) -> tuple[dict[str, float], dict[str, float]]:
        """Notional per held symbol in USD, and the mark of each that its source has told."""
        with self._lock:
            held = dict(self._book.positions.held)
        prices = {} if self._marks is None else self._marks_of(self._marks, held)
        notionals = {
            symbol: abs(position.quantity) * prices[symbol] if symbol in prices else position.notional
            for symbol, position in held.items()
        }
        return notionals, prices

    # ---- over a restart

    def persist_to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON values, one consistent moment of it."""
        with self._lock:
            self._book.book()
            moment = SavedState(
                frozen=self.is_frozen(),
                blocks_total=self.blocks_total,
                freezes_total=self.freezes_total,
                last_freeze_reason=self.last_freeze_reason,
                last_freeze_symbol=self.last_freeze_symbol,
                positions={name: (held.exact_quantity, held.price) for name, held in self._book.positions.held.items()},
                freeze_events=list(self._local_freeze.events),
                bad_fills=list(self._bad_fills),
                working_orders=self._book.working.to_json(),
            )
        return moment.to_json(self.limits)

    def restore_from_dict(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`persist_to_dict` returned, except the limits: those come from configuration.

        A restart never releases: a monitor that is frozen stays so whatever the data says, and orders that were
        working count until they are released.

        Raises:
            ValueError: the data cannot be read; nothing is taken over and the monitor is frozen.
        """
        try:
            saved = SavedState.from_json(data)
            working = WorkingOrders.from_json(saved.working_orders, self._book.working.max_orders)
        except Exception as error:
            self._freeze_for_monitor_error(f"the saved state of the monitor cannot be read: {error!r}", None, {})
            raise ValueError(f"the saved state of the monitor cannot be read, so it is frozen: {error!r}") from error
        with self._lock:
            self._local_freeze.take_over(
                frozen=saved.frozen,
                count=saved.freezes_total,
                last_reason=saved.last_freeze_reason,
                last_symbol=saved.last_freeze_symbol,
                events=saved.freeze_events,
            )
            self.blocks_total = saved.blocks_total
            self._bad_fills = deque(map(dict, saved.bad_fills), maxlen=BAD_FILLS_KEPT)
            self._book.clear_positions()
            for symbol, (quantity, price) in saved.positions.items():
                self._book.replace_position(symbol, quantity, price)
            self._book.replace_working(working)


def create_risk_monitor(
    limits: RiskLimits | None = None,
    *,
    max_inventory_usd: float | None = None,
    max_total_notional: float | None = None,
    edge_freeze_threshold_bps: float | None = None,
    get_mark_price: Callable[[str], float] | None = None,
    wall_clock: WallClock = wall_now,
    on_freeze: Callable[[FreezeEvent], None] | None = None,
    registry: CollectorRegistry | None = None,
    schedule: LimitSchedule | None = None,
    on_warning: Callable[[LimitWarning], None] | None = None,
) -> RuntimeRiskMonitor:
    """Make a monitor from :class:`RiskLimits`, or from the fields of one by name.

    Raises:
        TypeError: both are given.
        ValueError: a field is missing or not valid.
    """
    fields = {
        "max_inventory_usd": max_inventory_usd,
        "max_total_notional": max_total_notional,
        "edge_freeze_threshold_bps": edge_freeze_threshold_bps,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if limits is not None and given:
        raise TypeError(f"give the limits once: as RiskLimits, or by name ({', '.join(given)})")
    valid = limits if limits is not None else RiskLimits.model_validate(given)
    return RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=valid.max_inventory_usd,
        max_total_notional_usd=valid.max_total_notional,
        edge_freeze_threshold_bps=valid.edge_freeze_threshold_bps,
        get_mark_price=get_mark_price,
        wall_clock=wall_clock,
        on_freeze=on_freeze,
        registry=registry,
        schedule=schedule,
        on_warning=on_warning,
    )
