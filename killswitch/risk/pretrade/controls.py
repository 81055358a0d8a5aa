"""All pre-trade controls of one process, in one place and in a stated order.

The order, cheap ones first; the first that refuses is told:

1. the order makes sense: a name, a side, numbers (always);
2. ``clock_stepped``: the clock has not gone back (always);
3. permitted symbols; 4. size and value; 5. repeated executions; 6. counts of the day; 7. health of the prices;
8. price collar; 9. message throttle; 10. duplicates; each only where the settings have it;
11. the user's own rules, in the order in which they were given;
12. ``policy_throttle``, then ``breaker``, where they are given;
13. the monitor: frozen, limits per symbol and in total, working orders; it reserves in the same step.

A cancel is never asked (A CANCEL ALWAYS PASSES): it is only counted, and for that it waits for no order.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, now_ns
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.limits.limit_check import OrderSimulation
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.metrics import counter_of
from killswitch.risk.order_inputs import ReadOrder
from killswitch.risk.pretrade.control_chain import ControlChain
from killswitch.risk.pretrade.daily_counts import CalendarDay
from killswitch.risk.pretrade.input_health import read_quote
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule, of_strategy, read_pretrade
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.pretrade.repeated_executions import OrderStrategies, another_strategy
from killswitch.risk.refusal import OrderRefused, RefusalKind
from killswitch.settings.settings_diff import say_changed

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor

PERSIST_VERSION = 1


class PreTradeControls:
    """Asks every control before an order is sent. All methods may be called from any thread.

    Use :meth:`admit` just before sending; then :meth:`on_fill`, and :meth:`release` when the order is over or was not
    sent. Feed :meth:`on_quote` or :meth:`on_price` where the settings ask for prices.

    Args:
        settings: which controls there are.
        monitor: limits and reservations; every order that passes is reserved there.
        day: the calendar that counts of the day run by; needed with ``settings.daily``.
        rules: rules of the user's own.
        policy: refuses what could grow the exposure while the policy does not allow it.
        breaker: refuses everything while it is engaged; while it is half-open as many orders pass as it has probes.
        clock: nanoseconds; read once at the beginning of a check and once at its end.
        registry: where ``killswitch_orders_refused_total`` is counted; the process's default registry when ``None``.
        on_lock: told when a strategy was disabled by its fills or enabled by a person, on that thread; must not wait.

    Raises:
        ValueError: there are counts of the day and no calendar.

    Attributes:
        monitor: the monitor.
        refused: orders refused, by kind.
    """

    def __init__(
        self,
        settings: PreTradeSettings,
        *,
        monitor: RuntimeRiskMonitor,
        day: CalendarDay | None = None,
        rules: Sequence[PretradeRule] = (),
        policy: PolicyMonitor | None = None,
        breaker: CircuitBreaker | None = None,
        clock: NowNs = now_ns,
        registry: CollectorRegistry | None = None,
        on_lock: Callable[[], None] | None = None,
    ) -> None:
        self.monitor = monitor
        self.refused: Counter[RefusalKind] = Counter()
        self._refused_total = counter_of(
            registry,
            "killswitch_orders_refused_total",
            "Orders that the pre-trade controls refused.",
            ["kind"],
            [(kind,) for kind in get_args(RefusalKind)],
        )
        self._refused_lock = threading.Lock()
        self._on_lock = on_lock
        self._strategies = OrderStrategies(monitor)
        self._chain = ControlChain(
            settings, monitor=monitor, day=day, rules=rules, policy=policy, breaker=breaker, clock=clock
        )

    # ---- settings

    @property
    def settings(self) -> PreTradeSettings:
        """The settings in force."""
        return self._chain.settings

    def set_settings(self, settings: PreTradeSettings) -> None:
        """Ask by other settings from now on, in one step: every order is judged by the old ones or by the new ones.

        What the controls know stays, and no message, count or release is ever given for the change; also when a
        section goes and comes back (see :mod:`killswitch.risk.pretrade.stateful_controls`). Of the throttle: a lower
        rate holds at once for what was sent already, a higher one begins with no more than was left.

        Raises:
            ValueError: there are counts of the day and no calendar. Nothing has changed.
        """
        before = self._chain.set_settings(settings)
        if settings != before:
            say_changed("pre-trade settings changed", before, settings)

    # ---- before an order

    def admit(
        self,
        client_order_id: str,
        symbol: str,
        side: str,
        qty: float,
        price: float | None = None,
        *,
        strategy: str | None = None,
    ) -> OrderRefused | None:
        """Ask every control, and when all let the order pass, count it and reserve it. Never raises.

        Args:
            client_order_id: the order's own id.
            symbol: name of the instrument.
            side: ``buy`` or ``sell``, in lower, upper or title case.
            qty: quantity, greater than 0.
            price: USD, greater than 0; ``None`` for a market order.
            strategy: whose order it is, as text; remembered for its fills and amendments.

        Returns:
            ``None`` when it may be sent now; else why not, with the figures. Refusals are counted; a fault of an input
            or of a control freezes the monitor where the settings say so.
        """
        return self._admit(client_order_id, read_pretrade(symbol, side, qty, price, strategy))

    def admit_read(self, client_order_id: str, read: ReadOrder, strategy: str | None) -> OrderRefused | None:
        """As :meth:`admit`, of an order that has been read."""
        order = PretradeOrder(read.symbol, read.sign, read.qty, read.price)
        return self._admit(client_order_id, of_strategy(order, strategy))

    def _admit(self, client_order_id: str, order: PretradeOrder | OrderRefused) -> OrderRefused | None:
        if isinstance(order, OrderRefused):
            return self._count_refusal(order)
        read = _as_read(order) if self._chain.has_own_rules else order
        refusal = self._chain.ask(order, counting=True)
        if refusal is None:
            refusal = self.monitor.reserve_read(client_order_id, read)
            if refusal is None:
                refusal = self._chain.late(order)
                if refusal is None:
                    self.monitor.note_strategy(client_order_id, order.strategy)
                    return None
                self.monitor.release(client_order_id)
            self._chain.take_back(order)
        return self._count_refusal(refusal)

    def admit_amend(
        self, client_order_id: str, qty: float, price: float | None = None, *, strategy: str | None = None
    ) -> OrderRefused | None:
        """As :meth:`admit` for a change of an order that is reserved.

        Afterwards tell ``monitor.settle_amend`` what the venue has answered.

        Args:
            client_order_id: the order's id.
            qty: the whole quantity that it is to have, filled parts included.
            price: USD; as before when ``None``.
            strategy: need not be said: the order is whose it was when it was admitted. Another one is refused.
        """
        order = self._read_amendment(client_order_id, qty, price, strategy)
        if isinstance(order, OrderRefused):
            return self._count_refusal(order)
        refusal = self._chain.ask(order, counting=True)
        if refusal is None:
            refusal = self.monitor.amend(client_order_id, qty, price)
            if refusal is None:
                refusal = self._chain.late(order)
                if refusal is None:
                    return None
                self.monitor.settle_amend(client_order_id, accepted=False)
            self._chain.take_back(order)
        return self._count_refusal(refusal)

    def _read_amendment(
        self, client_order_id: str, qty: float, price: float | None, strategy: str | None
    ) -> PretradeOrder | OrderRefused:
        known, works_qty = self.monitor.reserved(client_order_id), self.monitor.reserved_quantity(client_order_id)
        if known is None or works_qty is None:
            sentence = f"no order with the id {client_order_id!r} works"
            return OrderRefused("unknown_order", None, None, "", sentence)
        symbol, side, old_price = known
        order = read_pretrade(symbol, side, qty, old_price if price is None else price, strategy)
        if isinstance(order, OrderRefused):
            return order
        own = self._strategies.of(client_order_id)
        if own is not None and own != order.strategy:
            if strategy is not None:
                return another_strategy(symbol, client_order_id, own, order.strategy)
            order.strategy = own
        order.amends, order.own_id, order.grows = True, client_order_id, order.qty > works_qty
        return order

    def explain_order(
        self, symbol: str, side: str, qty: float, price: float | None = None, *, strategy: str | None = None
    ) -> OrderRefused | None:
        """Return the first refusal that an order would meet, ``None`` when it would pass. Counts nothing."""
        order = read_pretrade(symbol, side, qty, price, strategy)
        if isinstance(order, OrderRefused):
            return order
        read = _as_read(order) if self._chain.has_own_rules else order
        return self._chain.ask(order, counting=False) or self.monitor.explain_read(read)

    def simulate_order(
        self, symbol: str, side: str, qty: float, price: float | None = None, *, strategy: str | None = None
    ) -> OrderSimulation:
        """Work out everything that would refuse an order, and its figures, without any side effect."""
        simulated = self.monitor.simulate_order(symbol, side, qty, price)
        order = read_pretrade(symbol, side, qty, price, strategy)
        if isinstance(order, OrderRefused):
            # Numbers that make no sense the monitor has told already; a strategy that makes none it does not know.
            known = order in simulated.refusals
            return simulated if known else replace(simulated, refusals=(order, *simulated.refusals), warnings=())
        refusals = self._chain.refusals_of(order)
        return replace(
            simulated, refusals=(*refusals, *simulated.refusals), warnings=() if refusals else simulated.warnings
        )

    def _count_refusal(self, refusal: OrderRefused) -> OrderRefused:
        with self._refused_lock:
            self.refused[refusal.kind] += 1
        self._refused_total.labels(kind=refusal.kind).inc()
        if self._chain.severity_of(refusal.kind) == "freeze":
            figures = {"cause": MONITOR_ERROR, "kind": refusal.kind, "limit": refusal.limit, "value": refusal.value}
            self.monitor.freeze(refusal.sentence, refusal.symbol, trigger="limit_violation", metadata=figures)
        return refusal

    # ---- what happens to an order

    def on_fill(
        self,
        symbol: str,
        side: str,
        qty: float,
        price: float,
        *,
        client_order_id: str | None = None,
        strategy: str | None = None,
    ) -> None:
        """Pass a fill on to the monitor, and count it as an execution of the strategy that its order is of.

        Venues tell the order's id and no strategy; whose it is is known from :meth:`admit`, also after its last fill.
        """
        names = self._strategies.executed(client_order_id, strategy)
        self.monitor.on_fill(symbol, side, qty, price, client_order_id=client_order_id)
        repeated = self._chain.known.repeated
        if repeated is None:
            return
        for name in names:
            if repeated.on_fill(name) and self._on_lock is not None:
                self._on_lock()

    def release(self, client_order_id: str) -> bool:
        """The order is over, or was not sent: it works no more. Messages and counts of the day stay counted.

        Returns:
            False when no such order works.
        """
        self._strategies.remember(client_order_id)
        return self.monitor.release(client_order_id)

    def on_cancel(self) -> None:
        """A cancel was sent. Nothing was asked first, and nothing here can hold one up."""
        daily = self._chain.known.daily
        if daily is not None:
            daily.on_cancel()

    def on_result(self, pnl_usd: float) -> None:
        """A trade has ended with this profit or loss in USD; for the losses of the day."""
        daily = self._chain.known.daily
        if daily is not None:
            daily.on_result(pnl_usd)

    # ---- what a person does

    def enable(self, strategy: str, person: str, reason: str) -> bool:
        """Let a strategy trade again that repeated executions have disabled; see :class:`RepeatedExecutions`.

        Returns:
            True when it was disabled.

        Raises:
            ValueError: nobody is named, no reason is given, or the person is not designated.
        """
        repeated = self._chain.known.repeated
        was_disabled = repeated is not None and repeated.enable(strategy, person, reason)
        if was_disabled and self._on_lock is not None:
            self._on_lock()
        return was_disabled

    def disabled_strategies(self) -> list[str]:
        """The strategies that are disabled now."""
        repeated = self._chain.known.repeated
        return [] if repeated is None else repeated.disabled()

    # ---- prices

    def on_price(self, symbol: str, price: float) -> None:
        """Take in a mark or a last trade; see :class:`~killswitch.risk.pretrade.input_health.InputHealth`.

        A good one is also what the monitor values the symbol at from now on. A bad one never is.
        """
        health = self._chain.known.health
        if health is not None:
            health.on_price(symbol, price)
        self.monitor.on_mark(symbol, price)

    def on_quote(self, symbol: str, bid: float, ask: float) -> None:
        """Take in a quote; likewise, with its middle."""
        health = self._chain.known.health
        if health is not None:
            health.on_quote(symbol, bid, ask)
        middle, fault = read_quote(bid, ask)
        if middle is not None and fault is None:
            self.monitor.on_mark(symbol, middle)

    # ---- over a restart

    def persist_to_dict(self) -> dict[str, Any]:
        """Return what a restart must not forget, as JSON values: disabled strategies and the counts of the day.

        Positions and working orders, with their strategies, are the monitor's to persist. Throttle, duplicates and
        prices start anew.
        """
        repeated, daily = self._chain.known.repeated, self._chain.known.daily
        return {
            "v": PERSIST_VERSION,
            "executions": None if repeated is None else repeated.to_json(),
            "disabled": {} if repeated is None else repeated.disabled_to_json(),
            "daily": None if daily is None else daily.to_json(),
        }

    def restore_from_dict(self, data: Mapping[str, Any]) -> None:
        """Take over what :meth:`persist_to_dict` returned, where the settings have that control.

        Strategies that are disabled stay so whatever the settings are.

        Raises:
            ValueError: the data cannot be read; the monitor is frozen.
        """
        try:
            if data["v"] != PERSIST_VERSION:
                raise ValueError(f"version {data['v']!r} is not {PERSIST_VERSION}")  # noqa: TRY301 - one way out for all
            repeated, daily = self._chain.known.repeated, self._chain.known.daily
            if repeated is not None and data["executions"] is not None:
                repeated.restore(data["executions"])
            disabled = data.get("disabled")  # a state from before there was this name has none
            if disabled:
                self._chain.hold_disabled(disabled)
            if daily is not None and data["daily"] is not None:
                daily.restore(data["daily"])
        except Exception as error:
            sentence = f"the saved state of the pre-trade controls cannot be read, so the monitor is frozen: {error!r}"
            self.monitor.freeze(sentence, trigger="limit_violation", metadata={"cause": MONITOR_ERROR})
            raise ValueError(sentence) from error


def _as_read(order: PretradeOrder) -> ReadOrder:
    """The order as it will be sent, where a rule of the user's own is handed the other one and may write into it."""
    return ReadOrder(order.symbol, order.sign, order.qty, order.price)
