"""The node's own judgement: limits before an order, the account on every tick, the circuit breaker, a local freeze.

A module is read when one of its names is used first: a trading program starts with what it needs and no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Its module has the same name, and would stand in its place once anybody had read it.
from agents.risk.derisk_plan import derisk_plan

if TYPE_CHECKING:
    from agents.risk.account_limits import AccountLimits, load_account_limits
    from agents.risk.account_monitor import RiskMonitor
    from agents.risk.account_state import (
        AccountState,
        AccountTick,
        AlertLevel,
        EngagementRecord,
        Holding,
        PriceTick,
    )
    from agents.risk.anomaly import AnomalyDetector, AnomalyMonitor, AnomalyReading, AnomalyUnavailable
    from agents.risk.anomaly_settings import AnomalySettings
    from agents.risk.breaker_machine import BreakerMode
    from agents.risk.breaker_settings import BreakerSettings, ReasonClass
    from agents.risk.circuit_breaker import BreakerTransition, CircuitBreaker, ReleaseRefused
    from agents.risk.derisk_plan import DeriskOrder, DeriskPlan, Quote, inventory_rotation
    from agents.risk.events import FreezeEvent
    from agents.risk.exposure_book import ExposureBook
    from agents.risk.exposure_figures import (
        BookHolding,
        BookOrder,
        BucketExposure,
        ExposureFigures,
        GroupExposure,
        HeldPosition,
    )
    from agents.risk.limit_schedule import LimitSchedule, LimitScheduleSettings
    from agents.risk.limits import OrderRefused, RiskLimits
    from agents.risk.limits_audit import AuditUnwritable, LimitsAudit
    from agents.risk.live_limits import LiveLimits
    from agents.risk.node_rule import NodeFinding, NodeHolding, NodeRule, NodeSnapshot
    from agents.risk.option_exposure import OptionGreeks
    from agents.risk.order_simulation import OrderSimulation
    from agents.risk.policy_monitor import PolicyDecision, PolicyMonitor, decide_for
    from agents.risk.policy_settings import ExposureSettings, RiskRules
    from agents.risk.policy_table import (
        PolicyDecisionTable,
        PolicyMode,
        PolicyReason,
        Regime,
        Restriction,
        restriction_of,
    )
    from agents.risk.pretrade import PreTradeControls, PretradeOrder, PretradeRule
    from agents.risk.pretrade_settings import PreTradeSettings
    from agents.risk.process_limits import ProcessLimits
    from agents.risk.process_state import StateUnwritable
    from agents.risk.risk_limits_file import RiskLimitsFile, load_risk_limits
    from agents.risk.rule_loading import RuleNotUsable
    from agents.risk.runtime_monitor import RuntimeRiskMonitor, create_risk_monitor
    from agents.risk.settings_file import RiskFileError, load_risk_rules
    from agents.risk.trading_session import AlwaysOpen, CalendarError, SessionClock, load_schedule, regime_at
    from agents.risk.value_at_risk import (
        FiguresUnavailable,
        ReturnHistory,
        ValueAtRiskFigures,
        ValueAtRiskMonitor,
        historical_es_usd,
        historical_var_usd,
        parametric_es_usd,
        parametric_var_usd,
    )
    from agents.risk.value_at_risk_settings import ValueAtRiskSettings
    from agents.risk.warning_ladder import LimitWarning

_MODULES = {
    "account_limits": "AccountLimits load_account_limits",
    "account_monitor": "RiskMonitor",
    "account_state": "AccountState AccountTick AlertLevel EngagementRecord Holding PriceTick",
    "anomaly": "AnomalyDetector AnomalyMonitor AnomalyReading AnomalyUnavailable",
    "anomaly_settings": "AnomalySettings",
    "breaker_machine": "BreakerMode",
    "breaker_settings": "BreakerSettings ReasonClass",
    "circuit_breaker": "BreakerTransition CircuitBreaker ReleaseRefused",
    "derisk_plan": "DeriskOrder DeriskPlan Quote inventory_rotation",
    "events": "FreezeEvent",
    "exposure_book": "ExposureBook",
    "exposure_figures": "BookHolding BookOrder BucketExposure ExposureFigures GroupExposure HeldPosition",
    "limit_schedule": "LimitSchedule LimitScheduleSettings",
    "limits": "OrderRefused RiskLimits",
    "limits_audit": "AuditUnwritable LimitsAudit",
    "live_limits": "LiveLimits",
    "node_rule": "NodeFinding NodeHolding NodeRule NodeSnapshot",
    "option_exposure": "OptionGreeks",
    "order_simulation": "OrderSimulation",
    "policy_monitor": "PolicyDecision PolicyMonitor decide_for",
    "policy_settings": "ExposureSettings RiskRules",
    "policy_table": "PolicyDecisionTable PolicyMode PolicyReason Regime Restriction restriction_of",
    "pretrade": "PreTradeControls PretradeOrder PretradeRule",
    "pretrade_settings": "PreTradeSettings",
    "process_limits": "ProcessLimits",
    "process_state": "StateUnwritable",
    "risk_limits_file": "RiskLimitsFile load_risk_limits",
    "rule_loading": "RuleNotUsable",
    "runtime_monitor": "RuntimeRiskMonitor create_risk_monitor",
    "settings_file": "RiskFileError load_risk_rules",
    "trading_session": "AlwaysOpen CalendarError SessionClock load_schedule regime_at",
    "value_at_risk": "FiguresUnavailable ReturnHistory ValueAtRiskFigures ValueAtRiskMonitor historical_es_usd "
    "historical_var_usd parametric_es_usd parametric_var_usd",
    "value_at_risk_settings": "ValueAtRiskSettings",
    "warning_ladder": "LimitWarning",
}

_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Read the module of a name that is used for the first time."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "RuntimeRiskMonitor",
    "create_risk_monitor",
    "RiskLimits",
    "OrderRefused",
    "OrderSimulation",
    "LimitWarning",
    "LimitSchedule",
    "LimitScheduleSettings",
    "PreTradeControls",
    "PreTradeSettings",
    "PretradeOrder",
    "PretradeRule",
    "ProcessLimits",
    "RiskLimitsFile",
    "load_risk_limits",
    "LiveLimits",
    "LimitsAudit",
    "AuditUnwritable",
    "StateUnwritable",
    "RuleNotUsable",
    "NodeRule",
    "NodeSnapshot",
    "NodeHolding",
    "NodeFinding",
    "FreezeEvent",
    "RiskMonitor",
    "AccountLimits",
    "load_account_limits",
    "AccountState",
    "AlertLevel",
    "EngagementRecord",
    "PriceTick",
    "AccountTick",
    "Holding",
    "CircuitBreaker",
    "BreakerSettings",
    "BreakerMode",
    "BreakerTransition",
    "ReasonClass",
    "ReleaseRefused",
    "ExposureBook",
    "ExposureFigures",
    "BucketExposure",
    "GroupExposure",
    "BookHolding",
    "BookOrder",
    "HeldPosition",
    "OptionGreeks",
    "PolicyDecisionTable",
    "PolicyMode",
    "PolicyReason",
    "Regime",
    "Restriction",
    "restriction_of",
    "PolicyMonitor",
    "PolicyDecision",
    "decide_for",
    "derisk_plan",
    "DeriskPlan",
    "DeriskOrder",
    "Quote",
    "inventory_rotation",
    "SessionClock",
    "AlwaysOpen",
    "load_schedule",
    "regime_at",
    "CalendarError",
    "RiskRules",
    "ExposureSettings",
    "load_risk_rules",
    "RiskFileError",
    "ValueAtRiskMonitor",
    "ValueAtRiskFigures",
    "ValueAtRiskSettings",
    "ReturnHistory",
    "historical_var_usd",
    "historical_es_usd",
    "parametric_var_usd",
    "parametric_es_usd",
    "FiguresUnavailable",
    "AnomalyMonitor",
    "AnomalyDetector",
    "AnomalyReading",
    "AnomalySettings",
    "AnomalyUnavailable",
]
