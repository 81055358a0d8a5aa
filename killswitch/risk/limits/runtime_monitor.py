"""The pre-trade limits of one process, and the local freeze: the last thing an order is asked before it is sent.

An order that is reserved counts from that moment until it is over, so that what could be held is limited and not only
what is. For whoever reserves nothing it knows fills alone. It reads no clock to decide anything, unless its limits
change by time or volatility; and it stops only its own process. ``on_freeze`` is where an agent makes a freeze of the
cluster out of a freeze here. Cancels never come this way (A CANCEL ALWAYS PASSES).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, now_ns, wall_now
from killswitch.risk.events import MONITOR_ERROR, FreezeEvent, FreezeTrigger
from killswitch.risk.limits.limit_check import LimitCheck, OrderSimulation, Outcome, WorkingOrderRule
from killswitch.risk.limits.limit_rule import DEFAULT_MARK_PRICE_USD
from killswitch.risk.limits.limit_schedule import EffectiveLimits, LimitSchedule, LimitScheduleSettings, MinuteOfDay
from killswitch.risk.limits.limits import LimitsInForce, RiskLimits
from killswitch.risk.limits.position_feed import PositionFeed
from killswitch.risk.limits.process_freeze import OrderCanceller, ProcessFreeze
from killswitch.risk.limits.saved_state import SavedState
from killswitch.risk.limits.warning_ladder import LimitWarning, LimitWarnings
from killswitch.risk.limits.working_orders import MAX_WORKING_ORDERS, WorkingOrders
from killswitch.risk.limits.worst_case_exposure import Positions, WorstCaseExposure
from killswitch.risk.order_inputs import ReadOrder, is_name, plain_sign, read_order
from killswitch.risk.refusal import OrderRefused
from killswitch.safe_log import say
from killswitch.settings.settings_diff import say_changed


class RuntimeRiskMonitor:
    """Limits per symbol and in total, an edge threshold, and a freeze that only a person lifts. Thread-safe.

    It owns the lock, and stands on a freeze of this process, the worst case of what is held and works, the limits in
    force, the check of orders against them, and the warnings on the way to a limit.

    Rules:

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
        limits = RiskLimits(
            max_inventory_usd=max_inventory_usd_per_symbol,
            max_total_notional=max_total_notional_usd,
            edge_freeze_threshold_bps=edge_freeze_threshold_bps,
        )
        self.blocks_total = 0
        self._marks = get_mark_price
        self._lock = lock = threading.Lock()
        self._book = book = WorstCaseExposure(max_working_orders)
        self._limits = LimitsInForce(limits, schedule)
        self._freeze = ProcessFreeze(lock=lock, wall_clock=wall_clock, on_freeze=on_freeze, registry=registry)
        self._warnings = LimitWarnings(
            book, self._limits, lock=lock, marked=get_mark_price is not None, on_warning=on_warning, registry=registry
        )
        parts = book, self._limits, self._freeze, self._warnings
        self._feed = PositionFeed(*parts, lock=lock, marks=get_mark_price)
        self._check = LimitCheck(*parts, lock=lock, marks=get_mark_price, price_required=price_required)

    # ---- what is configured

    @property
    def limits(self) -> RiskLimits:
        """The limits that orders are held against."""
        return self._limits.fixed

    @property
    def schedule(self) -> LimitSchedule | None:
        """What tightens the limits, the same object when its settings change; ``None`` when nothing does."""
        return self._limits.schedule

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

    # ---- the edge

    def on_edge_update(self, symbol: str, net_bps: float) -> bool:
        """Freeze when the expected net edge of a symbol is strictly below the threshold, or is not finite.

        Returns:
            True when this call froze.
        """
        return self._freeze.for_edge(net_bps, symbol, self.limits.edge_freeze_threshold_bps)[1] is not None

    def auto_freeze_on_edge_drop(self, current_edge_bps: float, order_router: OrderCanceller) -> bool:
        """As :meth:`on_edge_update` for the whole book, and cancel everything working through the router.

        On an existing freeze it cancels only if no earlier call for that freeze has cancelled everything.

        Returns:
            True when this call froze.
        """
        bad, event = self._freeze.for_edge(current_edge_bps, None, self.limits.edge_freeze_threshold_bps)
        if bad:
            self._freeze.cancel_working(self._freeze.last_reason or "frozen", order_router, again=False)
        return event is not None

    # ---- freeze and release

    def freeze(
        self,
        reason: str,
        symbol: str | None = None,
        *,
        trigger: FreezeTrigger = "manual",
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Freeze this process. On top of a freeze only the newest cause is noted; nothing counts again.

        Returns:
            True when this call froze.

        Raises:
            ValueError: the trigger does not exist. The monitor is frozen all the same.
        """
        return self._freeze.freeze(reason, symbol, trigger, metadata or {}) is not None

    def manual_freeze(self, reason: str, order_router: OrderCanceller) -> bool:
        """Freeze and cancel everything working through the router; on top of a freeze it cancels again.

        Returns:
            True when this call froze.
        """
        event = self._freeze.freeze(reason, None, "manual", {})
        self._freeze.cancel_working(reason, order_router, again=True)
        return event is not None

    def unfreeze(self, reason: str) -> bool:
        """Let orders pass again in this process. A freeze of the cluster is not touched.

        Returns:
            True when it was frozen.

        Raises:
            ValueError: no reason is given; it stays frozen.
        """
        return self._freeze.lift(reason)

    # ---- what is known of the freeze

    @property
    def freezes_total(self) -> int:
        """Freezes, ever; a freeze on top of a freeze does not count."""
        return self._freeze.count

    @property
    def last_freeze_reason(self) -> str | None:
        """Newest cause, also of a freeze on top of a freeze; ``None`` before the first."""
        return self._freeze.last_reason

    @property
    def last_freeze_symbol(self) -> str | None:
        """Symbol of the newest cause, ``None`` when it has none."""
        return self._freeze.last_symbol

    def is_frozen(self) -> bool:
        """True while no order passes."""
        return self._freeze.in_force

    def get_freeze_events(self) -> list[FreezeEvent]:
        """The newest freezes (``process_freeze.FREEZE_EVENTS_KEPT``), oldest first, with how their cancelling went."""
        with self._lock:
            return list(self._freeze.events)

    # ---- limits that change

    def set_limits(self, limits: RiskLimits) -> None:
        """Hold orders against other limits from now on. Positions and orders that work already stay.

        Below what is held, orders that grow are refused and orders that reduce pass. The warning ladder looks again.
        """
        with self._lock:
            before = self._limits.set_limits(limits)
        say_changed("risk limits changed", before, limits)
        self._feed.look_again()

    def set_schedule(
        self,
        settings: LimitScheduleSettings | None,
        *,
        session_clock: MinuteOfDay | None = None,
        clock: NowNs = now_ns,
    ) -> None:
        """Tighten the limits by another schedule from now on; ``None``: by none. What works already stays.

        Volatilities that are known are held against the new steps. A schedule that is switched off goes on taking
        volatilities in, and knows them when it is switched on again. The warning ladder looks again.

        Where both change, tell first what tightens: between two calls the old of one holds with the new of the other;
        or call :meth:`set_limits_and_schedule`, which knows no in between.

        Args:
            settings: how the limits tighten.
            session_clock: the time of day; the one that is known already when ``None``.
            clock: nanoseconds, for the first schedule of a monitor that was made without one.

        Raises:
            ValueError: there are sessions and no session clock. Nothing has changed.
        """
        with self._lock:
            before = self._limits.set_schedule(settings, session_clock, clock)
        say_changed("limit schedule changed", before, settings)
        self._feed.look_again()

    def set_limits_and_schedule(
        self,
        limits: RiskLimits,
        settings: LimitScheduleSettings | None,
        *,
        session_clock: MinuteOfDay | None = None,
        clock: NowNs = now_ns,
    ) -> None:
        """Change both in one step; arguments and errors as :meth:`set_limits` and :meth:`set_schedule` have them."""
        with self._lock:
            schedule_before = self._limits.set_schedule(settings, session_clock, clock)
            before = self._limits.set_limits(limits)
        say_changed("risk limits changed", before, limits)
        say_changed("limit schedule changed", schedule_before, settings)
        self._feed.look_again()

    def limit_working_orders(self, rule: WorkingOrderRule | None) -> None:
        """Ask this rule, with the lock held, about every order; ``None`` asks none."""
        with self._lock:
            self._check.working_order_rule = rule

    def limits_of(self, symbol: str) -> EffectiveLimits:
        """The limits of a symbol as they are now: by symbol, time of day and volatility."""
        return self._limits.of(symbol)

    # ---- prices

    def on_mark(self, symbol: str, price: float) -> None:
        """Value a symbol at this price from now on: what is held of it, what works in it, orders without a price.

        Call it whenever the market moves, from any thread; a price that says nothing new costs little. It freezes
        nothing and never raises: what is no finite number above 0 (1e-18 to 1e15), or of no symbol, is no knowledge,
        and the last good price goes on counting. Whether a price is too old is for the health of the prices to say.
        A monitor with ``get_mark_price`` asks that instead, and takes nothing in here.

        Args:
            symbol: name of the instrument.
            price: USD.
        """
        self._feed.on_mark(symbol, price)

    def knows_price(self, symbol: str) -> bool:
        """Tell whether anything is known of what a unit of a symbol is worth.

        True with ``get_mark_price``, after a good :meth:`on_mark`, and while the symbol is held, which was bought or
        sold at a price. The 1.0 USD that stands for an unknown price is not knowledge.
        """
        return self._marks is not None or (is_name(symbol) and self._book.known_price(symbol) is not None)

    def known_price(self, symbol: str) -> float | None:
        """What a unit of a symbol is known to be worth in USD, ``None`` when it is not; no source is asked for it.

        The newest :meth:`on_mark`, or a fill since then that was higher; else the last fill while the symbol is held.
        """
        return self._book.known_price(symbol) if self._marks is None else None

    # ---- before an order

    def check_before_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> bool:
        """Tell whether an order may be sent; every False counts in ``blocks_total``. Never raises.

        Nothing is reserved: of two orders that are checked before either fills, each is judged alone.

        Args:
            symbol: name of the instrument.
            side: ``buy`` or ``sell``, in lower, upper or title case.
            qty: quantity, greater than 0.
            price: USD, greater than 0; the mark price when ``None``.
        """
        sign = plain_sign(symbol, side, qty, price)
        if sign and price is not None and self._check.surely_passes(symbol, sign, qty, price):
            return True
        refusal, verdict = self._check.explain(read_order(symbol, side, qty, price))
        if verdict is not None:
            self._warnings.tell(self._warnings.look_at_verdict(symbol, verdict, counted=False))
        return refusal is None or self._count_refusal(refusal) is None

    def explain_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Return why an order would be refused, ``None`` when it would pass. Counts nothing and freezes nothing.

        The mark price source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        return self._check.explain_read(read_order(symbol, side, qty, price))

    def explain_read(self, order: ReadOrder) -> OrderRefused | None:
        """As :meth:`explain_order`, of an order that has been read."""
        return self._check.explain_read(order)

    def surely_passes(self, symbol: str, sign: int, qty: float, price: float) -> bool:
        """Decide the common case quickly, with the sign as it was read: True only when nothing would refuse it."""
        return self._check.surely_passes(symbol, sign, qty, price)

    def simulate_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderSimulation:
        """Work out everything that would happen to an order, without any side effect.

        All that would refuse it is told, not only the first; with the figures that it would lead to. The mark price
        source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        return self._check.simulate(read_order(symbol, side, qty, price))

    def would_reduce(self, symbol: str, side: str, qty: float, *, client_order_id: str | None = None) -> bool:
        """Tell whether an order can only reduce, whatever else fills: the rule of reduce-only.

        Every reserved order counts until it is released, so also one whose cancel is on its way. What cannot be judged
        does not reduce.

        Args:
            symbol: name of the instrument.
            side: as for :meth:`check_before_order`.
            qty: quantity, greater than 0.
            client_order_id: the order's own id, when it is reserved already: it does not count against itself.
        """
        order = read_order(symbol, side, qty, None)
        return not isinstance(order, OrderRefused) and self._check.would_reduce(order, client_order_id)

    def _told(self, outcome: Outcome) -> OrderRefused | None:
        refusal, warnings = outcome
        if warnings:
            self._warnings.tell(warnings)
        return None if refusal is None else self._count_refusal(refusal)

    def _count_refusal(self, refusal: OrderRefused) -> OrderRefused:
        with self._lock:
            self.blocks_total += 1
        if refusal.kind == MONITOR_ERROR:
            self._freeze.for_monitor_error(refusal.sentence, refusal.symbol, {})
        return refusal

    # ---- working orders

    def reserve(
        self, client_order_id: str, symbol: str, side: str, qty: float, price: float | None = None
    ) -> OrderRefused | None:
        """Hold an order against the limits and count it from now on until it is over, in one step.

        Call it just before the order is sent, and :meth:`release` when it is over or was not sent after all. Fills
        that come with the order's id are taken out of the reservation as they reach the position. A cancel that is
        asked for changes nothing here: the order counts until the venue has confirmed it.

        Args:
            client_order_id: the order's own id, not one that is reserved already.
            symbol, side, qty, price: as for :meth:`check_before_order`; without a price the order counts at the price
                that it was judged at.

        Returns:
            ``None`` when it may be sent and is reserved; else why not. Every refusal counts in ``blocks_total``.
        """
        sign = plain_sign(symbol, side, qty, price)
        if sign:
            return self._told(self._check.reserve(client_order_id, symbol, sign, qty, price))
        return self.reserve_read(client_order_id, read_order(symbol, side, qty, price))

    def reserve_read(self, client_order_id: str, order: ReadOrder | OrderRefused) -> OrderRefused | None:
        """As :meth:`reserve`, of an order that has been read; one that makes no sense is refused as what it is."""
        return self._told(self._check.reserve_read(client_order_id, order))

    def amend(self, client_order_id: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Hold an amendment of a working order against the limits, and count the larger of before and after.

        Call it just before the amendment is sent, and :meth:`settle_amend` when the venue has answered. An amendment
        after which no more can fill than before passes every limit. It does not pass a freeze: cancel instead.

        Args:
            client_order_id: the order's id.
            qty: the whole quantity that it is to have, filled parts included.
            price: USD; as before when ``None``.

        Returns:
            ``None`` when it may be sent; else why not. Every refusal counts in ``blocks_total``.
        """
        return self._told(self._check.amend(client_order_id, qty, price))

    def settle_amend(self, client_order_id: str, *, accepted: bool) -> bool:
        """Take in the venue's answer to an amendment: from now on the order counts as it is.

        Returns:
            False when no such order works.
        """
        return self._check.settle(client_order_id, accepted=accepted)

    def release(self, client_order_id: str) -> bool:
        """Stop counting an order: the venue can fill nothing of it any more, or it was never sent.

        Returns:
            False when no such order works; an order that has filled wholly is released by its last fill.
        """
        return self._check.release(client_order_id)

    def reserved(self, client_order_id: str) -> tuple[str, str, float] | None:
        """Symbol, side and price of a reserved order, ``None`` when no such order works."""
        with self._lock:
            order = self._book.order(client_order_id)
            return None if order is None else (order.symbol, "buy" if order.sign > 0 else "sell", float(order.price))

    def reserved_quantity(self, client_order_id: str) -> float | None:
        """The whole quantity that a reserved order has, filled parts included; ``None`` when no such order works."""
        with self._lock:
            order = self._book.order(client_order_id)
            return None if order is None else float(order.quantity)

    def note_strategy(self, client_order_id: str, strategy: str) -> None:
        """Keep with a reservation which strategy the order is of; ``""`` for none. Waits for nothing."""
        self._book.working.note_strategy(client_order_id, strategy)

    def strategy_of(self, client_order_id: str) -> str | None:
        """What :meth:`note_strategy` has noted of an order that works, else ``None``. Waits for nothing."""
        return self._book.working.strategy_of(client_order_id)

    def working_orders(self, symbol: str | None = None) -> int:
        """How many orders are reserved, in one symbol or in all."""
        with self._lock:
            working = self._book.working
            return len(working.orders) if symbol is None else working.orders_of(symbol)

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
        self._feed.on_fill(symbol, side, qty, price, client_order_id)

    def update_position(self, symbol: str, qty: float, price: float) -> None:
        """Add a signed quantity to the position, as a position tracker says it: above 0 bought, below 0 sold.

        A quantity of 0 only renews the price that the symbol is valued at, as :meth:`on_mark` does; but bad numbers
        freeze, as for :meth:`on_fill`.
        """
        self._feed.on_update(symbol, qty, price)

    def reset(self) -> None:
        """Forget the freeze, its cause and all positions. Counters, events and reservations stay.

        An order that works at the venue goes on working there, so it goes on counting until it is released.
        """
        with self._lock:
            self._freeze.forget()
            self._book.clear_positions()
        say("warning", "risk monitor reset")

    def get_position(self, symbol: str) -> float:
        """Signed quantity held of one symbol, 0.0 when flat."""
        held = self._book.held.get(symbol)
        return held.quantity if held else 0.0

    def get_positions(self) -> Positions:
        """Signed quantity of every symbol that is not flat, as a copy that reads 0.0 for any other symbol."""
        with self._lock:
            return Positions((symbol, held.quantity) for symbol, held in self._book.held.items())

    def get_total_notional(self) -> float:
        """Sum over symbols of ``abs(position) * price`` in USD.

        Freezes when a mark price is not usable; that symbol then counts at its last fill.
        """
        return math.fsum(self._feed.notionals()[0].values())

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
        return self._feed.utilization(self.limits)  # limits of one moment: they may change meanwhile

    def get_bad_fills(self) -> list[dict[str, Any]]:
        """Fills and updates that were not added because they made no sense, as they came, oldest first."""
        with self._lock:
            return [dict(fill) for fill in self._feed.bad_fills]

    # ---- over a restart

    def persist_to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON values, one consistent moment of it."""
        with self._lock:
            self._book.book()
            moment = SavedState.of(self._freeze, self._book, self.blocks_total, self._feed.bad_fills)
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
            self._freeze.for_monitor_error(f"the saved state of the monitor cannot be read: {error!r}", None, {})
            raise ValueError(f"the saved state of the monitor cannot be read, so it is frozen: {error!r}") from error
        with self._lock:
            self.blocks_total = saved.blocks_total
            saved.put_back(self._freeze, self._book, self._feed.bad_fills)
            self._book.replace_working(working)
