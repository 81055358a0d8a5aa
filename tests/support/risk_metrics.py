"""The names of all metrics that a node and a trading process show when every monitor of theirs is on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from killswitch_agent.rules.node_monitor import NodeMonitor
from killswitch_agent.rules.node_rules import NodeRules, load_node_limits
from prometheus_client import CollectorRegistry

from killswitch.clock import now_ns, wall_now
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyMonitor
from killswitch.risk.exposure.policy_table import PolicyDecisionTable
from killswitch.risk.exposure.trading_session import AlwaysOpen
from killswitch.risk.process.process_limits import ProcessLimits
from killswitch.risk.process.risk_limits_file import RiskLimitsFile
from killswitch.settings.config import AgentSettings

LIMITS: dict[str, Any] = {
    "initial_balance_usd": 100_000.0,
    "value_at_risk": {"hard_usd": 5_000.0},
    "anomaly": {"action": "advise"},
}


class NoActions:
    """An agent that does nothing about a finding."""

    def freeze(self, *_: Any) -> None:
        """Do nothing."""

    def pause(self, *_: Any) -> None:
        """Do nothing."""

    def resume(self, *_: Any) -> None:
        """Do nothing."""


def metric_names(folder: Path) -> set[str]:
    """Make every monitor in a fresh registry, with its files in a folder, and return the names that it shows."""
    limits, rules = folder / "metrics_limits.yaml", folder / "metrics_rules.yaml"
    limits.write_text(yaml.safe_dump(LIMITS))
    rules.write_text(yaml.safe_dump({"session": {"calendar": "24/7"}}))
    registry = CollectorRegistry()
    files = load_node_limits(AgentSettings(risk_limits=str(limits), risk_rules=str(rules)))
    running = NodeRules(files, "n1", state_dir=folder / "state", clock=now_ns, wall_clock=wall_now, registry=registry)
    node = NodeMonitor(
        running.rules, node="n1", settings=files.limits.judgement, actions=NoActions(), clock=now_ns, registry=registry
    )
    process = ProcessLimits(RiskLimitsFile(), registry=registry)
    policy = PolicyMonitor(ExposureBook(), PolicyDecisionTable(), moment=lambda: AlwaysOpen().at(0), registry=registry)
    # They are named so that they live until the registry has been read: it shows only what is in use.
    assert all((node, process, policy))
    return {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
