"""Reserving, amending and releasing working orders against the limits, each in one step."""

from __future__ import annotations

from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.limit_rule import Verdict, judge
from killswitch.risk.limits.order_limits import OrderLimits
from killswitch.risk.limits.warning_ladder import LimitWarning
from killswitch.risk.order_inputs import ReadOrder, is_name, plain_sign, read_order, refused
from killswitch.risk.refusal import OrderRefused

_Outcome = tuple[OrderRefused | None, tuple[LimitWarning, ...]]


class Reservations(OrderLimits):
    """The part of :class:`RuntimeRiskMonitor` that counts orders before they fill."""

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
        if self._marks is None:
            with self._lock:
                refusal, warnings = self._reserve_now(client_order_id, symbol, side, qty, price)
        else:
            with self._reserving:
                refusal, warnings = self._reserve_at_marks(client_order_id, symbol, side, qty, price)
        if warnings:
            self._warn(warnings)
        return None if refusal is None else self._count_refusal(refusal)

    def _reserve_now(self, client_order_id: str, symbol: str, side: str, qty: float, price: float | None) -> _Outcome:
        """Judge and book without mark prices. The lock is held."""
        if self._local_freeze.in_force:
            return self._frozen_refusal(symbol), ()
        sign = plain_sign(symbol, side, qty, price)
        limits = self._quick_limits(symbol) if sign else None
        if limits is not None and price is not None and self._surely_fits(symbol, sign, qty, price, limits):
            return self._count(client_order_id, symbol, sign, qty, price, 0.0, limits)
        order = read_order(symbol, side, qty, price)
        if isinstance(order, OrderRefused):
            return order, ()
        missing = self._price_missing(order)
        if missing is not None:
            return missing, ()
        return self._count_judged(
            client_order_id, order, judge(order, self._moment(order, None), self.limits_of(order.symbol), None)
        )

    def _reserve_at_marks(
        self, client_order_id: str, symbol: str, side: str, qty: float, price: float | None
    ) -> _Outcome:
        """Judge at mark prices without the lock, then book. No other reservation comes in between."""
        order = read_order(symbol, side, qty, price)
        if isinstance(order, OrderRefused):
            return order, ()
        verdict = self._judge(order)
        if isinstance(verdict, OrderRefused):
            return verdict, ()
        with self._lock:
            if self._local_freeze.in_force:
                return self._frozen_refusal(symbol), ()
            refusal, _ = self._count_judged(client_order_id, order, verdict)
        return refusal, self._look_at_verdict(order.symbol, verdict, counted=refusal is None)

    def _count_judged(self, client_order_id: str, order: ReadOrder, verdict: Verdict) -> _Outcome:
        if verdict.refusals:
            return verdict.refusals[0], ()
        worth, limits = float(verdict.price), self._quick_limits(order.symbol)
        price = worth if order.price is None else order.price
        return self._count(client_order_id, order.symbol, order.sign, float(order.quantity), price, worth, limits)

    def _count(
        self,
        client_order_id: str,
        symbol: str,
        sign: int,
        qty: float,
        price: float,
        at_least: float,
        limits: tuple[float, float],
    ) -> _Outcome:
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
        return None, self._look(symbol, limits)

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
        with self._reserving:
            refusal, warnings = self._amend_now(client_order_id, qty, price)
        if warnings:
            self._warn(warnings)
        return None if refusal is None else self._count_refusal(refusal)

    def _amend_now(self, client_order_id: str, qty: float, price: float | None) -> _Outcome:
        with self._lock:
            self._book.book()
            own = self._book.working.orders.get(client_order_id) if is_name(client_order_id) else None
            if own is None:
                return refused("unknown_order", "", f"no order with the id {client_order_id!r} works"), ()
            if self._local_freeze.in_force:
                return self._frozen_refusal(own.symbol), ()
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
            judged = self._judge(ReadOrder(order.symbol, order.sign, rest, order.price), own)
            if isinstance(judged, OrderRefused):
                return judged, ()
            verdict = judged
            if verdict.refusals:
                return verdict.refusals[0], self._look_at_verdict(own.symbol, verdict, counted=False)
            at_least = max(at_least, verdict.price)
        with self._lock:
            if self._book.working.orders.get(client_order_id) is not own:
                return refused("unknown_order", own.symbol, f"the order {client_order_id!r} is over"), ()
            self._book.amend(client_order_id, order.quantity, new_price, at_least)
            warnings = self._look(own.symbol, self._quick_limits(own.symbol))
        return None, warnings if verdict is None else (
            *warnings,
            *self._look_at_verdict(own.symbol, verdict, counted=True),
        )

    def settle_amend(self, client_order_id: str, *, accepted: bool) -> bool:
        """Take in the venue's answer to an amendment: from now on the order counts as it is.

        Returns:
            False when no such order works.
        """
        with self._lock:
            order = self._book.settle(client_order_id, accepted=accepted)
            warnings = self._look(order.symbol, self._quick_limits(order.symbol)) if order is not None else ()
        self._warn(warnings)
        return order is not None

    def release(self, client_order_id: str) -> bool:
        """Stop counting an order: the venue can fill nothing of it any more, or it was never sent.

        Returns:
            False when no such order works; an order that has filled wholly is released by its last fill.
        """
        with self._lock:
            order = self._book.release(client_order_id)
            if order is not None and self._ladder.is_warned:
                self._look(order.symbol, self._quick_limits(order.symbol))  # the way down, which tells nothing
        return order is not None

    def reserved(self, client_order_id: str) -> tuple[str, str, float] | None:
        """Symbol, side and price of a reserved order, ``None`` when no such order works."""
        with self._lock:
            self._book.book()
            order = self._book.working.orders.get(client_order_id) if is_name(client_order_id) else None
            return None if order is None else (order.symbol, "buy" if order.sign > 0 else "sell", float(order.price))

    def reserved_quantity(self, client_order_id: str) -> float | None:
        """The whole quantity that a reserved order has, filled parts included; ``None`` when no such order works."""
        with self._lock:
            self._book.book()
            order = self._book.working.orders.get(client_order_id) if is_name(client_order_id) else None
            return None if order is None else float(order.quantity)

    def note_strategy(self, client_order_id: str, strategy: str) -> None:
        """Keep with a reservation which strategy the order is of; ``""`` for none. Waits for nothing."""
        order = self._book.working.orders.get(client_order_id)
        if order is not None:
            order.strategy = strategy

    def strategy_of(self, client_order_id: str) -> str | None:
        """What :meth:`note_strategy` has noted of an order that works, else ``None``. Waits for nothing."""
        order = self._book.working.orders.get(client_order_id)
        return None if order is None else order.strategy

    def working_orders(self, symbol: str | None = None) -> int:
        """How many orders are reserved, in one symbol or in all."""
        with self._lock:
            working = self._book.working
            return len(working.orders) if symbol is None else working.orders_of(symbol)
