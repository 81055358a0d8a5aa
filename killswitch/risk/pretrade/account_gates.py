"""What judges the account as a whole, asked before an order: the exposure policy and the circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.order_inputs import refused
from killswitch.risk.pretrade.control_faults import fault
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.refusal import OrderRefused

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor


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
