"""Holding orders against the limits: checked, explained, simulated, warned of.

The part of :class:`~agents.risk.runtime_monitor.RuntimeRiskMonitor` that changes nothing of what is held or working.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal

from prometheus_client import REGISTRY, CollectorRegistry

from agents.risk.events import MONITOR_ERROR, FreezeEvent
from agents.risk.exact import EXACT, ZERO, exact
from agents.risk.freeze_doors import FreezeDoors
from agents.risk.limit_rule import FLOAT_MARGIN, Moment, Verdict, judge
from agents.risk.limit_schedule import EffectiveLimits, LimitSchedule, LimitScheduleSettings, MinuteOfDay
from agents.risk.limits import OrderRefused, RiskLimits
from agents.risk.local_freeze import say
from agents.risk.mark_prices import Exposed, MarkFault, MarkPriceSource
from agents.risk.order_inputs import (
    ReadOrder,
    finite_number,
    in_range,
    is_name,
    plain_sign,
    read_order,
    refused,
    side_sign,
    text_or_none,
)
from agents.risk.order_simulation import OrderSimulation
from agents.risk.potential_book import PotentialBook
from agents.risk.settings_diff import say_changed
from agents.risk.warning_ladder import LimitWarning, WarningLadder, warning_counter
from agents.risk.working_orders import WorkingOrder
from killswitch.clock import NowNs, WallClock, now_ns
from killswitch.core.reduce_only import stays_within

WorkingOrderRule = Callable[[str, int, int], OrderRefused | None]
"""Takes a symbol, how many orders work in it and how many in all; refuses one more order, or does not."""

_SURE = 1 - FLOAT_MARGIN
_WIDER = 1 + FLOAT_MARGIN


class OrderLimits(FreezeDoors):
    """The limits, and what is held and working, which they are about. Thread-safe.

    Arguments as :class:`~agents.risk.runtime_monitor.RuntimeRiskMonitor` has them.

    Attributes:
        limits: the limits that orders are held against.
        schedule: limits by symbol, time of day and volatility; ``None`` when there are none. It stays the same object
            when its settings change.
        blocks_total: orders refused, ever.
    """

    def __init__(
        self,
        limits: RiskLimits,
        *,
        marks: MarkPriceSource | None,
        wall_clock: WallClock,
        on_freeze: Callable[[FreezeEvent], None] | None,
        registry: CollectorRegistry | None,
        schedule: LimitSchedule | None,
        on_warning: Callable[[LimitWarning], None] | None,
        max_working_orders: int,
        price_required: bool,
    ) -> None:
        super().__init__(limits, lock=threading.Lock(), wall_clock=wall_clock, on_freeze=on_freeze, registry=registry)
        self.blocks_total = 0
        self._marks = marks
        self._price_required = price_required
        self.schedule = schedule
        self._known_schedule = schedule  # also while it is switched off: volatilities go on coming to it
        self._limits_changes = 0
        self._on_warning = on_warning
        self._warnings_told = warning_counter(registry if registry is not None else REGISTRY)
        self._ladder = WarningLadder()
        # Mark prices are asked for without the lock, so that a slow source holds up no fill; this one keeps two
        # reservations from being judged by the same moment meanwhile.
        self._reserving = threading.Lock()
        self._working_order_rule: WorkingOrderRule | None = None
        self._book = PotentialBook(max_working_orders)
        self._take_limits(limits)

    def _take_limits(self, limits: RiskLimits) -> None:
        self.limits = limits
        symbol_usd, total_usd = limits.max_inventory_usd, limits.max_total_notional
        self._fixed_limits = EffectiveLimits(symbol_usd, total_usd, exact(symbol_usd), exact(total_usd))
        self._fixed_quick = symbol_usd, total_usd

    def set_limits(self, limits: RiskLimits) -> None:
        """Hold orders against other limits from now on. Positions and orders that work already stay.

        Below what is held, orders that grow are refused and orders that reduce pass. The warning ladder looks again.
        """
        with self._lock:
            before = self.limits
            self._take_limits(limits)
            self._limits_changes += 1
        say_changed("risk limits changed", before, limits)
        self._look_at_all()

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
            before = self._take_schedule(settings, session_clock, clock)
        say_changed("limit schedule changed", before, settings)
        self._look_at_all()

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
            before = self.limits
            schedule_before = self._take_schedule(settings, session_clock, clock)
            self._take_limits(limits)
        say_changed("risk limits changed", before, limits)
        say_changed("limit schedule changed", schedule_before, settings)
        self._look_at_all()

    def _take_schedule(
        self, settings: LimitScheduleSettings | None, session_clock: MinuteOfDay | None, clock: NowNs
    ) -> LimitScheduleSettings | None:
        """Change the schedule and return its settings of before. The lock is held."""
        before = None if self.schedule is None else self.schedule.settings
        if settings is None:
            self.schedule = None
        elif self._known_schedule is None:
            self._known_schedule = LimitSchedule(settings, session_clock=session_clock, clock=clock)
            self.schedule = self._known_schedule
        else:
            self._known_schedule.set_settings(settings, session_clock=session_clock)
            self.schedule = self._known_schedule
        self._limits_changes += 1
        return before

    def _look_at_all(self) -> None:
        """Hold every figure against the warning ladder of limits that have changed. No lock is held.

        One symbol at a time, so that no order waits for thousands of them.
        """
        with self._lock:
            symbols = {*self._book.positions.held, *self._book.working.by_symbol}
        for symbol in symbols:
            with self._lock:
                warnings = self._look(symbol, self._quick_limits(symbol))
            if warnings:
                self._warn(warnings)

    def limit_working_orders(self, rule: WorkingOrderRule | None) -> None:
        """Ask this rule, with the lock held, before every reservation; ``None`` asks none."""
        with self._lock:
            self._working_order_rule = rule

    def limits_of(self, symbol: str) -> EffectiveLimits:
        """The limits of a symbol as they are now: by symbol, time of day and volatility."""
        schedule, fixed = self.schedule, self._fixed_limits
        return fixed if schedule is None else schedule.limits(symbol, fixed.symbol_usd, fixed.total_usd)

    def _quick_limits(self, symbol: str) -> tuple[float, float]:
        """Limit of the symbol and total limit, as floats."""
        schedule = self.schedule
        if schedule is None:
            return self._fixed_quick
        symbol_usd, total_usd = self._fixed_quick
        table = schedule.table
        own_usd = table.symbol_limits_usd.get(symbol)
        if own_usd is not None and own_usd < symbol_usd:
            symbol_usd = own_usd
        symbol_pct, total_pct = table.percent(symbol)
        return symbol_usd * symbol_pct / 100.0, total_usd * total_pct / 100.0

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
        worth = finite_number(price)
        if self._marks is not None or worth is None or not in_range(worth) or not is_name(symbol):
            return
        self._take_mark(symbol, worth)

    def _take_mark(self, symbol: str, price: float) -> None:
        book = self._book
        with self._lock:
            held = book.positions.held.get(symbol)
            if book.marks.get(symbol) == price and (held is None or held.price == price):
                return
            warnings = self._look(symbol, self._quick_limits(symbol)) if book.mark(symbol, price) else ()
        if warnings:
            self._warn(warnings)

    def knows_price(self, symbol: str) -> bool:
        """Tell whether anything is known of what a unit of a symbol is worth.

        True with ``get_mark_price``, after a good :meth:`on_mark`, and while the symbol is held, which was bought or
        sold at a price. The 1.0 USD that stands for an unknown price is not knowledge.
        """
        return self._marks is not None or (is_name(symbol) and self._book.known_price(symbol) is not None)

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
        refusal = self.explain_order(symbol, side, qty, price)
        return refusal is None or self._count_refusal(refusal) is None

    def explain_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Return why an order would be refused, ``None`` when it would pass. Counts nothing and freezes nothing.

        The mark price source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        sign = plain_sign(symbol, side, qty, price)
        if sign and price is not None and self.surely_passes(symbol, sign, qty, price):
            return None
        if self._local_freeze.in_force:
            return self._frozen_refusal(symbol)
        order = read_order(symbol, side, qty, price)
        verdict = order if isinstance(order, OrderRefused) else self._judge(order)
        if isinstance(verdict, OrderRefused):
            return verdict
        return verdict.refusals[0] if verdict.refusals else None

    def simulate_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderSimulation:
        """Work out everything that would happen to an order, without any side effect.

        All that would refuse it is told, not only the first; with the figures that it would lead to. The mark price
        source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        frozen = (self._frozen_refusal(symbol),) if self._local_freeze.in_force else ()
        order = read_order(symbol, side, qty, price)
        verdict = order if isinstance(order, OrderRefused) else self._judge(order)
        if isinstance(order, OrderRefused) or isinstance(verdict, OrderRefused):
            return OrderSimulation(refusals=(*frozen, verdict) if isinstance(verdict, OrderRefused) else frozen)
        limits = self.limits_of(order.symbol)
        symbol_usd, total_usd = float(verdict.symbol_usd), float(verdict.total_usd)
        refusals = (*frozen, *verdict.refusals)
        warnings: tuple[LimitWarning, ...] = ()
        if not refusals and not verdict.reduces:
            with self._lock:
                warnings = (
                    *self._ladder.would_reach(order.symbol, symbol_usd, limits.symbol_usd),
                    *self._ladder.would_reach(None, total_usd, limits.total_usd),
                )
        return OrderSimulation(
            refusals=refusals,
            reduces=verdict.reduces,
            symbol_usd=symbol_usd,
            symbol_limit_usd=limits.symbol_usd,
            total_usd=total_usd,
            total_limit_usd=limits.total_usd,
            warnings=warnings,
        )

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
        sign, quantity = side_sign(side), finite_number(qty)
        if sign is None or quantity is None or not in_range(quantity) or not is_name(symbol):
            return False
        with self._lock:
            self._book.book()
            held = self._book.positions.held.get(symbol)
            if held is None:
                return False
            own = self._book.working.orders.get(client_order_id) if client_order_id is not None else None
            working = self._same_side(symbol, sign, own)[0]
            return stays_within(held.exact_quantity, working, sign, exact(quantity))

    def _count_refusal(self, refusal: OrderRefused | None) -> OrderRefused | None:
        if refusal is None:
            return None
        with self._lock:
            self.blocks_total += 1
        if refusal.kind == MONITOR_ERROR:
            self._freeze_for_monitor_error(refusal.sentence, text_or_none(refusal.symbol), {})
        return refusal

    def _frozen_refusal(self, symbol: object) -> OrderRefused:
        return refused("frozen", symbol, f"trading is frozen: {self.last_freeze_reason}")

    def _price_missing(self, order: ReadOrder) -> OrderRefused | None:
        """Refuse an order whose worth nobody can know, where that is asked for."""
        if order.price is not None or not self._price_required or self.knows_price(order.symbol):
            return None
        sentence = (
            f"{order.symbol}: a market order without a price of the symbol has no known value; "
            "tell the monitor a mark first, or give the order a limit price"
        )
        return refused("price_missing", order.symbol, sentence)

    def _judge(self, order: ReadOrder, own: WorkingOrder | None = None) -> Verdict | OrderRefused:
        """Judge an order by what is held and working now. The lock is not held."""
        missing = self._price_missing(order)
        if missing is not None:
            return missing
        while True:
            with self._lock:
                moment, limits = self._moment(order, own), self.limits_of(order.symbol)
                changes = self._limits_changes
            try:
                verdict = judge(order, moment, limits, self._marks)
            except MarkFault as fault:
                return refused(MONITOR_ERROR, order.symbol, str(fault))
            # Mark prices may take their time; limits that have changed meanwhile are the ones that hold.
            if changes == self._limits_changes:
                return verdict

    def _moment(self, order: ReadOrder, own: WorkingOrder | None) -> Moment:
        """What is held and working beside an order. The lock is held."""
        book = self._book
        book.book()
        quantity, usd = self._same_side(order.symbol, order.sign, own)
        others = {}
        if self._marks is not None:
            others = {
                symbol: self._exposed(symbol)
                for symbol in {*self._book.positions.held, *self._book.working.by_symbol} - {order.symbol}
            }
        return Moment(
            held=self._book.positions.held.get(order.symbol),
            known_price=self._book.known_price(order.symbol),
            same_side_quantity=quantity,
            same_side_usd=usd,
            others_usd=EXACT.subtract(book.exact_total_usd, book.worst_usd(order.symbol)),
            others=others,
        )

    def _same_side(self, symbol: str, sign: int, own: WorkingOrder | None) -> tuple[Decimal, Decimal]:
        """Units and USD that work on one side, without the order itself. The lock is held."""
        work = self._book.working.by_symbol.get(symbol)
        if work is None:
            return ZERO, ZERO
        sums = work.side(sign)
        if own is None or own.symbol != symbol or own.sign != sign:
            return sums.exact_quantity, sums.exact_usd
        return (
            EXACT.subtract(sums.exact_quantity, own.counted_quantity),
            EXACT.subtract(sums.exact_usd, own.counted_usd),
        )

    def _exposed(self, symbol: str) -> Exposed:
        work = self._book.working.by_symbol.get(symbol)
        return Exposed(
            self._book.positions.held.get(symbol),
            work.buys.exact_usd if work else ZERO,
            work.sells.exact_usd if work else ZERO,
        )

    # ---- the quick look

    def surely_passes(self, symbol: str, sign: int, qty: float, price: float) -> bool:
        """Decide the common case quickly: True only when :meth:`explain_order` would return ``None``.

        Args:
            symbol, qty, price: of an order that :func:`~agents.risk.order_inputs.plain_sign` has read.
            sign: what it returned, not 0.
        """
        with self._lock:
            # Both limits are of one moment only while the lock is held.
            limits = self._quick_limits(symbol)
            return not self._local_freeze.in_force and self._surely_fits(symbol, sign, qty, price, limits)

    def _surely_fits(self, symbol: str, sign: int, qty: float, price: float, limits: tuple[float, float]) -> bool:
        """Decide the common case in floats: True only when the exact rule passes the order too. The lock is held."""
        if self._marks is not None:
            return False
        book = self._book
        total_usd = book.total_usd
        held = book.positions.held.get(symbol)
        work = book.working.by_symbol.get(symbol)
        signed = own_usd = 0.0
        if held is not None:
            signed, own_usd = held.quantity * sign, held.notional
        if work is None:
            if signed < 0.0:
                # Rounding is monotone: strictly less as floats is strictly less as decimals. An order that closes or
                # crosses goes the exact way.
                return qty < -signed
            after_usd = (signed + qty) * price
        else:
            sums = work.buys if sign > 0 else work.sells
            if signed < 0.0:
                return (qty + sums.quantity) * _WIDER < -signed
            after_usd = (signed + qty) * price + sums.usd
            by_units_usd = (signed + qty + sums.quantity) * price
            after_usd = max(after_usd, by_units_usd)
            own_usd += work.extra
        symbol_limit, total_limit = limits
        return (
            after_usd <= symbol_limit * _SURE
            and total_usd - own_usd + after_usd <= total_limit * _SURE
            # Beyond the limit the difference above may have lost more than the margin.
            and total_usd <= total_limit
        )

    # ---- warnings

    def _look(self, symbol: str, limits: tuple[float, float]) -> tuple[LimitWarning, ...]:
        """Hold the figures of a symbol and the total against the warning ladder. The lock is held."""
        book = self._book
        held, work = book.positions.held.get(symbol), book.working.by_symbol.get(symbol)
        usd = (held.notional if held is not None else 0.0) + (work.extra if work is not None else 0.0)
        symbol_limit, total_limit = limits
        if self._ladder.is_quiet(usd, symbol_limit) and self._ladder.is_quiet(book.total_usd, total_limit):
            return ()
        in_symbol = self._ladder.see(symbol, usd, symbol_limit)
        in_total = self._ladder.see(None, book.total_usd, total_limit)
        return (*in_symbol, *in_total)

    def _warn(self, warnings: tuple[LimitWarning, ...]) -> None:
        """Tell what the ladder said. No lock is held."""
        for warning in warnings:
            self._warnings_told.labels(limit=warning.limit_name, step_pct=str(warning.step_pct)).inc()
            say("warning", "limit nearly reached", step_pct=warning.step_pct, symbol=warning.symbol,
                value_usd=warning.value_usd, limit_usd=warning.limit_usd)  # fmt: skip
            if self._on_warning is None:
                continue
            try:
                self._on_warning(warning)
            except Exception as error:  # noqa: BLE001 - a warning that cannot be told must stop no order
                say("error", "a warning could not be passed on", error=repr(error), symbol=warning.symbol)
