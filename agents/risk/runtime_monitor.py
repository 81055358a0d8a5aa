"""The pre-trade limits of one process, and the local freeze: the last thing an order is asked before it is sent.

What it does not do: it knows fills, not working orders, so several orders that each fit may together not fit once they
all fill; it reads no clock to decide anything; and it stops only its own process. ``on_freeze`` is where an agent makes
a freeze of the cluster out of a freeze here. Cancels never come this way (A CANCEL ALWAYS PASSES).

Quantities and prices come as floats and are kept as the exact decimals that they are written as: buying 0.1 and 0.2 and
selling 0.3 is flat, not 5.6e-17, and the running total over symbols does not drift however many fills it has seen.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from typing import Any, Protocol

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from agents.risk.events import FREEZE_TRIGGERS, MONITOR_ERROR, FreezeEvent, FreezeTrigger
from agents.risk.limits import OrderRefused, RefusalKind, RiskLimits
from killswitch.clock import WallClock, wall_now
from killswitch.link.messages import CancelResult

DEFAULT_MARK_PRICE_USD = 1.0
FREEZE_EVENTS_KEPT = 1_000
"""Newest freeze events kept in memory; ``freezes_total`` says how many there were, the log has all of them."""
BAD_FILLS_KEPT = 1_000

PERSIST_VERSION = 1

_INFINITY = math.inf
_LARGEST = sys.float_info.max
_SIGNS: Mapping[str, int] = {"buy": 1, "BUY": 1, "Buy": 1, "sell": -1, "SELL": -1, "Sell": -1}
_PLAIN = (float, int)
_ZERO = Decimal(0)
# Sums and products of realistic quantities and prices are exact in 60 digits.
_EXACT = Context(prec=60)
# Floats decide alone only when they are this far inside a limit; nearer to it the exact decimals decide. The float
# result is a handful of roundings (2.2e-16 each) away from the exact one, so this is thousands of times too wide.
_FLOAT_MARGIN = 1e-12

_log = structlog.get_logger("killswitch.risk")

_counters: dict[CollectorRegistry, Counter] = {}
_counters_lock = threading.Lock()


class OrderCanceller(Protocol):
    """Whatever cancels everything that is working; an :class:`~agents.routing.order_router.OrderRouter` is one."""

    def cancel_all_orders(self, reason: str) -> int | CancelResult:
        """Cancel every working order and return how many were cancelled, or the full result."""


class Positions(dict[str, float]):
    """Signed quantity per symbol; a symbol that is not held reads as 0.0 and is not among the keys."""

    def __missing__(self, symbol: str) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Held:
    """A position that is not flat, exact, with the floats that the fast path compares."""

    exact_quantity: Decimal
    exact_notional: Decimal
    price: float
    quantity: float
    notional: float


@dataclass(frozen=True, slots=True)
class _Order:
    symbol: str
    sign: int
    quantity: Decimal
    price: float | None


class _MarkFault(Exception):  # noqa: N818 - said of the price, not of the program
    """The mark price of a symbol is not usable; the message says what came instead."""


class RuntimeRiskMonitor:
    """Limits per symbol and in total, an edge threshold, and a freeze that only a person lifts. Thread-safe.

    Rules (section A of the seed systems):

    * The *resulting* notional of a symbol is ``abs(position after the order) * price``; the total is that plus the
      notional of every other symbol. Both limits are inclusive: equal passes. A breach refuses that one order.
    * An order that only brings a position nearer to flat, without crossing zero, passes both limits: one must be able
      to get out from above a limit. It does not pass a freeze.
    * Price is the order's own. Without one it is the mark price; without a source of mark prices the price of the
      last fill of a position that is held, else 1.0.
    * Other symbols are valued at their mark price when ``get_mark_price`` is given, else at their last fill.
    * UNKNOWN IS FROZEN: a bad number in an order refuses the order (``bad_input``). An edge that is not finite, a
      mark price source that raises or returns anything but a finite positive number, and a fill or position update
      with a bad number freeze, with trigger ``limit_violation`` and ``metadata["cause"] == "monitor_error"``.

    Cost of a check: independent of the number of symbols. With ``get_mark_price`` it is one call per held symbol.

    Args:
        max_inventory_usd_per_symbol: most that may be held in one symbol, USD.
        max_total_notional_usd: most that may be held over all symbols, USD.
        edge_freeze_threshold_bps: an edge strictly below this freezes.
        get_mark_price: price of a symbol in USD; called without any lock held.
        wall_clock: the time that events carry.
        on_freeze: told every freeze, once, after this monitor is frozen and before anything is cancelled, with no
            lock held. The event does not yet say how the cancelling went. If it raises, the freeze stands and the
            error is logged and kept in the event.
        registry: where ``freeze_triggered_total`` is counted; the default registry of the process when ``None``.

    Raises:
        ValueError: a limit is not a finite number, or one of the two notional limits is not positive.

    Attributes:
        blocks_total: orders refused, ever.
        freezes_total: freezes, ever; a freeze on top of a freeze does not count.
        last_freeze_reason: newest cause, also of a freeze on top of a freeze; ``None`` before the first.
        last_freeze_symbol: its symbol, ``None`` when it has none.
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
    ) -> None:
        self.limits = RiskLimits(
            max_inventory_usd=max_inventory_usd_per_symbol,
            max_total_notional=max_total_notional_usd,
            edge_freeze_threshold_bps=edge_freeze_threshold_bps,
        )
        self.blocks_total = 0
        self.freezes_total = 0
        self.last_freeze_reason: str | None = None
        self.last_freeze_symbol: str | None = None
        self._marks = get_mark_price
        self._wall_clock = wall_clock
        self._on_freeze = on_freeze
        self._counter = _counter_of(registry if registry is not None else REGISTRY)
        self._lock = threading.Lock()
        self._frozen = False
        self._cancel_claimed = 0  # number of the freeze whose cancelling is under way or done; freezes count from 1
        self._events: deque[FreezeEvent] = deque(maxlen=FREEZE_EVENTS_KEPT)
        self._bad_fills: deque[dict[str, Any]] = deque(maxlen=BAD_FILLS_KEPT)
        self._held: dict[str, _Held] = {}
        self._exact_total = _ZERO
        self._total = 0.0
        self._exact_symbol_limit = _exact(self.limits.max_inventory_usd)
        self._exact_total_limit = _exact(self.limits.max_total_notional)
        self._total_limit = self.limits.max_total_notional
        self._symbol_sure = self.limits.max_inventory_usd * (1 - _FLOAT_MARGIN)
        self._total_sure = self.limits.max_total_notional * (1 - _FLOAT_MARGIN)

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

    # ---- before an order

    def check_before_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> bool:
        """Tell whether an order may be sent; every False counts in ``blocks_total``. Never raises.

        Args:
            symbol: name of the instrument.
            side: ``buy`` or ``sell``, in lower, upper or title case.
            qty: quantity, greater than 0.
            price: USD, greater than 0; the mark price when ``None``.
        """
        if self._surely_passes(symbol, side, qty, price):
            return True
        refusal = self.explain_order(symbol, side, qty, price)
        if refusal is None:
            return True
        with self._lock:
            self.blocks_total += 1
        if refusal.kind == MONITOR_ERROR:
            self._freeze_for_monitor_error(refusal.sentence, _text_or_none(symbol), {})
        return False

    def explain_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Return why an order would be refused, ``None`` when it would pass. Counts nothing and freezes nothing.

        The mark price source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        if self._frozen:
            return _refused("frozen", symbol, f"trading is frozen: {self.last_freeze_reason}")
        order = _read_order(symbol, side, qty, price)
        if isinstance(order, OrderRefused):
            return order
        try:
            return self._judge(order)
        except _MarkFault as fault:
            return _refused(MONITOR_ERROR, symbol, str(fault))

    def _surely_passes(self, symbol: str, side: str, qty: float, price: float | None) -> bool:
        """Decide the common case in floats: True only when the exact rule passes the order too."""
        try:
            if price is None or qty.__class__ not in _PLAIN or price.__class__ not in _PLAIN:
                return False
            if symbol.__class__ is not str or not symbol or not 0.0 < qty <= _LARGEST >= price > 0.0:
                return False
            sign = _SIGNS[side]
            with self._lock:
                if self._frozen or self._marks is not None:
                    return False
                held = self._held.get(symbol)
                if held is None:
                    after_usd, others_usd = qty * price, self._total
                elif held.quantity * sign < 0.0:
                    # Rounding is monotone: strictly less as floats is strictly less as decimals. An order that
                    # closes or crosses goes the exact way.
                    return qty < abs(held.quantity)
                else:
                    after_usd, others_usd = (abs(held.quantity) + qty) * price, self._total - held.notional
                return (
                    after_usd <= self._symbol_sure
                    and others_usd + after_usd <= self._total_sure
                    # Beyond the limit the difference above may have lost more than the margin.
                    and self._total <= self._total_limit
                )
        except (TypeError, KeyError, OverflowError):
            return False

    def _judge(self, order: _Order) -> OrderRefused | None:
        """Apply the limits in exact decimals."""
        with self._lock:
            held = self._held.get(order.symbol)
            others_usd = _EXACT.subtract(self._exact_total, held.exact_notional) if held else self._exact_total
            others = {} if self._marks is None else dict(self._held)
        before = held.exact_quantity if held else _ZERO
        after = _EXACT.add(before, order.quantity if order.sign > 0 else order.quantity.copy_negate())
        price = order.price if order.price is not None else self._price_of(order.symbol, held)
        if after.copy_abs() < before.copy_abs() and (after == 0 or after.is_signed() == before.is_signed()):
            return None
        after_usd = _EXACT.multiply(after.copy_abs(), _exact(price))
        if after_usd > self._exact_symbol_limit:
            limit = self.limits.max_inventory_usd
            sentence = (
                f"{order.symbol}: the order would bring the position to {after_usd:.2f} USD, "
                f"above the limit of {limit:.2f} USD per symbol"
            )
            return OrderRefused("symbol_limit", limit, float(after_usd), order.symbol, sentence)
        if self._marks is not None:
            others.pop(order.symbol, None)
            others_usd = self._marked_total(others, after_usd)
        total_usd = _EXACT.add(others_usd, after_usd)
        if total_usd > self._exact_total_limit:
            limit = self.limits.max_total_notional
            sentence = (
                f"{order.symbol}: the order would bring the total over all symbols to {total_usd:.2f} USD, "
                f"above the limit of {limit:.2f} USD"
            )
            return OrderRefused("total_limit", limit, float(total_usd), order.symbol, sentence)
        return None

    def _price_of(self, symbol: str, held: _Held | None) -> float:
        if self._marks is not None:
            return self._mark(symbol)
        return held.price if held else DEFAULT_MARK_PRICE_USD

    def _mark(self, symbol: str) -> float:
        """Ask the mark price source. Raises :class:`_MarkFault` for anything but a finite positive number."""
        source = self._marks
        if source is None:
            return DEFAULT_MARK_PRICE_USD
        try:
            answer = source(symbol)
            price = answer if answer.__class__ is float and 0.0 < answer < _INFINITY else _number(answer)
        except Exception as error:  # whatever a price source raises, the price is unknown
            raise _MarkFault(f"the mark price of {symbol} is unknown: its source raised {error!r}") from error
        if price is None or price <= 0.0:
            raise _MarkFault(f"the mark price of {symbol} is not a finite number above 0")
        return price

    def _marked_total(self, held: Mapping[str, _Held], after_usd: Decimal) -> Decimal:
        """Sum of other symbols' notionals at mark prices: in floats where that decides, else in exact decimals."""
        marked = [(position, self._mark(symbol)) for symbol, position in held.items()]
        rough_usd = math.fsum(abs(position.quantity) * mark for position, mark in marked)
        if rough_usd + float(after_usd) <= self._total_sure:
            return Decimal(rough_usd)
        total = _ZERO
        for position, mark in marked:
            total = _EXACT.add(total, _EXACT.multiply(position.exact_quantity.copy_abs(), _exact(mark)))
        return total

    # ---- after a fill

    def on_fill(self, symbol: str, side: str, qty: float, price: float) -> None:
        """Add a fill to the position: buys add, sells subtract. Counts when frozen too, for a fill is a fact.

        A fill with an unknown side or a number that is not finite and positive is *not* added, and freezes: from then
        on the position is not known. It is kept as it came (``get_bad_fills``). Nothing is raised, because the caller
        is the thread that brings the venue's next fill.
        """
        sign = side_sign(side)
        quantity = _number(qty)
        if sign is None or quantity is None or quantity <= 0.0:
            self._distrust("fill", symbol, side, qty, price)
            return
        self._add(symbol, sign, quantity, price, side)

    def update_position(self, symbol: str, qty: float, price: float) -> None:
        """Add a signed quantity to the position, as a position tracker says it: above 0 bought, below 0 sold.

        A quantity of 0 only renews the price that the position is valued at. Bad numbers as for :meth:`on_fill`.
        """
        quantity = _number(qty)
        if quantity is None:
            self._distrust("position update", symbol, None, qty, price)
            return
        self._add(symbol, -1 if quantity < 0 else 1, abs(quantity), price, None)

    def _add(self, symbol: str, sign: int, qty: float, price: float, side: str | None) -> None:
        paid = _number(price)
        if paid is None or paid <= 0.0 or not _is_name(symbol):
            self._distrust("fill", symbol, side, qty, price)
            return
        change = _exact(qty) if sign > 0 else _exact(qty).copy_negate()
        with self._lock:
            held = self._held.get(symbol)
            quantity = _EXACT.add(held.exact_quantity, change) if held else change
            if math.isfinite(float(quantity)):
                self._set_position(symbol, quantity, paid)
                return
        self._distrust("fill", symbol, side, qty, price)

    def _set_position(self, symbol: str, quantity: Decimal, price: float) -> None:
        """Replace one position and keep the running total exact. The lock is held."""
        before = self._held.pop(symbol, None) if quantity == 0 else self._held.get(symbol)
        total = _EXACT.subtract(self._exact_total, before.exact_notional) if before else self._exact_total
        if quantity != 0:
            notional = _EXACT.multiply(quantity.copy_abs(), _exact(price))
            total = _EXACT.add(total, notional)
            self._held[symbol] = _Held(quantity, notional, price, float(quantity), float(notional))
        self._exact_total = total if self._held else _ZERO
        self._total = float(self._exact_total)

    def _distrust(self, what: str, symbol: object, side: object, qty: object, price: object) -> None:
        """Freeze because a position is no longer known, and keep what came."""
        as_it_came = {"symbol": str(symbol), "side": str(side), "qty": str(qty), "price": str(price)}
        at = self._time()
        with self._lock:
            self._bad_fills.append({"at": at, **as_it_came})
        reason = f"a {what} of {symbol} cannot be trusted: side {side}, quantity {qty}, price {price}"
        self._freeze_for_monitor_error(reason, _text_or_none(symbol), as_it_came)

    # ---- the edge

    def on_edge_update(self, symbol: str, net_bps: float) -> bool:
        """Freeze when the expected net edge of a symbol is strictly below the threshold, or is not finite.

        Returns:
            True when this call froze.
        """
        return self._judge_edge(net_bps, symbol)[1] is not None

    def auto_freeze_on_edge_drop(self, current_edge_bps: float, order_router: OrderCanceller) -> bool:
        """As :meth:`on_edge_update` for the whole book, and cancel everything working through the router.

        On an existing freeze it cancels only if no earlier call for that freeze has cancelled everything.

        Returns:
            True when this call froze.
        """
        bad, event = self._judge_edge(current_edge_bps, None)
        if bad:
            self._cancel_working(self.last_freeze_reason or "frozen", order_router, again=False)
        return event is not None

    def _judge_edge(self, net_bps: float, symbol: str | None) -> tuple[bool, FreezeEvent | None]:
        threshold = self.limits.edge_freeze_threshold_bps
        edge = _number(net_bps)
        if edge is None:
            reason = f"the edge is {net_bps}: it cannot be compared with {threshold:.2f} BPS"
            figures = {"current_edge_bps": str(net_bps), "threshold_bps": threshold}
            return True, self._freeze_for_monitor_error(reason, symbol, figures)
        if edge >= threshold:
            return False, None
        reason = f"Edge degradation: {edge:.2f} BPS < {threshold:.2f} BPS"
        figures = {"current_edge_bps": edge, "threshold_bps": threshold}
        return True, self._freeze(reason, symbol, "edge_collapse", figures)

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
        known = trigger in FREEZE_TRIGGERS
        event = self._freeze(reason, symbol, trigger if known else "manual", metadata or {})
        if not known:
            raise ValueError(f"{trigger!r} is not a trigger; frozen as 'manual'")
        return event is not None

    def manual_freeze(self, reason: str, order_router: OrderCanceller) -> bool:
        """Freeze and cancel everything working through the router; on top of a freeze it cancels again.

        Returns:
            True when this call froze.
        """
        event = self._freeze(reason, None, "manual", {})
        self._cancel_working(reason, order_router, again=True)
        return event is not None

    def unfreeze(self, reason: str) -> bool:
        """Let orders pass again in this process. A freeze of the cluster is not touched.

        Returns:
            True when it was frozen.

        Raises:
            ValueError: no reason is given; it stays frozen.
        """
        if not reason or not reason.strip():
            raise ValueError("a release needs a reason; the monitor stays frozen")
        with self._lock:
            was_frozen, self._frozen = self._frozen, False
        _say("warning", "risk monitor released", reason=reason, was_frozen=was_frozen)
        return was_frozen

    def reset(self) -> None:
        """Forget the freeze, its cause and all positions. Counters and events stay."""
        with self._lock:
            self._frozen = False
            self.last_freeze_reason = None
            self.last_freeze_symbol = None
            self._held.clear()
            self._exact_total, self._total = _ZERO, 0.0
        _say("warning", "risk monitor reset")

    def _freeze_for_monitor_error(
        self, reason: str, symbol: str | None, figures: Mapping[str, Any]
    ) -> FreezeEvent | None:
        return self._freeze(reason, symbol, "limit_violation", {"cause": MONITOR_ERROR, **figures})

    def _freeze(
        self, reason: str, symbol: str | None, trigger: FreezeTrigger, metadata: Mapping[str, Any]
    ) -> FreezeEvent | None:
        """Freeze first, then tell. Returns the event when this call froze."""
        at = self._time()
        with self._lock:
            already, self._frozen = self._frozen, True
            self.last_freeze_reason = reason
            self.last_freeze_symbol = symbol
            if not already:
                self.freezes_total += 1
                figures = dict(metadata) if symbol is None else {"symbol": symbol, **metadata}
                event = FreezeEvent(at, trigger, reason, figures)
                self._events.append(event)
        if already:
            _say("info", "frozen already", reason=reason, symbol=symbol, trigger=trigger)
            return None
        if self._on_freeze is not None:
            try:
                self._on_freeze(event)
            except Exception as error:  # noqa: BLE001 - whatever it raises, the local freeze stands
                event = self._amend(event, {"on_freeze_error": repr(error)})
                _say("error", "the freeze could not be passed on", error=repr(error), reason=reason)
        self._counter.labels(reason=trigger).inc()
        _say("critical", "risk monitor froze", **event.to_json(), symbol=symbol)
        return event

    def _cancel_working(self, reason: str, order_router: OrderCanceller, *, again: bool) -> None:
        """Cancel through the router and note in the newest event how it went. Nothing here undoes the freeze.

        Unless ``again``, only once for the freeze in force, whichever thread comes first, until it leaves nothing open.
        """
        with self._lock:
            number = self.freezes_total
            if self._cancel_claimed == number and not again:
                return
            self._cancel_claimed = number
            event = self._events[-1] if self._events else None
        notes: dict[str, Any]
        done = False
        try:
            result = order_router.cancel_all_orders(reason)
            if isinstance(result, CancelResult):
                notes = {
                    "orders_cancelled": result.cancelled,
                    "orders_open": result.open,
                    "cancels_failed": result.failed,
                }
                done = result.open == 0
            else:
                notes, done = {"orders_cancelled": int(result)}, True
        except Exception as error:  # noqa: BLE001 - whatever the router raises, the monitor stays frozen
            notes = {"cancel_error": repr(error)}
            _say("error", "cancelling failed; the monitor stays frozen", error=repr(error), reason=reason)
        with self._lock:
            if not done and self._cancel_claimed == number:
                self._cancel_claimed = 0
        if event is not None:
            before = event.metadata.get("orders_cancelled", 0)
            self._amend(event, {**notes, "orders_cancelled": before + notes.get("orders_cancelled", 0)})

    def _amend(self, event: FreezeEvent, notes: Mapping[str, Any]) -> FreezeEvent:
        """Put notes into an event that is kept."""
        with self._lock:
            for index in range(len(self._events) - 1, -1, -1):
                if self._events[index] is event:
                    self._events[index] = replace(event, metadata={**event.metadata, **notes})
                    return self._events[index]
        return event

    def _time(self) -> str:
        try:
            return self._wall_clock()
        except Exception:  # noqa: BLE001 - a clock for people must not stop a freeze
            return "unknown"

    # ---- what is known

    def is_frozen(self) -> bool:
        """True while no order passes."""
        return self._frozen

    def get_position(self, symbol: str) -> float:
        """Signed quantity held of one symbol, 0.0 when flat."""
        held = self._held.get(symbol)
        return held.quantity if held else 0.0

    def get_positions(self) -> Positions:
        """Signed quantity of every symbol that is not flat, as a copy that reads 0.0 for any other symbol."""
        with self._lock:
            return Positions((symbol, held.quantity) for symbol, held in self._held.items())

    def get_total_notional(self) -> float:
        """Sum over symbols of ``abs(position) * price`` in USD.

        Freezes when a mark price is not usable; that symbol then counts at its last fill.
        """
        return math.fsum(self._notionals().values())

    def get_utilization(self) -> dict[str, float]:
        """How much of each limit is used, in per cent.

        ``total_notional_utilization_pct``, ``max_inventory_utilization_pct`` (the symbol that holds most, 0 when flat)
        and ``inventory_utilization_pct:SYMBOL`` for every symbol held.
        """
        used = {
            symbol: 100.0 * notional_usd / self.limits.max_inventory_usd
            for symbol, notional_usd in self._notionals().items()
        }
        total_usd = math.fsum(used.values()) * self.limits.max_inventory_usd / 100.0
        return {
            "total_notional_utilization_pct": 100.0 * total_usd / self.limits.max_total_notional,
            "max_inventory_utilization_pct": max(used.values(), default=0.0),
            **{f"inventory_utilization_pct:{symbol}": pct for symbol, pct in used.items()},
        }

    def get_freeze_events(self) -> list[FreezeEvent]:
        """The newest :data:`FREEZE_EVENTS_KEPT` freezes, oldest first, with how their cancelling went."""
        with self._lock:
            return list(self._events)

    def get_bad_fills(self) -> list[dict[str, Any]]:
        """Fills and updates that were not added because they made no sense, as they came, oldest first."""
        with self._lock:
            return [dict(fill) for fill in self._bad_fills]

    def _notionals(self) -> dict[str, float]:
        """Notional per held symbol in USD."""
        with self._lock:
            held = dict(self._held)
        if self._marks is None:
            return {symbol: position.notional for symbol, position in held.items()}
        notionals = {}
        for symbol, position in held.items():
            try:
                notionals[symbol] = abs(position.quantity) * self._mark(symbol)
            except _MarkFault as fault:
                notionals[symbol] = position.notional
                self._freeze_for_monitor_error(str(fault), symbol, {})
        return notionals

    # ---- over a restart

    def persist_to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON values, one consistent moment of it."""
        with self._lock:
            return {
                "v": PERSIST_VERSION,
                "limits": self.limits.model_dump(),
                "state": {
                    "frozen": self._frozen,
                    "blocks_total": self.blocks_total,
                    "freezes_total": self.freezes_total,
                    "last_freeze_reason": self.last_freeze_reason,
                    "last_freeze_symbol": self.last_freeze_symbol,
                },
                "positions": {
                    symbol: {"quantity": str(held.exact_quantity), "price_usd": held.price}
                    for symbol, held in self._held.items()
                },
                "freeze_events": [event.to_json() for event in self._events],
                "bad_fills": [dict(fill) for fill in self._bad_fills],
            }

    def restore_from_dict(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`persist_to_dict` returned, except the limits: those come from configuration.

        A restart never releases: a monitor that is frozen stays so whatever the data says.

        Raises:
            ValueError: the data cannot be read; nothing is taken over and the monitor is frozen.
        """
        try:
            if data["v"] != PERSIST_VERSION:
                raise ValueError(f"version {data['v']!r} is not {PERSIST_VERSION}")  # noqa: TRY301 - one way out
            state = data["state"]
            positions = {str(name): _read_position(raw) for name, raw in data["positions"].items()}
            events = [FreezeEvent(**raw) for raw in data["freeze_events"]]
            bad_fills = [dict(fill) for fill in data["bad_fills"]]
            counts = int(state["blocks_total"]), int(state["freezes_total"])
            causes = _text_or_none(state["last_freeze_reason"]), _text_or_none(state["last_freeze_symbol"])
            frozen = state["frozen"] is not False
        except Exception as error:
            self._freeze_for_monitor_error(f"the saved state of the monitor cannot be read: {error!r}", None, {})
            raise ValueError(f"the saved state of the monitor cannot be read, so it is frozen: {error!r}") from error
        with self._lock:
            self._frozen = self._frozen or frozen
            self.blocks_total, self.freezes_total = counts
            self.last_freeze_reason, self.last_freeze_symbol = causes
            self._events = deque(events, maxlen=FREEZE_EVENTS_KEPT)
            self._bad_fills = deque(bad_fills, maxlen=BAD_FILLS_KEPT)
            self._held.clear()
            self._exact_total, self._total = _ZERO, 0.0
            for symbol, (quantity, price) in positions.items():
                self._set_position(symbol, quantity, price)


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
    )


