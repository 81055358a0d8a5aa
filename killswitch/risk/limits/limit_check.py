"""Orders held against the limits: checked, explained, simulated, and counted from the moment that they pass.

An order that is reserved counts until it is over, so that what could be held is limited and not only what is. The rule
itself is in :mod:`~killswitch.risk.limits.limit_rule`; here it meets what is held and working at one moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from killswitch.core.reduce_only import stays_within
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.limit_rule import MarkFault, MarkPriceSource, Verdict, judge, moment_of, surely_fits
from killswitch.risk.limits.limits import LimitsInForce
from killswitch.risk.limits.process_freeze import ProcessFreeze
from killswitch.risk.limits.warning_ladder import LimitWarning, LimitWarnings
from killswitch.risk.limits.working_orders import WorkingOrder
from killswitch.risk.limits.worst_case_exposure import WorstCaseExposure
from killswitch.risk.order_inputs import (
    ReadOrder,
    RestOfOrder,
    read_order,
    refused,
)
from killswitch.risk.refusal import OrderRefused

WorkingOrderRule = Callable[[str, int, int], OrderRefused | None]
"""Takes a symbol, how many orders work in it and how many in all; refuses one more order, or does not."""

Outcome = tuple[OrderRefused | None, tuple[LimitWarning, ...]]
"""Why an order must not be sent, and the steps of the warning ladder that it has reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSimulation:
    """The answer of ``simulate_order()``. Nothing was counted, reserved, warned of or frozen for it.

    Attributes:
        refusals: everything that would refuse the order, not only the first; empty when it would pass.
        reduces: the order can only bring its position nearer to flat, so the limits let it pass.
        symbol_usd: worst case of its symbol on the order's side, in USD; ``None`` when it cannot be worked out.
        symbol_limit_usd: the limit that it is held against now.
        total_usd: worst case over all symbols, in USD; likewise.
        total_limit_usd: the limit that it is held against now.
        warnings: steps of the warning ladder that would be told, if it passes.
    """

    refusals: tuple[OrderRefused, ...]
    reduces: bool = False
    symbol_usd: float | None = None
    symbol_limit_usd: float | None = None
    total_usd: float | None = None
    total_limit_usd: float | None = None
    warnings: tuple[LimitWarning, ...] = ()

    @property
    def passes(self) -> bool:
        """True when nothing would refuse the order."""
        return not self.refusals


