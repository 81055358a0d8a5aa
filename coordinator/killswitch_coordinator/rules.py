"""The rules by which a coordinator freezes: pure functions of one view of the cluster.

The way out is designed with the way in. A rule whose freeze an operator has released does not fight with the operator:
the figure at the release counts as *accepted*, and the rule trips again only when it grows past it by
:data:`ACCEPTED_MARGIN`, or after it has come back below the hard level. A released drawdown starts a new peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from killswitch.core.exposure import ClusterExposure
from killswitch.core.flag import Flag
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.settings.config import CountRule, MoneyRule, RuleSettings

ACCEPTED_MARGIN = 0.05
"""How far past an accepted figure a rule trips again."""

RULE_METADATA = "rule"
"""Name in a freeze's metadata under which the rule's key stands."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One view of the cluster, as the rules see it.

    Attributes:
        exposure: what the cluster holds.
        lost_nodes: registered nodes without a live agent.
        report_age_ms: since when the report of each live node has not changed, timed by the coordinator itself.
        unreadable: nodes whose report cannot be read.
    """

    exposure: ClusterExposure
    lost_nodes: tuple[str, ...]
    report_age_ms: Mapping[str, float]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleState:
    """What the rules remember from one view to the next.

    Attributes:
        pnl_peak_usd: highest cluster P&L so far, the mark that the drawdown is measured from.
        tripped: freeze id by key of each rule whose freeze is in force.
        accepted: figure by key of each rule that an operator has released while it was over its level.
    """

    pnl_peak_usd: float = 0.0
    tripped: Mapping[str, str] = field(default_factory=dict)
    accepted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """One rule's figure beside its levels.

    Attributes:
        key: the rule, with the symbol where it has one.
        trigger: kind of cause, for the freeze.
        figure: the value, in ``unit``.
        warning: level of the warning, ``None`` for none.
        hard: level of the freeze, ``None`` for none.
        unit: ``USD`` or ``nodes``.
        scope: what a freeze covers.
        mode: how far it restricts.
        detail: further figures.
    """

    key: str
    trigger: str
    figure: float
    warning: float | None
    hard: float | None
    unit: str
    scope: Scope
    mode: Mode
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def over_hard(self) -> bool:
        """At the hard level or above: at the level already counts."""
        return self.hard is not None and self.figure >= self.hard

    @property
    def over_warning(self) -> bool:
        """At the warning level or above."""
        return self.over_hard or (self.warning is not None and self.figure >= self.warning)

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        level = self.hard if self.over_hard else self.warning
        words = self.trigger.replace("_", " ")
        return f"{words} {self.figure:,.2f} {self.unit} reached {level:,.2f} {self.unit} ({self.key})"


def recall(flag: Flag, peak_usd: float, accepted: Mapping[str, float]) -> RuleState:
    """Return the state of a leader that starts: rules whose freeze is in force have tripped already."""
    tripped = {
        str(freeze.metadata[RULE_METADATA]): freeze.id for freeze in flag.freezes if RULE_METADATA in freeze.metadata
    }
    return RuleState(peak_usd, tripped, dict(accepted))


def drawdown_usd(state: RuleState, exposure: ClusterExposure) -> float:
    """Fall of the cluster's P&L from its peak, at least 0."""
    return max(0.0, max(state.pnl_peak_usd, exposure.pnl_usd) - exposure.pnl_usd)


