"""A rule of the user's own, watched: what it raises, an answer that is none, and a late answer are breaches."""

from __future__ import annotations

from killswitch.clock import NowNs
from killswitch.risk.pretrade.order import PretradeOrder, PretradeRule
from killswitch.risk.refusal import OrderRefused

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
            return _fault(order, f"the rule {self.name} raised {error!r}")
        if refusal is not None:
            if isinstance(refusal, OrderRefused):
                return refusal
            return _fault(order, f"the rule {self.name} answered {refusal!r}, which is neither a refusal nor None")
        if 0 <= took_ms <= self._budget_ms:
            return None
        sentence = f"{order.symbol}: the rule {self.name} took {took_ms:.3f} ms, and {self._budget_ms:g} ms are allowed"
        return OrderRefused("control_overrun", self._budget_ms, took_ms, order.symbol, sentence, "ms")


def _fault(order: PretradeOrder, what: str) -> OrderRefused:
    return OrderRefused("control_error", None, None, order.symbol, f"{order.symbol}: {what}")