class LimitCheck:
    """Holds the orders of one monitor against its limits. Thread-safe; it neither counts refusals nor freezes.

    Args:
        book: what is held and works.
        limits: the limits of it.
        freeze: while it is in force, no order passes.
        warnings: asked which steps of the ladder an order has reached.
        lock: guards all of these.
        marks: source of mark prices, asked without the lock, so that a slow one holds up no fill; ``None``: what is
            known without asking counts.
        price_required: refuse an order without a price while nothing is known of what its symbol is worth.

    Attributes:
        working_order_rule: asked about every order with the lock held; ``None`` asks none.
    """

    def __init__(
        self,
        book: WorstCaseExposure,
        limits: LimitsInForce,
        freeze: ProcessFreeze,
        warnings: LimitWarnings,
        *,
        lock: threading.Lock,
        marks: MarkPriceSource | None,
        price_required: bool,
    ) -> None:
        self._book = book
        self._limits = limits
        self._freeze = freeze
        self._warnings = warnings
        self._lock = lock
        # Keeps two reservations from being judged by the same moment while mark prices are asked for.
        self._reserving = threading.Lock()
        self._marks = marks
        self._price_required = price_required
        self.working_order_rule: WorkingOrderRule | None = None

    # ---- asked

    def explain(self, order: ReadOrder | OrderRefused) -> tuple[OrderRefused | None, Verdict | None]:
        """Return the first refusal, and the verdict where the order came so far as to need one."""
        if self._freeze.in_force:
            return self._frozen(order.symbol), None
        verdict = order if isinstance(order, OrderRefused) else self._judge(order)
        if isinstance(verdict, OrderRefused):
            return verdict, None
        if verdict.refusals:
            return verdict.refusals[0], verdict
        with self._lock:
            return self._room_refusal(order.symbol), verdict

    def explain_read(self, order: ReadOrder | OrderRefused) -> OrderRefused | None:
        """Return the first refusal alone, and look quickly first."""
        if isinstance(order, OrderRefused) or order.price is None:
            return self.explain(order)[0]
        sure = self.surely_passes(order.symbol, order.sign, order.qty, order.price)
        return None if sure else self.explain(order)[0]

    def simulate(self, order: ReadOrder | OrderRefused) -> OrderSimulation:
        """Return everything that would happen to an order."""
        frozen = (self._frozen(order.symbol),) if self._freeze.in_force else ()
        verdict = order if isinstance(order, OrderRefused) else self._judge(order)
        if isinstance(order, OrderRefused) or isinstance(verdict, OrderRefused):
            return OrderSimulation(refusals=(*frozen, verdict) if isinstance(verdict, OrderRefused) else frozen)
        limits = self._limits.of(order.symbol)
        symbol_usd, total_usd = float(verdict.symbol_usd), float(verdict.total_usd)
        warnings: tuple[LimitWarning, ...] = ()
        with self._lock:
            room = self._room_refusal(order.symbol)
            refusals = (*frozen, *verdict.refusals, *(() if room is None else (room,)))
            if not refusals and not verdict.reduces:
                ladder = self._warnings.ladder
                warnings = (
                    *ladder.would_reach(order.symbol, symbol_usd, limits.symbol_usd),
                    *ladder.would_reach(None, total_usd, limits.total_usd),
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

    def would_reduce(self, order: ReadOrder, client_order_id: str | None) -> bool:
        """Tell whether an order can only reduce, whatever else fills."""
        with self._lock:
            self._book.book()
            held = self._book.held.get(order.symbol)
            if held is None:
                return False
            own = self._book.working.orders.get(client_order_id) if client_order_id is not None else None
            working = self._book.same_side(order.symbol, order.sign, own)[0]
            return stays_within(held.exact_quantity, working, order.sign, order.quantity)

    def surely_passes(self, symbol: str, sign: int, qty: float, price: float) -> bool:
        """Decide the common case quickly: True only when :meth:`explain` has no refusal."""
        if self._marks is not None:
            return False
        with self._lock:
            # Both limits are of one moment only while the lock is held.
            book, limits = self._book, self._limits
            quick = limits.fixed_quick if limits.schedule is None else limits.quick(symbol)
            if self._freeze.in_force or not surely_fits(book, symbol, sign, qty, price, quick):
                return False
            # As in _room_refusal, without the calls: this is asked for every order.
            working, rule = book.working, self.working_order_rule
            in_all = len(working.orders)
            if in_all >= working.max_orders:
                return False
            if rule is None:
                return True
            work = working.by_symbol.get(symbol)
            return rule(symbol, work.orders if work is not None else 0, in_all) is None

    # ---- counted

    def reserve(self, client_order_id: str, symbol: str, sign: int, qty: float, price: float | None) -> Outcome:
        """Hold an order against the limits and count it from now on, in one step.

        It comes as the parts of a :class:`ReadOrder`, since most orders need no more than their parts.
        """
        if self._marks is not None:
            with self._reserving:
                return self._reserve_at_marks(client_order_id, ReadOrder(symbol, sign, qty, price))
        with self._lock:
            if self._freeze.in_force:
                return self._frozen(symbol), ()
            limits = self._limits.quick(symbol)
            if price is not None and surely_fits(self._book, symbol, sign, qty, price, limits):
                return self._count(client_order_id, symbol, sign, qty, price, 0.0, limits)
            order = ReadOrder(symbol, sign, qty, price)
            missing = self._price_missing(order)
            if missing is not None:
                return missing, ()
            moment = moment_of(self._book, order, None, marked=False)
            return self._count_judged(client_order_id, order, judge(order, moment, self._limits.of(symbol), None))

    def reserve_read(self, client_order_id: str, order: ReadOrder | OrderRefused) -> Outcome:
        """As :meth:`reserve`, of an order as it was read."""
        if isinstance(order, OrderRefused):
            return self.explain(order)[0] or order, ()
        return self.reserve(client_order_id, order.symbol, order.sign, order.qty, order.price)

    def _reserve_at_marks(self, client_order_id: str, order: ReadOrder) -> Outcome:
        """Judge at mark prices without the lock, then count. No other reservation comes in between."""
        verdict = self._judge(order)
        if isinstance(verdict, OrderRefused):
            return verdict, ()
        with self._lock:
            if self._freeze.in_force:
                return self._frozen(order.symbol), ()
            refusal, _ = self._count_judged(client_order_id, order, verdict)
        return refusal, self._warnings.look_at_verdict(order.symbol, verdict, counted=refusal is None)

    def amend(self, client_order_id: str, qty: float, price: float | None) -> Outcome:
        """Hold an amendment against the limits, and count the larger of before and after."""
        with self._reserving:
            return self._amend_now(client_order_id, qty, price)

    def _amend_now(self, client_order_id: str, qty: float, price: float | None) -> Outcome:
        with self._lock:
            own = self._book.order(client_order_id)
            if own is None:
                return refused("unknown_order", "", f"no order with the id {client_order_id!r} works"), ()
            if self._freeze.in_force:
                return self._frozen(own.symbol), ()
            if own.amended_quantity is not None:
                sentence = f"{own.symbol}: an amendment of {client_order_id} is on its way already"
                return refused("bad_input", own.symbol, sentence), ()
            old_price, filled, before = own.price, own.filled, own.worst()[0]
            # A sell that counts above its price goes on doing so: what it may fetch has not fallen with its price.
            at_least = own.worth if own.worth > own.price else ZERO
        order = read_order(
            own.symbol, "buy" if own.sign > 0 else "sell", qty, float(old_price) if price is None else price
        )
        if isinstance(order, OrderRefused):
            return order, ()
        new_price = old_price if price is None else exact(order.price or 0.0)
        rest = max(EXACT.subtract(order.quantity, filled), ZERO)
        verdict: Verdict | None = None
        if rest > before or EXACT.multiply(rest, new_price) > EXACT.multiply(before, old_price):
            judged = self._judge(RestOfOrder(order, rest), own)
            if isinstance(judged, OrderRefused):
                return judged, ()
            verdict = judged
            if verdict.refusals:
                return verdict.refusals[0], self._warnings.look_at_verdict(own.symbol, verdict, counted=False)
            at_least = max(at_least, verdict.price)
        with self._lock:
            if self._book.working.orders.get(client_order_id) is not own:
                return refused("unknown_order", own.symbol, f"the order {client_order_id!r} is over"), ()
            self._book.amend(client_order_id, order.quantity, new_price, at_least)
            warnings = self._warnings.look(own.symbol, self._limits.quick(own.symbol))
        return None, warnings if verdict is None else (
            *warnings,
            *self._warnings.look_at_verdict(own.symbol, verdict, counted=True),
        )

    def settle(self, client_order_id: str, *, accepted: bool) -> bool:
        """Count an order as it is after the venue's answer; False when no such order works. The lock is not held."""
        with self._lock:
            order = self._book.settle(client_order_id, accepted=accepted)
            warnings = () if order is None else self._warnings.look(order.symbol, self._limits.quick(order.symbol))
        self._warnings.tell(warnings)
        return order is not None

    def release(self, client_order_id: str) -> bool:
        """Count an order no more; False when there is none."""
        with self._lock:
            order = self._book.release(client_order_id)
            if order is not None and self._warnings.ladder.is_warned:
                self._warnings.look(order.symbol, self._limits.quick(order.symbol))  # the way down, which tells nothing
        return order is not None

    def _count_judged(self, client_order_id: str, order: ReadOrder, verdict: Verdict) -> Outcome:
        if verdict.refusals:
            return verdict.refusals[0], ()
        worth, limits = float(verdict.price), self._limits.quick(order.symbol)
        price = worth if order.price is None else order.price
        return self._count(client_order_id, order.symbol, order.sign, order.qty, price, worth, limits)

    def _count(
        self,
        client_order_id: str,
        symbol: str,
        sign: int,
        qty: float,
        price: float,
        at_least: float,
        limits: tuple[float, float],
    ) -> Outcome:
        """Reserve an order that the limits let pass, a unit of it at its price or at ``at_least``. The lock is held."""
        working = self._book.working
        if client_order_id.__class__ is not str or not client_order_id:
            return refused("bad_input", symbol, f"{symbol}: an order needs an id; {client_order_id!r} is none"), ()
        if client_order_id in working.orders:
            return refused(
                "duplicate_id", symbol, f"{symbol}: an order with the id {client_order_id} works already"
            ), ()
        refusal = self._room_refusal(symbol)
        if refusal is not None:
            return refusal, ()
        self._book.reserve(client_order_id, symbol, sign, qty, price, at_least)
        return None, self._warnings.look(symbol, limits)

    # ---- judged

    def _frozen(self, symbol: object) -> OrderRefused:
        return refused("frozen", symbol, f"trading is frozen: {self._freeze.last_reason}")

    def _price_missing(self, order: ReadOrder) -> OrderRefused | None:
        """Refuse an order whose worth nobody can know, where that is asked for."""
        if order.price is not None or not self._price_required:
            return None
        if self._marks is not None or self._book.known_price(order.symbol) is not None:
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
                moment = moment_of(self._book, order, own, marked=self._marks is not None)
                limits, changes = self._limits.of(order.symbol), self._limits.changes
            try:
                verdict = judge(order, moment, limits, self._marks)
            except MarkFault as fault:
                return refused(MONITOR_ERROR, order.symbol, str(fault))
            # Mark prices may take their time; limits that have changed meanwhile are the ones that hold.
            if changes == self._limits.changes:
                return verdict

    def _room_refusal(self, symbol: str) -> OrderRefused | None:
        """Refuse one more working order than there may be. The lock is held."""
        working = self._book.working
        if len(working.orders) >= working.max_orders:
            most = working.max_orders
            sentence = f"{symbol}: {most} orders work, and no more than that are remembered"
            return OrderRefused("working_orders", float(most), float(most + 1), symbol, sentence, "orders")
        rule = self.working_order_rule
        return None if rule is None else rule(symbol, working.orders_of(symbol), len(working.orders))
