"""Pre-trade limits of one process, and its local freeze."""

from agents.risk.events import FreezeEvent
from agents.risk.limits import OrderRefused, RiskLimits
from agents.risk.runtime_monitor import RuntimeRiskMonitor, create_risk_monitor

__all__ = ["RuntimeRiskMonitor", "create_risk_monitor", "RiskLimits", "OrderRefused", "FreezeEvent"]
