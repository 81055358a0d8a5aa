"""The controls in force, asked in the stated order, each at its cost and all within their time.

The order is told in :mod:`killswitch.risk.pretrade.controls`; this is all of it between the reading of an order and the
monitor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from killswitch.clock import NowNs
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade.daily_counts import CalendarDay
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule, fault, overrun, raised, stepped
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings, Severity
from killswitch.risk.pretrade.price_collar import PriceCollar
from killswitch.risk.pretrade.rules import BreakerGate, GuardedRule, PolicyThrottle
from killswitch.risk.pretrade.stateful_controls import StatefulControls
from killswitch.risk.pretrade.static_limits import OrderSize, PermittedSymbols, WorkingOrderLimits
from killswitch.risk.refusal import OrderRefused, RefusalKind

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor

_LONG_AGO_NS = -(2**63)
_NANOSECONDS_PER_MS = 1_000_000
_Refuses = Callable[[PretradeOrder], OrderRefused | None]


class ControlChain:
    """Asks everything but the monitor. All methods may be called from any thread.

    Args:
        settings: which controls there are.
        monitor: is told how many orders may work, and asked whether an order can only reduce.
        day: the calendar that counts of the day run by; needed with ``settings.daily``.
        rules: rules of the user's own.
        policy: refuses what could grow the exposure while the policy does not allow it.
        breaker: refuses everything while it is engaged.
        clock: nanoseconds; read once at the beginning of a check and once at its end.

    Raises:
        ValueError: there are counts of the day and no calendar.

    Attributes:
        settings: the settings in force.
        known: the controls that remember something.
        has_own_rules: there are rules of the user's own, which may write into the order that they are handed.
    """

    def __init__(
        self,
        settings: PreTradeSettings,
        *,
        monitor: RuntimeRiskMonitor,
        day: CalendarDay | None,
        rules: Sequence[PretradeRule],
        policy: PolicyMonitor | None,
        breaker: CircuitBreaker | None,
        clock: NowNs,
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._lock = threading.Lock()
        self._last_ns = _LONG_AGO_NS
        throttle = () if policy is None else (PolicyThrottle(policy, self._reduces),)
        self._own_rules: tuple[PretradeRule, ...] = (*rules, *throttle)
        self.has_own_rules = bool(rules)
        self._breaker = None if breaker is None else BreakerGate(breaker)
        self.known = StatefulControls(day=day, reduces=self._reduces, clock=clock)
        self.known.require(settings)
        with self._lock:
            self._put_in_force(settings, _LONG_AGO_NS, limits_working_orders=settings.working_orders is not None)

    def set_settings(self, settings: PreTradeSettings) -> PreTradeSettings:
        """Ask by other settings from now on, in one step; see :meth:`.PreTradeControls.set_settings`.

        Returns:
            The settings before.

        Raises:
            ValueError: there are counts of the day and no calendar. Nothing has changed.
        """
        self.known.require(settings)
        with self._lock:
            before = self.settings
            if settings == before:
                return before
            try:
                now_ns = max(int(self._clock()), self._last_ns)
            except Exception:  # a limit must hold although a clock fails; no order passes meanwhile
                now_ns = self._last_ns
            changed = settings.working_orders != before.working_orders
            self._put_in_force(settings, now_ns, limits_working_orders=changed)
        return before

    def _put_in_force(self, settings: PreTradeSettings, now_ns: int, *, limits_working_orders: bool) -> None:
        """Ask by these settings from now on. The lock is held."""
        self.settings = settings
        self._budget_ns = int(settings.control_budget_ms * _NANOSECONDS_PER_MS)
        budget_ms = settings.control_budget_ms
        self._rules = tuple(GuardedRule(rule, clock=self._clock, budget_ms=budget_ms) for rule in self._own_rules)
        self.known.take(settings, now_ns=now_ns, last_ns=self._last_ns)
        self._ask_known()
        if limits_working_orders:
            working = settings.working_orders
            self._monitor.limit_working_orders(None if working is None else WorkingOrderLimits(working))

    def _ask_known(self) -> None:
        """Have every order asked by the controls in force. The lock is held."""
        known, settings = self.known, self.settings
        size = settings.order_size
        self._watched = known.health.prices if known.health is not None else {}
        # In the stated order; one that is off is a look that refuses nothing.
        self._looks = (
            _look(_made(PermittedSymbols, settings.permitted_symbols)),
            _look(None if size is None else OrderSize(size, known_price=self._monitor.known_price)),
            _look(known.repeated),
            _look(known.daily),
            _look(known.health),
            _look(_made(PriceCollar, settings.price_collar)),
            _look(known.throttle),
            _look(known.duplicates),
        )
        self._counting = known.counting
        self._counts = tuple(control.count for control in self._counting)

    # ---- an order

    def ask(self, order: PretradeOrder, *, counting: bool) -> OrderRefused | None:
        """Return the first refusal; when there is none, count the order if it is to be counted. Never raises."""
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
            self.take_back(order)
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
        return self._monitor.would_reduce(order.symbol, order.side, order.qty, client_order_id=order.own_id)

    def take_back(self, order: PretradeOrder) -> None:
        """The order that was counted does not go after all."""
        with self._lock:
            for control in order.counted_by:
                control.take_back(order)

    def late(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order that the monitor has let pass, when that took too long: mark prices may take any time."""
        try:
            took_ns = self._clock() - order.ended_ns
        except Exception as error:  # how long it took is not known
            return fault(order.symbol, f"the clock raised {error!r}")
        return None if 0 <= took_ns <= self._budget_ns else self._overrun(order, took_ns, "the limits")

    def _overrun(self, order: PretradeOrder, took_ns: int, what: str = "the controls") -> OrderRefused:
        return overrun(order, what, took_ns / _NANOSECONDS_PER_MS, self.settings.control_budget_ms)

    def refusals_of(self, order: PretradeOrder) -> list[OrderRefused]:
        """Return what everything would say of an order, and change nothing. Never raises."""
        refusals: list[OrderRefused] = []
        with self._lock:
            try:
                order.now_ns, order.watched = int(self._clock()), self._watched.get(order.symbol)
                went_back = order.now_ns < self._last_ns
            except Exception as error:  # a clock that fails leaves every age unknown
                refusals.append(fault(order.symbol, f"the clock raised {error!r}"))
            else:
                refusals.extend([stepped(order, self._last_ns)] if went_back else [])
                refusals.extend(self._look_at_all(order))
        breaker = () if self._breaker is None else (self._breaker,)
        last: tuple[GuardedRule | BreakerGate, ...] = (*self._rules, *breaker)
        refusals.extend(refusal for rule in last if (refusal := rule.refuses(order)) is not None)
        return refusals

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

    # ---- faults, and what a restart brings

    def severity_of(self, kind: RefusalKind) -> Severity | None:
        """What a refusal of this kind does beyond refusing; ``None`` when it is no fault."""
        if kind == "control_error":
            return self.settings.control_error
        if kind == "control_overrun":
            return self.settings.control_overrun
        if kind == "clock_stepped":
            return self.settings.clock_stepped
        health = self.known.health
        return health.severity_of(kind) if health is not None else None

    def hold_disabled(self, data: Mapping[str, Any]) -> None:
        """Take over strategies that are disabled, whatever the settings are.

        Raises:
            ValueError: they cannot be read, or there are too many.
        """
        with self._lock:
            self.known.hold_strategies().restore_disabled(data)
            self._ask_known()


def _made(make: Callable[[Any], Any], settings: Any) -> Any:
    return None if settings is None else make(settings)


def _look(control: PretradeRule | None) -> _Refuses:
    return _passes if control is None else control.refuses


def _passes(_order: PretradeOrder) -> OrderRefused | None:
    """The look of a control that is off."""
    return None
