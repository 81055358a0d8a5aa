"""The node's own judgement: limits before an order, the account on every tick, the circuit breaker, a local freeze.

A module is read when one of its names is used first: a trading program starts with what it needs and no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Its module has the same name, and would stand in its place once anybody had read it.
from killswitch.risk.exposure.derisk_plan import derisk_plan

if TYPE_CHECKING:
    from killswitch.risk.account.account_monitor import RiskMonitor
    from killswitch.risk.account.account_state import (
        AccountState,
        AccountTick,
        AlertLevel,
        EngagementRecord,
        Holding,
        PriceTick,
    )
    from killswitch.risk.account_limits import AccountLimits, load_account_limits
    from killswitch.risk.breaker.breaker_machine import BreakerMode
    from killswitch.risk.breaker.breaker_settings import BreakerSettings, ReasonClass
    from killswitch.risk.breaker.circuit_breaker import BreakerTransition, CircuitBreaker, ReleaseRefused
    from killswitch.risk.events import FreezeEvent
    from killswitch.risk.exposure.derisk_plan import DeriskOrder, DeriskPlan, Quote, inventory_rotation
    from killswitch.risk.exposure.exposure_book import ExposureBook
    from killswitch.risk.exposure.exposure_figures import (
        BookHolding,
        BookOrder,
        BucketExposure,
        ExposureFigures,
        GroupExposure,
        HeldPosition,
    )
    from killswitch.risk.exposure.exposure_unit import OptionGreeks
    from killswitch.risk.exposure.policy_monitor import PolicyDecision, PolicyMonitor, decide_for
    from killswitch.risk.exposure.policy_settings import ExposureSettings, RiskRules, load_risk_rules
    from killswitch.risk.exposure.policy_table import (
        PolicyDecisionTable,
        PolicyMode,
        PolicyReason,
        Regime,
        Restriction,
        restriction_of,
    )
    from killswitch.risk.exposure.trading_session import (
        AlwaysOpen,
        CalendarError,
        SessionClock,
        load_schedule,
        regime_at,
    )
    from killswitch.risk.figures.anomaly import AnomalyDetector, AnomalyMonitor, AnomalyReading, AnomalyUnavailable
    from killswitch.risk.figures.anomaly_settings import AnomalySettings
    from killswitch.risk.figures.value_at_risk import (
        FiguresUnavailable,
        ReturnHistory,
        ValueAtRiskFigures,
        ValueAtRiskMonitor,
        historical_es_usd,
        historical_var_usd,
        parametric_es_usd,
        parametric_var_usd,
    )
    from killswitch.risk.figures.value_at_risk_settings import ValueAtRiskSettings
    from killswitch.risk.limits.create_monitor import create_risk_monitor
    from killswitch.risk.limits.limit_check import OrderSimulation
    from killswitch.risk.limits.limit_schedule import LimitSchedule, LimitScheduleSettings
    from killswitch.risk.limits.limits import RiskLimits
    from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
    from killswitch.risk.limits.warning_ladder import LimitWarning
    from killswitch.risk.node_rule import NodeFinding, NodeHolding, NodeRule, NodeSnapshot
    from killswitch.risk.pretrade import PreTradeControls, PretradeOrder, PretradeRule
    from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
    from killswitch.risk.process.limits_audit import AuditUnwritable, LimitsAudit
    from killswitch.risk.process.process_limits import ProcessLimits
    from killswitch.risk.process.process_state import StateUnwritable
    from killswitch.risk.process.risk_limits_file import RiskLimitsFile, load_risk_limits
    from killswitch.risk.process.rule_loading import RuleNotUsable
    from killswitch.risk.process.settings_follower import LiveLimits, SettingsFollower
    from killswitch.risk.refusal import OrderRefused
    from killswitch.settings.settings_file import RiskFileError

_MODULES = {
    "account_limits": "AccountLimits load_account_limits",
    "account.account_monitor": "RiskMonitor",
    "account.account_state": "AccountState AccountTick AlertLevel EngagementRecord Holding PriceTick",
    "figures.anomaly": "AnomalyDetector AnomalyMonitor AnomalyReading AnomalyUnavailable",
    "figures.anomaly_settings": "AnomalySettings",
    "breaker.breaker_machine": "BreakerMode",
    "breaker.breaker_settings": "BreakerSettings ReasonClass",
    "breaker.circuit_breaker": "BreakerTransition CircuitBreaker ReleaseRefused",
    "exposure.derisk_plan": "DeriskOrder DeriskPlan Quote inventory_rotation",
    "events": "FreezeEvent",
    "exposure.exposure_book": "ExposureBook",
    "exposure.exposure_figures": "BookHolding BookOrder BucketExposure ExposureFigures GroupExposure HeldPosition",
    "limits.limit_schedule": "LimitSchedule LimitScheduleSettings",
    "limits.limits": "RiskLimits",
    "process.limits_audit": "AuditUnwritable LimitsAudit",
    "process.settings_follower": "LiveLimits SettingsFollower",
    "node_rule": "NodeFinding NodeHolding NodeRule NodeSnapshot",
    "exposure.exposure_unit": "OptionGreeks",
    "limits.limit_check": "OrderSimulation",
    "exposure.policy_monitor": "PolicyDecision PolicyMonitor decide_for",
    "exposure.policy_settings": "ExposureSettings RiskRules load_risk_rules",
    "exposure.policy_table": "PolicyDecisionTable PolicyMode PolicyReason Regime Restriction restriction_of",
    "pretrade": "PreTradeControls PretradeOrder PretradeRule",
    "pretrade.pretrade_settings": "PreTradeSettings",
    "process.process_limits": "ProcessLimits",
    "process.process_state": "StateUnwritable",
    "process.risk_limits_file": "RiskLimitsFile load_risk_limits",
    "process.rule_loading": "RuleNotUsable",
    "limits.create_monitor": "create_risk_monitor",
    "limits.runtime_monitor": "RuntimeRiskMonitor",
    "exposure.trading_session": "AlwaysOpen CalendarError SessionClock load_schedule regime_at",
    "figures.value_at_risk": "FiguresUnavailable ReturnHistory ValueAtRiskFigures ValueAtRiskMonitor historical_es_usd "
    "historical_var_usd parametric_es_usd parametric_var_usd",
    "figures.value_at_risk_settings": "ValueAtRiskSettings",
    "limits.warning_ladder": "LimitWarning",
    "refusal": "OrderRefused",
}


_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}
_HOME["RiskFileError"] = "killswitch.settings.settings_file"


def __getattr__(name: str) -> Any:
    """Read the module of a name that is used for the first time."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
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
    "SettingsFollower",
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
