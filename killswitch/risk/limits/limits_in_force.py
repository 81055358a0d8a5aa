"""The limits in force, the prices that figures are worked out at, and the warnings on the way to a limit.

The part of :class:`~killswitch.risk.limits.runtime_monitor.RuntimeRiskMonitor` that judges no order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, now_ns
from killswitch.risk.events import FreezeEvent
from killswitch.risk.exact import ZERO, exact
from killswitch.risk.limits.freeze_doors import FreezeDoors
from killswitch.risk.limits.limit_schedule import EffectiveLimits, LimitSchedule, LimitScheduleSettings, MinuteOfDay
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.mark_prices import Exposed, MarkFault, MarkPriceSource, mark_price
from killswitch.risk.limits.position_book import Held
from killswitch.risk.limits.warning_ladder import LimitWarning, WarningLadder, warning_counter
from killswitch.risk.limits.worst_case_exposure import WorstCaseExposure
from killswitch.risk.order_inputs import finite_number, in_range, is_name
from killswitch.risk.refusal import OrderRefused
from killswitch.safe_log import say
from killswitch.settings.settings_diff import say_changed

WorkingOrderRule = Callable[[str, int, int], OrderRefused | None]
"""Takes a symbol, how many orders work in it and how many in all; refuses one more order, or does not."""


class LimitsInForce(FreezeDoors):
    """The limits, and what is held and working at which prices. Thread-safe.

    Arguments as :class:`~killswitch.risk.limits.runtime_monitor.RuntimeRiskMonitor` has them.

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
        self._warnings_told = warning_counter(registry)
        self._ladder = WarningLadder()
        # Mark prices are asked for without the lock, so that a slow source holds up no fill; this one keeps two
        # reservations from being judged by the same moment meanwhile.
        self._reserving = threading.Lock()
        self._working_order_rule: WorkingOrderRule | None = None
        self._book = WorstCaseExposure(max_working_orders)
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
        if self._marks is not None:
            with self._lock:
                held = dict(self._book.positions.held)
            self._look_at_prices(self._marks_of(self._marks, held))
            return
        with self._lock:
            symbols = {*self._book.positions.held, *self._book.working.by_symbol}
        for symbol in symbols:
            with self._lock:
                warnings = self._look(symbol, self._quick_limits(symbol))
            if warnings:
                self._warn(warnings)

    def limit_working_orders(self, rule: WorkingOrderRule | None) -> None:
        """Ask this rule, with the lock held, about every order; ``None`` asks none."""
        with self._lock:
            self._working_order_rule = rule

    def _room_refusal(self, symbol: str) -> OrderRefused | None:
        """Refuse one more working order than there may be. The lock is held."""
        working = self._book.working
        if len(working.orders) >= working.max_orders:
            most = working.max_orders
            sentence = f"{symbol}: {most} orders work, and no more than that are remembered"
            return OrderRefused("working_orders", float(most), float(most + 1), symbol, sentence, "orders")
        rule = self._working_order_rule
        return None if rule is None else rule(symbol, working.orders_of(symbol), len(working.orders))

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

    def known_price(self, symbol: str) -> float | None:
        """What a unit of a symbol is known to be worth in USD, ``None`` when it is not; no source is asked for it.

        The newest :meth:`on_mark`, or a fill since then that was higher; else the last fill while the symbol is held.
        """
        return self._book.known_price(symbol) if self._marks is None else None

    def _exposed(self, symbol: str) -> Exposed:
        work = self._book.working.by_symbol.get(symbol)
        return Exposed(
            self._book.positions.held.get(symbol),
            work.buys.exact_usd if work else ZERO,
            work.sells.exact_usd if work else ZERO,
            work.sells.exact_quantity if work else ZERO,
        )

    def _marks_of(self, source: MarkPriceSource, held: Mapping[str, Held]) -> dict[str, float]:
        """Ask for the marks of what is held; one that is not usable freezes and is left out. No lock is held."""
        prices = {}
        for symbol in held:
            try:
                prices[symbol] = mark_price(source, symbol)
            except MarkFault as fault:
                self._freeze_for_monitor_error(str(fault), symbol, {})
        return prices

    # ---- warnings

    def _look(self, symbol: str, limits: tuple[float, float]) -> tuple[LimitWarning, ...]:
        """Hold the figures of a symbol and the total against the warning ladder. The lock is held.

        With a source of mark prices the figures of the book are not those that the limits use, so they say nothing:
        see :meth:`_look_at_prices` and :meth:`_see`.
        """
        if self._marks is not None:
            return ()
        book = self._book
        held, work = book.positions.held.get(symbol), book.working.by_symbol.get(symbol)
        usd = (held.notional if held is not None else 0.0) + (work.extra if work is not None else 0.0)
        symbol_limit, total_limit = limits
        if self._ladder.is_quiet(usd, symbol_limit) and self._ladder.is_quiet(book.total_usd, total_limit):
            return ()
        in_symbol = self._ladder.see(symbol, usd, symbol_limit)
        in_total = self._ladder.see(None, book.total_usd, total_limit)
        return (*in_symbol, *in_total)

    def _look_at_fill(self, symbol: str, limits: tuple[float, float]) -> tuple[LimitWarning, ...]:
        """Look after a fill. The lock is held.

        A source of mark prices may take its time, and is not asked while the venue's next fill waits. The fill's own
        price is news of its symbol all the same: enough to warn, and not to say that all is well again.
        """
        if self._marks is None:
            return self._look(symbol, limits)
        usd = float(self._book.worst_usd(symbol))
        return self._ladder.see(symbol, usd, limits[0], falls=False)

    def _see(self, symbol: str, symbol_usd: float, total_usd: float) -> tuple[LimitWarning, ...]:
        """Hold figures at mark prices against the warning ladder. The lock is held."""
        symbol_limit, total_limit = self._quick_limits(symbol)
        return (
            *self._ladder.see(symbol, symbol_usd, symbol_limit),
            *self._ladder.see(None, total_usd, total_limit),
        )

    def _look_at_prices(self, prices: Mapping[str, float]) -> None:
        """Hold every figure at these prices against the warning ladder. No lock is held.

        A symbol without a price counts at its last fill.
        """
        with self._lock:
            book = self._book
            book.book()
            exposed = {symbol: self._exposed(symbol) for symbol in {*book.positions.held, *book.working.by_symbol}}
        usd = {
            symbol: one.rough_usd(prices.get(symbol, one.held.price if one.held is not None else 0.0))
            for symbol, one in exposed.items()
        }
        total_usd = math.fsum(usd.values())
        for symbol, symbol_usd in usd.items():
            with self._lock:
                warnings = self._see(symbol, symbol_usd, total_usd)
            if warnings:
                self._warn(warnings)

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
            except Exception as error:  # a warning that cannot be told must stop no order
                say("error", "a warning could not be passed on", error=repr(error), symbol=warning.symbol)