def side_sign(side: object) -> int | None:
    """+1 for a buy, -1 for a sell, ``None`` for anything that is not one of the accepted spellings."""
    return _SIGNS.get(side) if isinstance(side, str) else None


def _read_order(symbol: object, side: object, qty: object, price: object) -> _Order | OrderRefused:
    sign, quantity, paid = side_sign(side), _number(qty), _number(price)
    if not isinstance(symbol, str) or not symbol:  # not _is_name: the type checker follows isinstance only
        return _refused("bad_input", symbol, f"an order needs the name of a symbol; {symbol!r} is none")
    if sign is None:
        return _refused("bad_input", symbol, f"{symbol}: side {side!r} is neither buy nor sell")
    if quantity is None or quantity <= 0.0:
        return _refused("bad_input", symbol, f"{symbol}: quantity {qty!r} is not a finite number above 0")
    if price is not None and (paid is None or paid <= 0.0):
        return _refused("bad_input", symbol, f"{symbol}: price {price!r} is not a finite number above 0")
    return _Order(symbol, sign, _exact(quantity), paid)


def _read_position(raw: Mapping[str, Any]) -> tuple[Decimal, float]:
    quantity, price = Decimal(raw["quantity"]), _number(raw["price_usd"])
    if not quantity.is_finite() or price is None or price <= 0.0:
        raise ValueError(f"a position is {raw!r}")
    return quantity, price


