"""The limits of a node: read at the start, followed while the agent runs, and turned into the rules that judge it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock
from killswitch.core.canonical import canonical_json, sha256_hex
from killswitch.risk.exposure.policy_settings import RiskRules, load_risk_rules
from killswitch.risk.exposure.trading_session import session_clock
from killswitch.risk.node_rule import NodeRule
from killswitch.risk.process.limits_audit import LimitsAudit
from killswitch.risk.process.risk_limits_file import (
    JudgementSettings,
    OrderLimitSettings,
    RiskLimitsFile,
    load_risk_limits,
)
from killswitch.risk.process.rule_loading import RuleNotUsable, load_node_rules
from killswitch.risk.process.settings_follower import SettingsFollower
from killswitch.settings.config import AgentSettings
from killswitch.settings.settings_file import RiskFileError
from killswitch_agent.rules.account_rule import NodeAccountRule
from killswitch_agent.rules.inputs_rule import NodeInputsRule
from killswitch_agent.rules.limits_rule import NodeLimitsRule
from killswitch_agent.rules.policy_rule import NodePolicyRule
from killswitch_agent.rules.value_at_risk_rule import NodeValueAtRiskRule

AUDIT_FILE: Final = "limits-audit-{node}.jsonl"
"""Agents that share a ``state_dir`` have a file each: a chain has one writer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimitsFiles:
    """What a node is judged by, as it was read at the start.

    Attributes:
        limits: everything of ``risk_limits.yaml``.
        limits_path: the file, ``None`` where the limits stand in the settings of the agent.
        policy: everything of ``risk_rules.yaml``; ``None`` asks no policy.
        policy_path: the file.
        own_rules: rules of the team's own, made.
    """

    limits: RiskLimitsFile
    limits_path: Path | None = None
    policy: RiskRules | None = None
    policy_path: Path | None = None
    own_rules: tuple[NodeRule, ...] = ()

    def content_hash(self) -> str:
        """Return 16 hexadecimal digits that tell what this node is judged by from anything else."""
        return _hash_of(self.limits, self.policy)


def load_node_limits(settings: AgentSettings) -> NodeLimitsFiles:
    """Read the files that the settings of an agent name, and load the rules of the team's own.

    Raises:
        RiskFileError: with one sentence for each fault.
        RuleNotUsable: a rule cannot be imported or made: the agent must not start without it.
    """
    if settings.risk_limits is None:
        orders = OrderLimitSettings(**settings.limits.model_dump())
        return NodeLimitsFiles(limits=RiskLimitsFile(orders=orders))
    limits_path = Path(settings.risk_limits)
    limits = load_risk_limits(limits_path)
    policy_path = None if settings.risk_rules is None else Path(settings.risk_rules)
    policy = None if policy_path is None else load_risk_rules(policy_path)
    if policy is not None and limits.initial_balance_usd is None:
        fault = f"initial_balance_usd: is needed, since {policy_path} limits exposure in per cent of equity"
        raise RiskFileError([f"{limits_path}: {fault}"])
    return NodeLimitsFiles(
        limits=limits,
        limits_path=limits_path,
        policy=policy,
        policy_path=policy_path,
        own_rules=tuple(load_node_rules(limits.rules.node)),
    )


