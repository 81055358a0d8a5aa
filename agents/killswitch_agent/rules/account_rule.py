"""The node's account as a rule: drawdown and leverage through the account monitor and its circuit breaker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock
from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_rule import findings
from killswitch.risk.account.account_state import AccountState, AccountTick, AlertLevel, Holding
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_settings import ReasonClass
from killswitch.risk.breaker.circuit_breaker import ReleaseRefused
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.node_rule import NodeFinding, NodeLevel, NodeSnapshot
from killswitch.safe_log import say

_CLASSES = {"drawdown": ReasonClass.DRAWDOWN, "leverage": ReasonClass.POSITION}


class NodeAccountRule:
    """Holds the equity that the node's routers have made of their balance against the account's limits.

    Routers tell one figure for profit and loss, realised and not. It counts as closed, and what is held as entered at
    its mark: equity, exposure, drawdown and leverage are the same, however the two are split.

    A hard level freezes once the circuit breaker has latched it, and pauses the node until then. A router that starts
    again begins its profit and loss anew; when that is a loss that goes away, the highest equity of the day may be
    wrong until the day ends.

    Args:
        limits: levels, day, breaker.
        initial_balance_usd: equity that profit and loss count from.
        node: tells the account's metrics from others.
        clock: deadline clock.
        wall_clock: the time that states carry.
        registry: where the account's metrics are.
    """

    name = "account"

    def __init__(
        self,
        limits: AccountLimits,
        *,
        initial_balance_usd: float,
        node: str,
        clock: NowNs,
        wall_clock: WallClock,
        registry: CollectorRegistry,
    ) -> None:
        self.monitor = RiskMonitor(
            None,
            None,
            initial_balance_usd,
            limits=_without_ages(limits),
            account=node,
            clock=clock,
            wall_clock=wall_clock,
            registry=registry,
        )

    def set_limits(self, limits: AccountLimits) -> None:
        """Hold the account against other limits from now on.

        Raises:
            ValueError: as :meth:`RiskMonitor.set_limits`.
        """
        self.monitor.set_limits(_without_ages(limits))

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return drawdown and leverage where they have reached a level, and an account that cannot be told."""
        holdings = {
            symbol: Holding(held.quantity, held.mark_price_usd, held.mark_price_usd)
            for symbol, held in snapshot.holdings.items()
            if held.quantity
        }
        state = self.monitor.monitor_tick(AccountTick(snapshot.pnl_usd, holdings))
        found = findings(state.equity, state.equity + state.drawdown, state.total_exposure, self.monitor.limits)
        said = [
            NodeFinding(
                trigger=one.measure,
                level="warning" if one.level is AlertLevel.WARNING else self._level_of(_CLASSES[one.measure]),
                reason=one.sentence,
                value=one.value,
                limit=one.limit,
                figures=_figures(state),
            )
            for one in found
        ]
        if state.alert_level is AlertLevel.CRITICAL and all(one.level == "warning" for one in said):
            reason = self._causes() or "the account of this node cannot be told from what its routers say"
            said.append(NodeFinding(trigger=MONITOR_ERROR, level=self._level_of(ReasonClass.DATA), reason=reason))
        return said

    def released(self) -> None:
        """A person has released this node's freezes: the breaker lets go too."""
        breaker = self.monitor.circuit_breaker
        if not breaker.restricted:
            return
        try:
            breaker.release("release of the cluster", "the freeze was released", engagement=breaker.engagement)
        except ReleaseRefused as error:
            say("error", "the node's circuit breaker was not released", error=str(error))

    def summary(self) -> dict[str, Any]:
        """Return the account for reports."""
        state = self.monitor.state()
        return {
            "alert_level": state.alert_level.value,
            "equity_usd": state.equity,
            "drawdown_pct": state.drawdown_pct,
            "leverage": state.leverage,
            "breaker": self.monitor.circuit_breaker.snapshot().mode.value,
        }

    def _level_of(self, kind: ReasonClass) -> NodeLevel:
        """A breach freezes when it is latched, and pauses while it waits for confirmation."""
        cause = self.monitor.circuit_breaker.snapshot().cause(kind)
        return "pause" if cause is not None and not cause.latched else "freeze"

    def _causes(self) -> str:
        causes = self.monitor.circuit_breaker.snapshot().causes
        return "; ".join(cause.reason for cause in causes)


def _without_ages(limits: AccountLimits) -> AccountLimits:
    """The marks come with every report; that no report comes is for ``inputs.router_silent_after_ms`` to tell."""
    return limits.model_copy(update={"mark_max_age_ms": None})


def _figures(state: AccountState) -> dict[str, Any]:
    return {
        "equity_usd": state.equity,
        "exposure_usd": state.total_exposure,
        "drawdown_pct": state.drawdown_pct,
        "leverage": state.leverage,
    }