def _refused(kind: RefusalKind, symbol: object, sentence: str) -> OrderRefused:
    return OrderRefused(kind, None, None, str(symbol), sentence)


def _number(value: object) -> float | None:
    """Return a finite number as a float, ``None`` for everything else. Text is not a number, nor is a boolean."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _exact(value: float) -> Decimal:
    """The decimal that a float is written as: 0.1 is one tenth."""
    return Decimal(repr(float(value)))


def _is_name(symbol: object) -> bool:
    return isinstance(symbol, str) and bool(symbol)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _counter_of(registry: CollectorRegistry) -> Counter:
    """One counter per registry, however many monitors: a second registration of a name is an error there."""
    with _counters_lock:
        if registry not in _counters:
            counter = Counter(
                "freeze_triggered_total", "Freezes by risk monitors of this process", ["reason"], registry=registry
            )
            for trigger in FREEZE_TRIGGERS:
                counter.labels(reason=trigger)  # from the start at 0, so that an alert on its rate sees the first one
            _counters[registry] = counter
        return _counters[registry]


def _say(level: str, event: str, **fields: Any) -> None:
    """Log, and survive a log that cannot be written: it must not come between a freeze and its cancels."""
    with contextlib.suppress(Exception):  # there is nowhere left to say it
        getattr(_log, level)(event, **fields)
