"""The pre-trade limits of one process, and the local freeze: the last thing an order is asked before it is sent.

What it does not do: it knows fills, not working orders, so several orders that each fit may together not fit once they
all fill; it reads no clock to decide anything; and it stops only its own process. ``on_freeze`` is where an agent makes
a freeze of the cluster out of a freeze here. Cancels never come this way (A CANCEL ALWAYS PASSES).
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from agents.risk.events import FREEZE_TRIGGERS, MONITOR_ERROR, FreezeEvent, FreezeTrigger
from agents.risk.exact import exact
from agents.risk.freeze_counter import freeze_counter
from agents.risk.limit_rule import DEFAULT_MARK_PRICE_USD, LimitRule
from agents.risk.limits import OrderRefused, RiskLimits
from agents.risk.local_freeze import LocalFreeze, OrderCanceller, say
from agents.risk.mark_prices import MarkFault, mark_price
from agents.risk.order_inputs import SIGNS, finite_number, is_name, read_order, refused, side_sign, text_or_none
from agents.risk.position_book import PositionBook, Positions
from agents.risk.saved_state import SavedState
from killswitch.clock import WallClock, wall_now

BAD_FILLS_KEPT = 1_000

_LARGEST = sys.float_info.max
_PLAIN = (float, int)


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
    ) -> None:
        self.limits = RiskLimits(
            max_inventory_usd=max_inventory_usd_per_symbol,
            max_total_notional=max_total_notional_usd,
            edge_freeze_threshold_bps=edge_freeze_threshold_bps,
        )
        self.blocks_total = 0
        self._marks = get_mark_price
        self._lock = threading.Lock()
        self._local_freeze = LocalFreeze(
            lock=self._lock,
            wall_clock=wall_clock,
            on_freeze=on_freeze,
            counter=freeze_counter(registry if registry is not None else REGISTRY),
        )
        self._book = PositionBook()
        self._bad_fills: deque[dict[str, Any]] = deque(maxlen=BAD_FILLS_KEPT)
        self._rule = LimitRule(self.limits, get_mark_price)
        self._total_limit = self.limits.max_total_notional
        # Copied, so that the fast path finds them in one step.
        self._symbol_sure = self._rule.symbol_sure_usd
        self._total_sure = self._rule.total_sure_usd

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
            self._freeze_for_monitor_error(refusal.sentence, text_or_none(symbol), {})
        return False

    def explain_order(self, symbol: str, side: str, qty: float, price: float | None = None) -> OrderRefused | None:
        """Return why an order would be refused, ``None`` when it would pass. Counts nothing and freezes nothing.

        The mark price source is asked as for a real order. Arguments as for :meth:`check_before_order`.
        """
        if self._local_freeze.in_force:
            return refused("frozen", symbol, f"trading is frozen: {self.last_freeze_reason}")
        order = read_order(symbol, side, qty, price)
        if isinstance(order, OrderRefused):
            return order
        with self._lock:
            held = self._book.held.get(order.symbol)
            total_usd = self._book.exact_total_usd
            others = {} if self._marks is None else dict(self._book.held)
        others.pop(order.symbol, None)
        try:
            return self._rule.judge(order, held, total_usd, others)
        except MarkFault as fault:
            return refused(MONITOR_ERROR, symbol, str(fault))

    def _surely_passes(self, symbol: str, side: str, qty: float, price: float | None) -> bool:
        """Decide the common case in floats: True only when the exact rule passes the order too."""
        try:
            if price is None or qty.__class__ not in _PLAIN or price.__class__ not in _PLAIN:
                return False
            if symbol.__class__ is not str or not symbol or not 0.0 < qty <= _LARGEST >= price > 0.0:
                return False
            sign = SIGNS[side]
            with self._lock:
                if self._local_freeze.in_force or self._marks is not None:
                    return False
                book = self._book
                total_usd = book.total_usd
                held = book.held.get(symbol)
                if held is None:
                    after_usd, others_usd = qty * price, total_usd
                elif held.quantity * sign < 0.0:
                    # Rounding is monotone: strictly less as floats is strictly less as decimals. An order that
                    # closes or crosses goes the exact way.
                    return qty < abs(held.quantity)
                else:
                    after_usd, others_usd = (abs(held.quantity) + qty) * price, total_usd - held.notional
                return (
                    after_usd <= self._symbol_sure
                    and others_usd + after_usd <= self._total_sure
                    # Beyond the limit the difference above may have lost more than the margin.
                    and total_usd <= self._total_limit
                )
        except (TypeError, KeyError, OverflowError):
            return False

    # ---- after a fill

    def on_fill(self, symbol: str, side: str, qty: float, price: float) -> None:
        """Add a fill to the position: buys add, sells subtract. Counts when frozen too, for a fill is a fact.

        A fill with an unknown side or a number that is not finite and positive is *not* added, and freezes: from then
        on the position is not known. It is kept as it came (``get_bad_fills``). Nothing is raised, because the caller
        is the thread that brings the venue's next fill.
        """
        sign = side_sign(side)
        quantity = finite_number(qty)
        if sign is None or quantity is None or quantity <= 0.0:
            self._distrust("fill", symbol, side, qty, price)
            return
        self._add(symbol, sign, quantity, price, side)

    def update_position(self, symbol: str, qty: float, price: float) -> None:
        """Add a signed quantity to the position, as a position tracker says it: above 0 bought, below 0 sold.

        A quantity of 0 only renews the price that the position is valued at. Bad numbers as for :meth:`on_fill`.
        """
        quantity = finite_number(qty)
        if quantity is None:
            self._distrust("position update", symbol, None, qty, price)
            return
        self._add(symbol, -1 if quantity < 0 else 1, abs(quantity), price, None)

    def _add(self, symbol: str, sign: int, qty: float, price: float, side: str | None) -> None:
        paid = finite_number(price)
        if paid is None or paid <= 0.0 or not is_name(symbol):
            self._distrust("fill", symbol, side, qty, price)
            return
        change = exact(qty) if sign > 0 else exact(qty).copy_negate()
        with self._lock:
            added = self._book.add(symbol, change, paid)
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
            self._local_freeze.cancel_working(self.last_freeze_reason or "frozen", order_router, again=False)
        return event is not None

    def _judge_edge(self, net_bps: float, symbol: str | None) -> tuple[bool, FreezeEvent | None]:
        threshold = self.limits.edge_freeze_threshold_bps
        edge = finite_number(net_bps)
        if edge is None:
            reason = f"the edge is {net_bps}: it cannot be compared with {threshold:.2f} BPS"
            figures = {"current_edge_bps": str(net_bps), "threshold_bps": threshold}
            return True, self._freeze_for_monitor_error(reason, symbol, figures)
        if edge >= threshold:
            return False, None
        reason = f"Edge degradation: {edge:.2f} BPS < {threshold:.2f} BPS"
        figures = {"current_edge_bps": edge, "threshold_bps": threshold}
        return True, self._local_freeze.freeze(reason, symbol, "edge_collapse", figures)

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
        event = self._local_freeze.freeze(reason, symbol, trigger if known else "manual", metadata or {})
        if not known:
            raise ValueError(f"{trigger!r} is not a trigger; frozen as 'manual'")
        return event is not None

    def manual_freeze(self, reason: str, order_router: OrderCanceller) -> bool:
        """Freeze and cancel everything working through the router; on top of a freeze it cancels again.

        Returns:
            True when this call froze.
        """
        event = self._local_freeze.freeze(reason, None, "manual", {})
        self._local_freeze.cancel_working(reason, order_router, again=True)
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
        was_frozen = self._local_freeze.lift()
        say("warning", "risk monitor released", reason=reason, was_frozen=was_frozen)
        return was_frozen

    def reset(self) -> None:
        """Forget the freeze, its cause and all positions. Counters and events stay."""
        with self._lock:
            self._local_freeze.forget()
            self._book.clear()
        say("warning", "risk monitor reset")

    def _freeze_for_monitor_error(
        self, reason: str, symbol: str | None, figures: Mapping[str, Any]
    ) -> FreezeEvent | None:
        return self._local_freeze.freeze(reason, symbol, "limit_violation", {"cause": MONITOR_ERROR, **figures})

    # ---- what is known

    @property
    def freezes_total(self) -> int:
        """Freezes, ever; a freeze on top of a freeze does not count."""
        return self._local_freeze.count

    @property
    def last_freeze_reason(self) -> str | None:
        """Newest cause, also of a freeze on top of a freeze; ``None`` before the first."""
        return self._local_freeze.last_reason

    @property
    def last_freeze_symbol(self) -> str | None:
        """Symbol of the newest cause, ``None`` when it has none."""
        return self._local_freeze.last_symbol

    def is_frozen(self) -> bool:
        """True while no order passes."""
        return self._local_freeze.in_force

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
        """The newest freezes (``local_freeze.FREEZE_EVENTS_KEPT``), oldest first, with how their cancelling went."""
        with self._lock:
            return list(self._local_freeze.events)

    def get_bad_fills(self) -> list[dict[str, Any]]:
        """Fills and updates that were not added because they made no sense, as they came, oldest first."""
        with self._lock:
            return [dict(fill) for fill in self._bad_fills]

    def _notionals(self) -> dict[str, float]:
        """Notional per held symbol in USD."""
        with self._lock:
            held = dict(self._book.held)
        if self._marks is None:
            return {symbol: position.notional for symbol, position in held.items()}
        notionals = {}
        for symbol, position in held.items():
            try:
                notionals[symbol] = abs(position.quantity) * mark_price(self._marks, symbol)
            except MarkFault as fault:
                notionals[symbol] = position.notional
                self._freeze_for_monitor_error(str(fault), symbol, {})
        return notionals

    # ---- over a restart

    def persist_to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON values, one consistent moment of it."""
        with self._lock:
            moment = SavedState(
                frozen=self.is_frozen(),
                blocks_total=self.blocks_total,
                freezes_total=self.freezes_total,
                last_freeze_reason=self.last_freeze_reason,
                last_freeze_symbol=self.last_freeze_symbol,
                positions={name: (held.exact_quantity, held.price) for name, held in self._book.held.items()},
                freeze_events=list(self._local_freeze.events),
                bad_fills=list(self._bad_fills),
            )
        return moment.to_json(self.limits)

    def restore_from_dict(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`persist_to_dict` returned, except the limits: those come from configuration.

        A restart never releases: a monitor that is frozen stays so whatever the data says.

        Raises:
            ValueError: the data cannot be read; nothing is taken over and the monitor is frozen.
        """
        try:
            saved = SavedState.from_json(data)
        except Exception as error:
            self._freeze_for_monitor_error(f"the saved state of the monitor cannot be read: {error!r}", None, {})
            raise ValueError(f"the saved state of the monitor cannot be read, so it is frozen: {error!r}") from error
        with self._lock:
            self._local_freeze.take_over(saved)
            self.blocks_total = saved.blocks_total
            self._bad_fills = deque(map(dict, saved.bad_fills), maxlen=BAD_FILLS_KEPT)
            self._book.clear()
            for symbol, (quantity, price) in saved.positions.items():
                self._book.replace(symbol, quantity, price)


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
