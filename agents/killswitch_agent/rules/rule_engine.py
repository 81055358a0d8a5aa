"""All rules of a node asked about one moment, each watched: a rule that fails is a breach and never skipped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from killswitch.clock import NowNs
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.node_rule import LEVEL_RANK, NodeFinding, NodeLevel, NodeRule, NodeSnapshot
from killswitch.safe_log import say

MONITOR_LATE: Final = "monitor_late"
"""Trigger of the finding that a rule has not answered in time."""
FINDINGS_MAX: Final = 1_000
"""Findings of one rule at one judgement; more are a breach."""

_NANOSECONDS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A finding, and the rule that made it."""

    rule: str
    finding: NodeFinding

    @property
    def source(self) -> str:
        """What tells it from every other finding: rule, trigger and symbol."""
        return f"{self.rule}:{self.finding.trigger}:{self.finding.symbol}"


class RuleEngine:
    """Asks the rules, one after the other, on the thread that judges.

    A rule that never answers holds up the others; :meth:`overdue` tells it to whoever watches from another thread.

    Args:
        rules: in the order in which they are asked.
        budget_ms: what one rule may take.
        on_late: how far a rule goes that takes longer.
        on_error: how far a rule goes that raises or answers nonsense.
        clock: nanoseconds.
    """

    def __init__(
        self,
        rules: Sequence[NodeRule],
        *,
        budget_ms: int,
        on_late: NodeLevel,
        on_error: NodeLevel,
        clock: NowNs,
    ) -> None:
        self._rules = tuple(rules)
        self._clock = clock
        self._watched = threading.Lock()
        self._asking: tuple[str, int] | None = None
        self.set_guard(budget_ms=budget_ms, on_late=on_late, on_error=on_error)

    def set_guard(self, *, budget_ms: int, on_late: NodeLevel, on_error: NodeLevel) -> None:
        """Hold the rules to another budget, and late and failing ones to other levels, from now on."""
        self._budget_ns = budget_ms * _NANOSECONDS_PER_MS
        self._on_late, self._on_error = on_late, on_error

    def evaluate(self, snapshot: NodeSnapshot) -> tuple[Judged, ...]:
        """Return what every rule finds. Never raises."""
        return tuple(Judged(rule.name, finding) for rule in self._rules for finding in self._ask(rule, snapshot))

    def released(self, names: Collection[str]) -> None:
        """A person has released freezes of these rules: those that have a method ``released()`` are told.

        Never raises.
        """
        for rule in self._rules:
            hear: Callable[[], None] | None = getattr(rule, "released", None)
            if hear is None or rule.name not in names:
                continue
            try:
                hear()
            except Exception as error:  # a rule that cannot take a release goes on finding what it finds
                say("error", "a rule of the node could not take a release", rule=rule.name, error=repr(error))

    def overdue(self) -> Judged | None:
        """Return the breach of a rule that has been asked and has not answered in time; from any thread."""
        with self._watched:
            asking = self._asking
        if asking is None or self._clock() - asking[1] <= self._budget_ns:
            return None
        return Judged(asking[0], self._late(asking[0], self._clock() - asking[1]))

    def _ask(self, rule: NodeRule, snapshot: NodeSnapshot) -> tuple[NodeFinding, ...]:
        began_ns = self._clock()
        with self._watched:
            self._asking = (rule.name, began_ns)
        try:
            answer: object = rule.judge(snapshot)
            findings = _checked(rule.name, answer)
        except Exception as error:  # whatever it raises, its answer is unknown
            return (self._fault(f"the rule {rule.name} failed: {error!r}"),)
        finally:
            with self._watched:
                self._asking = None
        took_ns = self._clock() - began_ns
        if not 0 <= took_ns <= self._budget_ns:
            return (*findings, self._late(rule.name, took_ns))
        return findings

    def _late(self, name: str, took_ns: int) -> NodeFinding:
        took_ms, budget_ms = took_ns / _NANOSECONDS_PER_MS, self._budget_ns / _NANOSECONDS_PER_MS
        return NodeFinding(
            trigger=MONITOR_LATE,
            level=self._on_late,
            reason=f"the rule {name} takes {took_ms:.0f} ms, and {budget_ms:.0f} ms are allowed",
            limit=budget_ms,
            figures={"took_ms": took_ms, "budget_ms": budget_ms},
        )

    def _fault(self, reason: str) -> NodeFinding:
        return NodeFinding(trigger=MONITOR_ERROR, level=self._on_error, reason=reason)


def _checked(name: str, answer: object) -> tuple[NodeFinding, ...]:
    """Return an answer that is one.

    Raises:
        TypeError: it is no sequence of findings, or a finding is of no level.
    """
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise TypeError(f"it answered {answer!r:.200}, which is no sequence of findings")
    if len(answer) > FINDINGS_MAX:
        raise TypeError(f"it answered {len(answer)} findings; {FINDINGS_MAX} are the most")
    for finding in answer:
        if not isinstance(finding, NodeFinding) or not _is_sound(finding):
            raise TypeError(f"it answered {finding!r:.200}, which is no finding of {name}")
    return tuple(answer)


def _is_sound(finding: NodeFinding) -> bool:
    """Tell whether every field is of its kind: what follows from a finding must not fail for what it says."""
    fields: tuple[object, ...] = (
        *(finding.level, finding.trigger, finding.reason, finding.symbol),
        *(finding.value, finding.limit, finding.figures),
    )
    level, trigger, reason, symbol, value, limit, figures = fields
    return (
        level in LEVEL_RANK
        and all(isinstance(text, str) and text for text in (trigger, reason))
        and isinstance(symbol, str | None)
        and all(number is None or isinstance(number, int | float) for number in (value, limit))
        and isinstance(figures, Mapping)
    )
