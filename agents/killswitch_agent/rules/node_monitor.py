"""Judges the node as a whole and acts on it: warns, pauses this node, or has the cluster frozen.

The rules only say what is wrong now; here is what follows from it. A freeze is asked for once and stands until a person
releases it. What a person has released counts as accepted until it gets worse (decision 0007, as for the rules of the
coordinator). A pause closes this node's gate and goes by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from killswitch.clock import NowNs
from killswitch.core.canonical import finite_or_text
from killswitch.core.modes import Mode
from killswitch.risk.node_rule import LEVEL_RANK, NodeFinding, NodeRule, NodeSnapshot
from killswitch.risk.process.risk_limits_file import JudgementSettings
from killswitch_agent.routers import NodeExposure, RoutersSeen
from killswitch_agent.rules.rule_engine import Judged, RuleEngine

log = structlog.get_logger(__name__)

ACCEPTED_MARGIN: Final = 1.05
"""An accepted figure that has grown by more than this factor freezes again."""
FINDINGS_REPORTED: Final = 20
"""Findings in a report, the most severe first; the log has all of them."""
REASON_REPORTED: Final = 500
"""Characters of a reason in a report; a store takes no value of any length."""
JUDGEMENT_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)

_MODES: Mapping[str, Mode] = {"reduce_only": Mode.REDUCE_ONLY, "freeze": Mode.FROZEN}


class NodeActions(Protocol):
    """What an agent can do about a finding. Each may be called again while it stands, and must then do nothing."""

    def freeze(self, source: str, mode: Mode, finding: NodeFinding) -> None:
        """Have the cluster frozen, unless a freeze of this source and mode is in force."""

    def pause(self, source: str, finding: NodeFinding) -> None:
        """Close this node's gate."""

    def resume(self, source: str) -> None:
        """Take a pause back."""


