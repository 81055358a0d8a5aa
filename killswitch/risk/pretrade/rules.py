"""What is asked when every control has let an order pass: the user's own rules, the policy, the circuit breaker.

All three belong to somebody else, so none is taken on trust: what one raises, an answer that is none, and a late answer
refuse the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from killswitch.clock import NowNs
from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.order_inputs import refused
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule, fault, overrun
from killswitch.risk.refusal import OrderRefused

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor

_NANOSECONDS_PER_MS = 1_000_000


class GuardedRule:
    """Asks one rule and takes nothing on trust but a plain ``None`` that came in time.

    It cannot interrupt a rule: one that never answers holds up the thread that sends, which sends nothing meanwhile,
    and nobody else.

    Args:
        rule: the rule.
        clock: nanoseconds.
        budget_ms: what one answer may take.
    """

    def __init__(self, rule: PretradeRule, *, clock: NowNs, budget_ms: float) -> None:
        self.name = str(getattr(rule, "name", type(rule).__name__))
        self._rule = rule
        self._clock = clock
        self._budget_ms = budget_ms

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Return the rule's refusal, or the breach that the rule is. Never raises."""
        try:
            began_ns = self._clock()
            refusal: object = self._rule.refuses(order)
            took_ms = (self._clock() - began_ns) / _NANOSECONDS_PER_MS
        except Exception as error:  # whatever it raises, its answer is unknown
            return fault(order.symbol, f"the rule {self.name} raised {error!r}")
        if refusal is not None:
            if isinstance(refusal, OrderRefused):
                return refusal
            return fault(
                order.symbol, f"the rule {self.name} answered {refusal!r}, which is neither a refusal nor None"
            )
        if 0 <= took_ms <= self._budget_ms:
            return None
        return overrun(order, f"the rule {self.name}", took_ms, self._budget_ms)


class PolicyThrottle:
    """Refuses orders that could grow the exposure while the policy does not allow them; before its first decision too.

    Args:
        policy: the monitor of the policy; whoever feeds it goes on evaluating it.
        reduces: whether an order can only reduce its position. Such an order passes.
    """

    name = "policy_throttle"

    def __init__(self, policy: PolicyMonitor, reduces: Callable[[PretradeOrder], bool]) -> None:
        self._policy = policy
        self._reduces = reduces

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order that may grow the exposure when none may."""
        if self._policy.allows_growing_orders() is True or self._reduces(order):
            return None
        decision = self._policy.decision
        why = "it has decided nothing yet" if decision is None else decision.reason.sentence
        sentence = f"{order.symbol}: the policy lets no order pass that could grow the exposure: {why}"
        return refused("policy_throttle", order.symbol, sentence)


class BreakerGate:
    """Refuses every order while the breaker is engaged; while it is half-open its probes pass.

    Args:
        breaker: the breaker.
    """

    name = "breaker"

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    def takes(self, order: PretradeOrder) -> OrderRefused | None:
        """Ask for an order that goes when it passes: while half-open it uses up a probe. Never raises."""
        try:
            return None if self._breaker.allows() is True else self._refusal(order)
        except Exception as error:  # whatever it raises, its answer is unknown
            return fault(order.symbol, f"{self.name} raised {error!r}")

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Tell what :meth:`takes` would, and use up nothing. Never raises."""
        try:
            state = self._breaker.snapshot()
            passes = state.mode is BreakerMode.SAFE or (state.mode is BreakerMode.HALF_OPEN and state.probes_left > 0)
            return None if passes else self._refusal(order)
        except Exception as error:  # whatever it raises, its answer is unknown
            return fault(order.symbol, f"{self.name} raised {error!r}")

    def _refusal(self, order: PretradeOrder) -> OrderRefused:
        state = self._breaker.snapshot()
        because = "; ".join(f"{cause.kind}: {cause.reason}" for cause in state.causes) or "nothing more is known"
        what = "is half-open and its probes are used up" if state.mode is BreakerMode.HALF_OPEN else "is engaged"
        sentence = f"{order.symbol}: the circuit breaker {self._breaker.name} {what}: {because}"
        return refused("breaker", order.symbol, sentence)