class NodeRules:
    """The limits in force on a node, and the rules that are made of them.

    Args:
        files: what was read.
        node: name of the node.
        state_dir: where changes are written down.
        clock: deadline clock.
        wall_clock: the time for people.
        registry: where the rules have their metrics.

    Raises:
        AuditUnwritable: the limits cannot be accounted for.
        CalendarError, RuleNotUsable: a section needs what is not installed.

    Attributes:
        rules: in the order in which they are asked.
        on_change: told after limits or policy have changed.
    """

    def __init__(
        self,
        files: NodeLimitsFiles,
        node: str,
        *,
        state_dir: Path,
        clock: NowNs,
        wall_clock: WallClock,
        registry: CollectorRegistry,
    ) -> None:
        self.on_change: Callable[[JudgementSettings], None] = lambda _: None
        self._limits, self._policy = files.limits, files.policy
        self.content_hash = files.content_hash()
        self._inputs_rule = NodeInputsRule(files.limits.inputs)
        self._limits_rule = NodeLimitsRule(files.limits.orders, registry=registry)
        self._account_rule: NodeAccountRule | None = None
        self._policy_rule: NodePolicyRule | None = None
        if files.limits.initial_balance_usd is not None:
            self._account_rule = NodeAccountRule(
                files.limits,
                initial_balance_usd=files.limits.initial_balance_usd,
                node=node,
                clock=clock,
                wall_clock=wall_clock,
                registry=registry,
            )
        if files.policy is not None and self._account_rule is not None:
            account = self._account_rule.monitor
            session = session_clock(files.policy, wall_ns=time.time_ns, clock=clock)
            self._policy_rule = NodePolicyRule(
                files.policy,
                moment=session.moment,
                equity_usd=lambda: account.state().equity,
                accept_clock=session.accept_wall_clock,
            )
        figures = figure_rules(files.limits, clock=clock, registry=registry)
        self._value_at_risk_rule = next((rule for rule in figures if isinstance(rule, NodeValueAtRiskRule)), None)
        # The account first: the policy asks it for the equity of the same moment.
        own: tuple[NodeRule | None, ...] = (self._inputs_rule, self._limits_rule, self._account_rule, self._policy_rule)
        self.rules: tuple[NodeRule, ...] = (*(rule for rule in own if rule is not None), *figures, *files.own_rules)
        self._live = self._followed(files, node, state_dir, wall_clock, registry)

    def _followed(
        self, files: NodeLimitsFiles, node: str, state_dir: Path, wall_clock: WallClock, registry: CollectorRegistry
    ) -> list[SettingsFollower[RiskLimitsFile] | SettingsFollower[RiskRules]]:
        if files.limits_path is None:
            return []
        audit = LimitsAudit(state_dir / AUDIT_FILE.format(node=node))
        limits = SettingsFollower(
            files.limits_path,
            files.limits,
            apply=self._take_limits,
            audit=audit,
            wall_clock=wall_clock,
            registry=registry,
        )
        limits.note_start("the start of the agent")
        followed: list[SettingsFollower[RiskLimitsFile] | SettingsFollower[RiskRules]] = [limits]
        if files.policy_path is not None and files.policy is not None:
            policy = SettingsFollower(
                files.policy_path,
                files.policy,
                apply=self._take_policy,
                audit=audit,
                wall_clock=wall_clock,
                registry=registry,
            )
            policy.note_start("the start of the agent")
            followed.append(policy)
        return followed

    @property
    def judge_every_s(self) -> float:
        """The node is judged at least this often."""
        return self._limits.judgement.every_ms / 1000

    def utilization_pct(self, gross_usd: float) -> float | None:
        """Use of the node's total limit in per cent, ``None`` when no total limit is set."""
        limit_usd = self._limits.orders.max_total_notional_usd
        return None if limit_usd is None else 100.0 * gross_usd / limit_usd

    def faults(self) -> tuple[str, ...]:
        """What is wrong with the files as they stand now; the limits in force are those from before."""
        return tuple(fault for live in self._live for fault in live.faults)

    def look_soon(self) -> None:
        """Have the files looked at now."""
        for live in self._live:
            live.look_soon()

    def follow(self, stopping: threading.Event) -> None:
        """Look at the files until told to stop; the work of one thread."""
        while not stopping.is_set():
            if not self._live:
                stopping.wait()
                return
            self._live[0].wait()
            for live in self._live:
                if not stopping.is_set():
                    live.look_when_due()

    def _take_limits(self, limits: RiskLimitsFile) -> None:
        # The account first: it alone may refuse, and then nothing has changed. The figures take all that a file that is
        # sound for this process can ask of them.
        if self._account_rule is not None:
            self._account_rule.set_limits(limits)
        if self._value_at_risk_rule is not None and limits.value_at_risk is not None:
            self._value_at_risk_rule.set_settings(limits.value_at_risk)
        self._limits_rule.set_limits(limits.orders)
        self._inputs_rule.set_settings(limits.inputs)
        self._limits = limits
        self.content_hash = _hash_of(limits, self._policy)
        self.on_change(limits.judgement)

    def _take_policy(self, policy: RiskRules) -> None:
        if self._policy_rule is not None:
            self._policy_rule.set_rules(policy)
        self._policy = policy
        self.content_hash = _hash_of(self._limits, policy)
        self.on_change(self._limits.judgement)


def _hash_of(limits: RiskLimitsFile, policy: RiskRules | None) -> str:
    body = {
        "limits": limits.model_dump(mode="json"),
        "policy": None if policy is None else policy.model_dump(mode="json"),
    }
    return sha256_hex(canonical_json(body))[:16]


def figure_rules(limits: RiskLimitsFile, *, clock: NowNs, registry: CollectorRegistry) -> list[NodeRule]:
    """Make the rules that need an extra, where the file has their section.

    Raises:
        RuleNotUsable: the extra is not installed; the message says how it is.
    """
    rules: list[NodeRule] = []
    try:
        if limits.value_at_risk is not None:
            rules.append(NodeValueAtRiskRule(limits.value_at_risk, clock=clock, registry=registry))
        if limits.anomaly is not None:
            from killswitch_agent.rules.anomaly_rule import NodeAnomalyRule  # noqa: PLC0415 - needs an extra

            rules.append(NodeAnomalyRule(limits.anomaly, registry=registry))
    except ImportError as error:
        raise RuleNotUsable(str(error)) from error
    return rules