class NodeMonitor:
    """Feeds the rules with the node's exposure and acts on what they find.

    Args:
        rules: asked in this order.
        node: name of the node.
        settings: how long a rule may take, and what one that fails does.
        actions: what follows from a finding.
        clock: deadline clock.
        registry: where findings are counted.
    """

    def __init__(
        self,
        rules: Sequence[NodeRule],
        *,
        node: str,
        settings: JudgementSettings,
        actions: NodeActions,
        clock: NowNs,
        registry: CollectorRegistry,
    ) -> None:
        self._node = node
        self._rules = tuple(rules)
        self._actions = actions
        self._clock = clock
        self._engine = RuleEngine(
            rules,
            budget_ms=settings.budget_ms,
            on_late=settings.on_late,
            on_error=settings.on_error,
            clock=clock,
        )
        self._acting = threading.Lock()
        self._standing: dict[str, Judged] = {}
        self._rules_released: set[str] = set()
        self._accepted: dict[str, tuple[int, float]] = {}
        self._found = Counter(
            "killswitch_node_findings_total",
            "Findings of the node's rules, each counted when it is made anew or changes its level.",
            ["rule", "trigger", "level"],
            registry=registry,
        )
        self._seconds = Histogram(
            "killswitch_node_judgement_seconds",
            "Time that all rules of the node took together.",
            buckets=JUDGEMENT_BUCKETS_S,
            registry=registry,
        )
        Gauge(
            "killswitch_node_level",
            "Most severe finding of the node now: 0 none, 1 warning, 2 pause, 3 reduce-only, 4 freeze.",
            registry=registry,
        ).set_function(lambda: float(max((_rank(one) for one in self.findings()), default=0)))

    def set_guard(self, settings: JudgementSettings) -> None:
        """Hold the rules to other settings from now on."""
        self._engine.set_guard(budget_ms=settings.budget_ms, on_late=settings.on_late, on_error=settings.on_error)

    def observe(self, exposure: NodeExposure, routers: RoutersSeen) -> None:
        """Judge the newest exposure of the node, on the thread that judges. Never raises."""
        with self._acting:
            rules_released, self._rules_released = self._rules_released, set()
        if rules_released:
            self._engine.released(rules_released)
        began_ns = self._clock()
        judged = self._engine.evaluate(self._snapshot(exposure, routers))
        self._seconds.observe((self._clock() - began_ns) / 1e9)
        with self._acting:
            self._act(judged)

    def watch(self) -> None:
        """Act on a rule that does not answer; called regularly on another thread than the one that judges.

        It acts each time, as a judgement would: while a rule hangs, a release alone must not open the node.
        """
        late = self._engine.overdue()
        if late is not None:
            with self._acting:
                self._act([*self._standing.values(), late])

    def released(self, sources: Iterable[str]) -> None:
        """A person has released the freezes of these sources: what still holds is accepted as it is."""
        with self._acting:
            for source in sources:
                self._rules_released.add(source.partition(":")[0])
                standing = self._standing.get(source)  # one that is gone already is new when it comes back
                if standing is None or standing.finding.value is None:
                    continue
                self._accepted[source] = (_rank(standing), standing.finding.value)
                log.warning("finding_accepted", source=source, value=standing.finding.value)

    def findings(self) -> tuple[Judged, ...]:
        """Return what holds now, the most severe first."""
        with self._acting:
            standing = list(self._standing.values())
        return tuple(sorted(standing, key=lambda judged: (-_rank(judged), judged.source)))

    def summary(self) -> dict[str, Any]:
        """Return what a report says of the node's risk, as JSON values."""
        body: dict[str, Any] = {"findings": [_told(judged) for judged in self.findings()[:FINDINGS_REPORTED]]}
        for rule in self._rules:
            say: Callable[[], Mapping[str, Any]] | None = getattr(rule, "summary", None)
            if say is not None:
                body[rule.name] = dict(say())
        return dict(finite_or_text(body))

    # -- acting; the lock is held --------------------------------------------------------------------------------

    def _act(self, judged: Sequence[Judged]) -> None:
        before, self._standing = self._standing, _most_severe(judged)
        for source, one in self._standing.items():
            known = before.get(source)
            if known is None or known.finding.level != one.finding.level:
                self._tell(one)
            self._follow(source, one.finding)
        for source, gone in before.items():
            if source not in self._standing:
                log.info("finding_gone", rule=gone.rule, trigger=gone.finding.trigger, symbol=gone.finding.symbol)
            # A pause that became a freeze goes too: the freeze stands by now.
            now = self._standing.get(source)
            if gone.finding.level == "pause" and (now is None or now.finding.level != "pause"):
                self._actions.resume(source)
        for source in [name for name in self._accepted if name not in self._standing]:
            del self._accepted[source]

    def _follow(self, source: str, finding: NodeFinding) -> None:
        if finding.level == "pause":
            self._actions.pause(source, finding)
        mode = _MODES.get(finding.level)
        if mode is None:
            return
        accepted = self._accepted.get(source)
        if accepted is not None and not _is_worse(finding, *accepted):
            return
        self._accepted.pop(source, None)
        self._actions.freeze(source, mode, finding)

    def _tell(self, judged: Judged) -> None:
        finding = judged.finding
        self._found.labels(rule=judged.rule, trigger=finding.trigger, level=finding.level).inc()
        say = log.warning if finding.level == "warning" else log.critical
        fields = dict(finite_or_text(_told(judged)))
        # `level` is the log's own word for how loud a line is.
        say("node_finding", node=self._node, finding_level=fields.pop("level"), **fields)

    def _snapshot(self, exposure: NodeExposure, routers: RoutersSeen) -> NodeSnapshot:
        return NodeSnapshot(
            node=self._node,
            now_ns=self._clock(),
            holdings=dict(exposure.holdings),  # a rule of a team's own must not reach what is reported
            gross_usd=exposure.gross_usd,
            net_usd=exposure.net_usd,
            pnl_usd=exposure.pnl_usd,
            working_orders=exposure.working_orders,
            working_notional_usd=exposure.working_notional_usd,
            edges_bps=exposure.edges_bps,
            routers_live=routers.live,
            routers_lost=routers.lost,
            report_ages_ms=routers.report_ages_ms,
        )


def _rank(judged: Judged) -> int:
    return LEVEL_RANK[judged.finding.level]


def _most_severe(judged: Iterable[Judged]) -> dict[str, Judged]:
    """Keep of each source the most severe finding."""
    kept: dict[str, Judged] = {}
    for one in judged:
        known = kept.get(one.source)
        if known is None or _rank(one) > _rank(known):
            kept[one.source] = one
    return kept


def _is_worse(finding: NodeFinding, accepted_rank: int, accepted_value: float) -> bool:
    """Tell whether a finding has become worse than what a person has accepted; what cannot be told has."""
    if finding.value is None or LEVEL_RANK[finding.level] > accepted_rank:
        return True
    return not finding.value <= accepted_value * (ACCEPTED_MARGIN if accepted_value > 0 else 1.0)


def _told(judged: Judged) -> dict[str, Any]:
    finding = judged.finding
    return {
        "rule": judged.rule,
        "trigger": finding.trigger,
        "level": finding.level,
        "symbol": finding.symbol,
        "value": finding.value,
        "limit": finding.limit,
        "reason": finding.reason[:REASON_REPORTED],
    }
