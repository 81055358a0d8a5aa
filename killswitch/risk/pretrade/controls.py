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
from killswitch.risk.limits.order_simulation import OrderSimulation
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.metrics import counter_of
from killswitch.risk.order_inputs import plain_sign, read_order
from killswitch.risk.pretrade.account_gates import BreakerGate, PolicyThrottle
from killswitch.risk.pretrade.control_faults import fault, raised, stepped
from killswitch.risk.pretrade.daily_counts import CalendarDay
from killswitch.risk.pretrade.guarded_rule import GuardedRule
from killswitch.risk.pretrade.input_health import read_quote
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule
from killswitch.risk.pretrade.order_size import OrderSize
from killswitch.risk.pretrade.order_strategies import OrderStrategies, another_strategy, read_strategy
from killswitch.risk.pretrade.permitted_symbols import PermittedSymbols
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings, Severity
from killswitch.risk.pretrade.price_collar import PriceCollar
from killswitch.risk.pretrade.stateful_controls import StatefulControls
from killswitch.risk.pretrade.working_order_limits import WorkingOrderLimits
from killswitch.risk.refusal import OrderRefused, RefusalKind
from killswitch.settings.settings_diff import say_changed

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor

PERSIST_VERSION = 1

_LONG_AGO_NS = -(2**63)
_NANOSECONDS_PER_MS = 1_000_000
_Refuses = Callable[[PretradeOrder], OrderRefused | None]


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
        self._clock = clock
        self._refused_total = counter_of(
            registry,
            "killswitch_orders_refused_total",
            "Orders that the pre-trade controls refused.",
            ["kind"],
            [(kind,) for kind in get_args(RefusalKind)],
        )
        self._lock = threading.Lock()
        self._refused_lock = threading.Lock()
        self._last_ns = _LONG_AGO_NS
        self._on_lock = on_lock
        throttle = () if policy is None else (PolicyThrottle(policy, self._reduces),)
        self._own_rules: tuple[PretradeRule, ...] = (*rules, *throttle)
        self._breaker = None if breaker is None else BreakerGate(breaker)
        self._strategies = OrderStrategies(monitor)
        self._known = StatefulControls(day=day, reduces=self._reduces, clock=clock)
        self._known.require(settings)
        with self._lock:
            self._put_in_force(settings, _LONG_AGO_NS, limits_working_orders=settings.working_orders is not None)

    def _put_in_force(self, settings: PreTradeSettings, now_ns: int, *, limits_working_orders: bool) -> None:
        """Ask by these settings from now on. The lock is held."""
        self._settings = settings
        self._budget_ns = int(settings.control_budget_ms * _NANOSECONDS_PER_MS)
        budget_ms = settings.control_budget_ms
        self._rules = tuple(GuardedRule(rule, clock=self._clock, budget_ms=budget_ms) for rule in self._own_rules)
        self._known.take(settings, now_ns=now_ns, last_ns=self._last_ns)
        self._ask_known()
        if limits_working_orders:
            working = settings.working_orders
            self.monitor.limit_working_orders(None if working is None else WorkingOrderLimits(working))

    def _ask_known(self) -> None:
        """Have every order asked by the controls in force. The lock is held."""
        known, settings = self._known, self._settings
        size = settings.order_size
        self._watched = known.health.prices if known.health is not None else {}
        # In the stated order; one that is off is a look that refuses nothing.
        self._looks = (
            _look(_made(PermittedSymbols, settings.permitted_symbols)),
            _look(None if size is None else OrderSize(size, known_price=self.monitor.known_price)),
            _look(known.repeated),
            _look(known.daily),
            _look(known.health),
            _look(_made(PriceCollar, settings.price_collar)),
            _look(known.throttle),
            _look(known.duplicates),
        )
        self._counting = known.counting
        self._counts = tuple(control.count for control in self._counting)

    # ---- settings

    @property
    def settings(self) -> PreTradeSettings:
        """The settings in force."""
        return self._settings

    def set_settings(self, settings: PreTradeSettings) -> None:
        """Ask by other settings from now on, in one step: every order is judged by the old ones or by the new ones.

        What the controls know stays, and no message, count or release is ever given for the change; also when a
        section goes and comes back (see :mod:`stateful_controls`). Of the throttle: a lower rate
        holds at once for what was sent already, a higher one begins with no more than was left.

        Raises:
            ValueError: there are counts of the day and no calendar. Nothing has changed.
        """
        self._known.require(settings)
        with self._lock:
            before = self._settings
            if settings == before:
                return
            try:
                now_ns = max(int(self._clock()), self._last_ns)
            except Exception:  # a limit must hold although a clock fails; no order passes meanwhile
                now_ns = self._last_ns
            changed = settings.working_orders != before.working_orders
            self._put_in_force(settings, now_ns, limits_working_orders=changed)
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
        order = self._read(symbol, side, qty, price, strategy)
        if isinstance(order, OrderRefused):
            return self._count_refusal(order)
        refusal = self._pass(order, counting=True)
        if refusal is None:
            refusal = self.monitor.reserve(client_order_id, symbol, side, qty, price)
            if refusal is None:
                refusal = self._late(order)
                if refusal is None:
                    self.monitor.note_strategy(client_order_id, order.strategy)
                    return None
                self.monitor.release(client_order_id)
            self._take_back(order)
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
        refusal = self._pass(order, counting=True)
        if refusal is None:
            refusal = self.monitor.amend(client_order_id, qty, price)
            if refusal is None:
                refusal = self._late(order)
                if refusal is None:
                    return None
                self.monitor.settle_amend(client_order_id, accepted=False)
            self._take_back(order)
        return self._count_refusal(refusal)

    def _read_amendment(
        self, client_order_id: str, qty: float, price: float | None, strategy: str | None
    ) -> PretradeOrder | OrderRefused:
        known, works_qty = self.monitor.reserved(client_order_id), self.monitor.reserved_quantity(client_order_id)
        if known is None or works_qty is None:
            sentence = f"no order with the id {client_order_id!r} works"
            return OrderRefused("unknown_order", None, None, "", sentence)
        symbol, side, old_price = known
        order = self._read(symbol, side, qty, old_price if price is None else price, strategy)
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
        order = self._read(symbol, side, qty, price, strategy)
        if isinstance(order, OrderRefused):
            return order
        refusal = self._pass(order, counting=False)
        if refusal is not None:
            return refusal
        monitor = self.monitor
        if order.price is not None and monitor.surely_passes(order.symbol, order.sign, order.qty, order.price):
            return None
        return monitor.explain_order(symbol, side, qty, price)

    def simulate_order(
        self, symbol: str, side: str, qty: float, price: float | None = None, *, strategy: str | None = None
    ) -> OrderSimulation:
        """Work out everything that would refuse an order, and its figures, without any side effect."""
        simulated = self.monitor.simulate_order(symbol, side, qty, price)
        order = self._read(symbol, side, qty, price, strategy)
        if isinstance(order, OrderRefused):
            # Numbers that make no sense the monitor has told already; a strategy that makes none it does not know.
            known = order in simulated.refusals
            return simulated if known else replace(simulated, refusals=(order, *simulated.refusals), warnings=())
        refusals: list[OrderRefused] = []
        with self._lock:
            try:
                order.now_ns, order.watched = int(self._clock()), self._watched.get(order.symbol)
                went_back = order.now_ns < self._last_ns
            except Exception as error:  # a clock that fails leaves every age unknown
                refusals.append(fault(symbol, f"the clock raised {error!r}"))
            else:
                refusals.extend([stepped(order, self._last_ns)] if went_back else [])
                refusals.extend(self._look_at_all(order))
        breaker = () if self._breaker is None else (self._breaker,)
        last: tuple[GuardedRule | BreakerGate, ...] = (*self._rules, *breaker)
        refusals.extend(refusal for rule in last if (refusal := rule.refuses(order)) is not None)
        return replace(
            simulated, refusals=(*refusals, *simulated.refusals), warnings=() if refusals else simulated.warnings
        )

    def _look_at_all(self, order: PretradeOrder) -> list[OrderRefused]:
        """Every refusal of every control. The lock is held."""
        found = []
        for refuses in self._looks:
            try:
                refusal = refuses(order)
            except Exception as error:  # whatever it raises, its answer is unknown
                refusal = raised(order, error)
            if refusal is not None:
                found.append(refusal)
        return found

    def _read(
        self, symbol: str, side: str, qty: float, price: float | None, strategy: str | None
    ) -> PretradeOrder | OrderRefused:
        if strategy is None:
            strategy = ""
        sign = plain_sign(symbol, side, qty, 1.0 if price is None else price)
        if sign and strategy.__class__ is str:
            return PretradeOrder(symbol, sign, qty, price, strategy)
        read = read_order(symbol, side, qty, price)
        if isinstance(read, OrderRefused):
            return read
        whose = read_strategy(symbol, strategy)
        if isinstance(whose, OrderRefused):
            return whose
        return PretradeOrder(str(read.symbol), read.sign, float(read.quantity), read.price, whose)

    def _pass(self, order: PretradeOrder, *, counting: bool) -> OrderRefused | None:
        """Ask everything but the monitor; count the order when all let it pass."""
        with self._lock:
            try:
                # The clock is read with the lock held, so that it cannot seem to go back between two threads.
                began_ns = order.now_ns = self._clock()
                order.watched = self._watched.get(order.symbol)
                if began_ns < self._last_ns:
                    return stepped(order, self._last_ns)
                # A call for each and no loop: Python remembers at each call what it calls, and so calls it faster.
                permitted, size, repeated, daily, health, collar, throttle, duplicates = self._looks
                refusal = (
                    permitted(order)
                    or size(order)
                    or repeated(order)
                    or daily(order)
                    or health(order)
                    or collar(order)
                    or throttle(order)
                    or duplicates(order)
                )
                if refusal is not None:
                    return refusal
                ended_ns = self._clock()
                if not 0 <= ended_ns - began_ns <= self._budget_ns:
                    return self._overrun(order, ended_ns - began_ns)
                order.ended_ns = ended_ns
                if counting:
                    self._last_ns = ended_ns
                    order.counted_by = self._counting
                    for count in self._counts:
                        count(order)
            except Exception as error:  # whatever it raises, the answer is unknown
                return raised(order, error)
        if not self._rules and self._breaker is None:
            return None
        refusal = self._ask_rules(order)
        if refusal is None and self._breaker is not None:
            refusal = self._breaker.takes(order) if counting else self._breaker.refuses(order)
        if refusal is not None and counting:
            self._take_back(order)
        return refusal

    def _ask_rules(self, order: PretradeOrder) -> OrderRefused | None:
        """Ask the user's own rules; each has its own budget, so that of breaker and monitor begins after the last."""
        for rule in self._rules:
            refusal = rule.refuses(order)
            if refusal is not None:
                return refusal
        try:
            order.ended_ns = self._clock()
        except Exception as error:  # no time from here on would be known
            return fault(order.symbol, f"the clock raised {error!r}")
        return None

    def _reduces(self, order: PretradeOrder) -> bool:
        side = "buy" if order.sign > 0 else "sell"
        return self.monitor.would_reduce(order.symbol, side, order.qty, client_order_id=order.own_id)

    def _take_back(self, order: PretradeOrder) -> None:
        with self._lock:
            for control in order.counted_by:
                control.take_back(order)

    def _late(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order that the monitor has let pass, when that took too long: mark prices may take any time."""
        try:
            took_ns = self._clock() - order.ended_ns
        except Exception as error:  # how long it took is not known
            return fault(order.symbol, f"the clock raised {error!r}")
        return None if 0 <= took_ns <= self._budget_ns else self._overrun(order, took_ns, "the limits")

    def _overrun(self, order: PretradeOrder, took_ns: int, what: str = "the controls") -> OrderRefused:
        limit_ms, took_ms = self._settings.control_budget_ms, took_ns / _NANOSECONDS_PER_MS
        sentence = f"{order.symbol}: {what} took {took_ms:.3f} ms, and {limit_ms:g} ms are allowed"
        return OrderRefused("control_overrun", limit_ms, took_ms, order.symbol, sentence, "ms")

    def _count_refusal(self, refusal: OrderRefused) -> OrderRefused:
        with self._refused_lock:
            self.refused[refusal.kind] += 1
        self._refused_total.labels(kind=refusal.kind).inc()
        if self._severity_of(refusal.kind) == "freeze":
            figures = {"cause": MONITOR_ERROR, "kind": refusal.kind, "limit": refusal.limit, "value": refusal.value}
            self.monitor.freeze(refusal.sentence, refusal.symbol, trigger="limit_violation", metadata=figures)
        return refusal

    def _severity_of(self, kind: RefusalKind) -> Severity | None:
        """What a refusal of this kind does beyond refusing; ``None`` when it is no fault."""
        if kind == "control_error":
            return self._settings.control_error
        if kind == "control_overrun":
            return self._settings.control_overrun
        if kind == "clock_stepped":
            return self._settings.clock_stepped
        health = self._known.health
        return health.severity_of(kind) if health is not None else None

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
        repeated = self._known.repeated
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
        daily = self._known.daily
        if daily is not None:
            daily.on_cancel()

    def on_result(self, pnl_usd: float) -> None:
        """A trade has ended with this profit or loss in USD; for the losses of the day."""
        daily = self._known.daily
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
        repeated = self._known.repeated
        was_disabled = repeated is not None and repeated.enable(strategy, person, reason)
        if was_disabled and self._on_lock is not None:
            self._on_lock()
        return was_disabled

    def disabled_strategies(self) -> list[str]:
        """The strategies that are disabled now."""
        repeated = self._known.repeated
        return [] if repeated is None else repeated.disabled()

    # ---- prices

    def on_price(self, symbol: str, price: float) -> None:
        """Take in a mark or a last trade; see :class:`~killswitch.risk.pretrade.input_health.InputHealth`.

        A good one is also what the monitor values the symbol at from now on. A bad one never is.
        """
        health = self._known.health
        if health is not None:
            health.on_price(symbol, price)
        self.monitor.on_mark(symbol, price)

    def on_quote(self, symbol: str, bid: float, ask: float) -> None:
        """Take in a quote; likewise, with its middle."""
        health = self._known.health
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
        repeated, daily = self._known.repeated, self._known.daily
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
            repeated, daily = self._known.repeated, self._known.daily
            if repeated is not None and data["executions"] is not None:
                repeated.restore(data["executions"])
            disabled = data.get("disabled")  # a state from before there was this name has none
            if disabled:
                with self._lock:
                    self._known.hold_strategies().restore_disabled(disabled)
                    self._ask_known()
            if daily is not None and data["daily"] is not None:
                daily.restore(data["daily"])
        except Exception as error:
            sentence = f"the saved state of the pre-trade controls cannot be read, so the monitor is frozen: {error!r}"
            self.monitor.freeze(sentence, trigger="limit_violation", metadata={"cause": MONITOR_ERROR})
            raise ValueError(sentence) from error


def _made(make: Callable[[Any], Any], settings: Any) -> Any:
    return None if settings is None else make(settings)


def _look(control: PretradeRule | None) -> _Refuses:
    return _passes if control is None else control.refuses


def _passes(_order: PretradeOrder) -> OrderRefused | None:
    """The look of a control that is off."""
    return None