def read_rules(rules: RuleSettings, snapshot: Snapshot, state: RuleState) -> list[Reading]:
    """Return the reading of every rule that is set."""
    exposure = snapshot.exposure
    detail = {
        "gross_usd": exposure.gross_usd,
        "net_usd": exposure.net_usd,
        "pnl_usd": exposure.pnl_usd,
        "counted_lost_nodes": list(exposure.counted_lost),
    }
    readings = [
        _money(rules.gross_notional, "gross_notional", exposure.gross_usd, detail),
        _money(rules.net_notional, "net_notional", abs(exposure.net_usd), detail),
        _money(rules.drawdown, "drawdown", drawdown_usd(state, exposure), {**detail, "peak_usd": state.pnl_peak_usd}),
        *(
            replace(
                _money(rules.symbol_notional, "symbol_notional", abs(net_usd), detail),
                key=f"symbol_notional:{symbol}",
                scope=Scope.of_symbol(symbol),
            )
            for symbol, net_usd in exposure.net_by_symbol.items()
        ),
        _count(rules.lost_nodes, "lost_nodes", snapshot.lost_nodes),
        _stale(rules, snapshot),
    ]
    if snapshot.unreadable:
        detail = {"nodes": list(snapshot.unreadable)}
        figure = float(len(snapshot.unreadable))
        readings.append(
            Reading("report_unreadable", "report_unreadable", figure, None, 1.0, "nodes", GLOBAL, Mode.FROZEN, detail)
        )
    return [reading for reading in readings if reading.warning is not None or reading.hard is not None]


def observe(state: RuleState, snapshot: Snapshot, readings: Iterable[Reading], flag: Flag) -> RuleState:
    """Return the state after one view: peaks grow, released rules are accepted, recovered ones are armed again."""
    figures = {reading.key: reading for reading in readings}
    in_force = flag.freeze_ids()
    released = [key for key, freeze_id in state.tripped.items() if flag.standing_for(freeze_id) not in in_force]
    peak_usd = max(state.pnl_peak_usd, snapshot.exposure.pnl_usd)
    if "drawdown" in released:
        peak_usd = snapshot.exposure.pnl_usd
    accepted = {key: figure for key, figure in state.accepted.items() if key in figures and figures[key].over_hard}
    for key in released:
        if key != "drawdown" and key in figures and figures[key].over_hard:
            accepted[key] = figures[key].figure
    tripped = {key: freeze_id for key, freeze_id in state.tripped.items() if key not in released}
    return RuleState(peak_usd, tripped, accepted)


def to_freeze(readings: Iterable[Reading], state: RuleState) -> list[Reading]:
    """Return the readings that must freeze now."""
    return [
        reading
        for reading in readings
        if reading.over_hard
        and reading.key not in state.tripped
        and reading.figure > state.accepted.get(reading.key, -1.0) * (1 + ACCEPTED_MARGIN)
    ]


def note_tripped(state: RuleState, key: str, freeze_id: str) -> RuleState:
    """Return the state with one more rule's freeze in force."""
    accepted = {name: figure for name, figure in state.accepted.items() if name != key}
    return replace(state, tripped={**state.tripped, key: freeze_id}, accepted=accepted)


def _money(rule: MoneyRule, trigger: str, figure: float, detail: Mapping[str, Any]) -> Reading:
    mode = Mode.parse(rule.mode)
    return Reading(trigger, trigger, figure, rule.warning_usd, rule.hard_usd, "USD", GLOBAL, mode, detail)


def _count(rule: CountRule, trigger: str, nodes: tuple[str, ...]) -> Reading:
    mode = Mode.parse(rule.mode)
    detail = {"nodes": list(nodes)}
    return Reading(
        trigger, trigger, float(len(nodes)), _float(rule.warning_nodes), _float(rule.hard_nodes), "nodes", GLOBAL, mode,
        detail,
    )  # fmt: skip


def _stale(rules: RuleSettings, snapshot: Snapshot) -> Reading:
    """Stale reports are counted in nodes, so that an accepted node does not trip again by growing older."""
    rule = rules.stale_reports
    hard = [node for node, age_ms in snapshot.report_age_ms.items() if rule.hard_ms and age_ms >= rule.hard_ms]
    warn = [node for node, age_ms in snapshot.report_age_ms.items() if rule.warning_ms and age_ms >= rule.warning_ms]
    detail = {"nodes": sorted(hard or warn), "oldest_ms": max(snapshot.report_age_ms.values(), default=0.0)}
    figure = float(len(hard)) if hard else float(bool(warn)) / 2
    return Reading(
        "stale_reports", "stale_reports", figure, 0.5 if rule.warning_ms else None, 1.0 if rule.hard_ms else None,
        "nodes", GLOBAL, Mode.parse(rule.mode), detail,
    )  # fmt: skip


def _float(number: int | None) -> float | None:
    return None if number is None else float(number)
