"""Holding orders against the limits: checked, explained, simulated, warned of.

The part of :class:`RuntimeRiskMonitor` that changes nothing of what is held or working.
"""

from __future__ import annotations

from decimal import Decimal

from killswitch.core.reduce_only import stays_within
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.limit_rule import FLOAT_MARGIN, Moment, Verdict, judge
from killswitch.risk.limits.limits_in_force import LimitsInForce
from killswitch.risk.limits.mark_prices import MarkFault
from killswitch.risk.limits.order_simulation import OrderSimulation
from killswitch.risk.limits.warning_ladder import LimitWarning
from killswitch.risk.limits.working_orders import WorkingOrder
from killswitch.risk.order_inputs import (
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
from killswitch.risk.refusal import OrderRefused

_SURE = 1 - FLOAT_MARGIN
_WIDER = 1 + FLOAT_MARGIN


class OrderLimits(LimitsInForce):
    """Holds orders against the limits. Thread-safe."""

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
        if self._marks is None:
            refusal = self.explain_order(symbol, side, qty, price)
        else:
            refusal, verdict = self._explain(symbol, side, qty, price)
            if verdict is not None:
                self._warn(self._look_at_verdict(symbol, verdict, counted=False))
        return refusal is None or self._count_refusal(refusal) is None

    def explain_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Return why an order would be refused, ``None`` when it would pass. Counts nothing and freezes nothing.

        The mark price source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        sign = plain_sign(symbol, side, qty, price)
        if sign and price is not None and self.surely_passes(symbol, sign, qty, price):
            return None
        return self._explain(symbol, side, qty, price)[0]

    def _explain(
        self, symbol: str, side: str, qty: float, price: float | None
    ) -> tuple[OrderRefused | None, Verdict | None]:
        """Return the first refusal, and the verdict where the order came so far."""
        if self._local_freeze.in_force:
            return self._frozen_refusal(symbol), None
        order = read_order(symbol, side, qty, price)
        verdict = order if isinstance(order, OrderRefused) else self._judge(order)
        if isinstance(verdict, OrderRefused):
            return verdict, None
        if verdict.refusals:
            return verdict.refusals[0], verdict
        with self._lock:
            return self._room_refusal(symbol), verdict

    def _look_at_verdict(self, symbol: str, verdict: Verdict, *, counted: bool) -> tuple[LimitWarning, ...]:
        """Hold the figures of a verdict at mark prices against the warning ladder; the lock is not held.

        With the order when it counts from now on, without it when it was only asked about.
        """
        if verdict.standing_usd is None:
            return ()
        symbol_usd = max(verdict.standing_usd, verdict.symbol_usd) if counted else verdict.standing_usd
        others_usd = EXACT.subtract(verdict.total_usd, verdict.symbol_usd)
        with self._lock:
            return self._see(symbol, float(symbol_usd), float(EXACT.add(others_usd, symbol_usd)))

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
        with self._lock:
            room = self._room_refusal(order.symbol)
        refusals = (*frozen, *verdict.refusals, *(() if room is None else (room,)))
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
        alone, others = None, {}
        if self._marks is not None:
            alone = self._exposed(order.symbol)
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
            own=alone,
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

    # ---- the quick look

    def surely_passes(self, symbol: str, sign: int, qty: float, price: float) -> bool:
        """Decide the common case quickly: True only when :meth:`explain_order` would return ``None``.

        Args:
            symbol, qty, price: of an order that :func:`~killswitch.risk.order_inputs.plain_sign` has read.
            sign: what it returned, not 0.
        """
        with self._lock:
            # Both limits are of one moment only while the lock is held.
            limits = self._quick_limits(symbol)
            if self._local_freeze.in_force or not self._surely_fits(symbol, sign, qty, price, limits):
                return False
            # As in _room_refusal, without the calls: this is asked for every order.
            working, rule = self._book.working, self._working_order_rule
            in_all = len(working.orders)
            if in_all >= working.max_orders:
                return False
            if rule is None:
                return True
            work = working.by_symbol.get(symbol)
            return rule(symbol, work.orders if work is not None else 0, in_all) is None

    def _surely_fits(self, symbol: str, sign: int, qty: float, price: float, limits: tuple[float, float]) -> bool:
        """Decide the common case in floats: True only when the exact rule passes the order too. The lock is held."""
        if self._marks is not None:
            return False
        book = self._book
        total_usd = book.total_usd
        held = book.positions.held.get(symbol)
        work = book.working.by_symbol.get(symbol)
        signed = own_usd = position_usd = 0.0
        if held is not None:
            signed, own_usd = held.quantity * sign, held.notional
            if price < held.price:
                if sign < 0:  # the price of a sell is the least that it may fetch
                    price = held.price
                else:
                    position_usd = own_usd - signed * price  # what is held is not worth less for a low bid
        elif sign < 0:
            known = book.marks.get(symbol)
            if known is not None and known > price:
                price = known
        if work is None:
            if signed < 0.0:
                # Rounding is monotone: strictly less as floats is strictly less as decimals. An order that closes or
                # crosses goes the exact way.
                return qty < -signed
            after_usd = (signed + qty) * price + position_usd
        else:
            sums = work.buys if sign > 0 else work.sells
            if signed < 0.0:
                return (qty + sums.quantity) * _WIDER < -signed
            after_usd = (signed + qty) * price + position_usd + sums.usd
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
