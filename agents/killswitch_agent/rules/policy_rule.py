"""The policy decision table asked about the node: derisks as freezes that let pass what reduces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from killswitch.core.modes import Mode
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode, restriction_of
from killswitch.risk.exposure.trading_session import SessionMoment, regime_at
from killswitch.risk.node_rule import NodeFinding, NodeLevel, NodeSnapshot

_NAN = float("nan")
_LEVELS: dict[Mode, NodeLevel] = {Mode.REDUCE_ONLY: "reduce_only", Mode.FROZEN: "freeze"}


class NodePolicyRule:
    """What the table says of the node's exposure in this part of the trading day.

    Routers tell what works as one figure of money, without symbols. So the potential exposure is all of it on top of
    what is held, in the whole and in each bucket: never less than it can be.

    ``THROTTLE_NEW_ORDERS`` is a warning here: it refuses single orders, which a trading process does by itself with a
    :class:`PolicyMonitor`. A derisk is a freeze in which only what reduces passes, figures
    that are not known are a freeze. Such a freeze stands until a person releases it, also when the next morning's
    regime would let more pass.

    Args:
        rules: table, buckets, session.
        moment: where in the trading day now lies.
        equity_usd: equity of the node now.
        accept_clock: called when a person has released this rule's freeze: they have looked at the clock too.
    """

    name = "policy"

    def __init__(
        self,
        rules: RiskRules,
        *,
        moment: Callable[[], SessionMoment],
        equity_usd: Callable[[], float],
        accept_clock: Callable[[str], None],
    ) -> None:
        self._moment = moment
        self._equity_usd = equity_usd
        self._accept_clock = accept_clock
        self._mode = PolicyMode.NORMAL
        self.set_rules(rules)

    def set_rules(self, rules: RiskRules) -> None:
        """Ask another table from now on. The calendar stays: it is read when the agent starts."""
        self._rules = rules
        self._table = PolicyDecisionTable(rules)
        self._long_term = frozenset(rules.exposure.long_term_symbols)

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return one finding unless the mode is NORMAL."""
        moment = self._moment()
        regime = regime_at(moment, self._rules.regimes)
        equity_usd = self._equity_usd()
        long_term_usd = math.fsum(
            abs(held.value_usd) for symbol, held in snapshot.holdings.items() if symbol in self._long_term
        )
        market_making_usd = max(0.0, snapshot.gross_usd - long_term_usd)  # a rounding below 0 is no unknown figure

        def percent(usd: float) -> float:
            return 100.0 * usd / equity_usd if equity_usd > 0 else _NAN

        working_usd = snapshot.working_notional_usd
        mode, reason = self._table.decide(
            regime,
            percent(snapshot.gross_usd),
            percent(snapshot.gross_usd + working_usd),
            percent(long_term_usd),
            percent(long_term_usd + (working_usd if self._long_term else 0.0)),
            percent(market_making_usd),
            percent(market_making_usd + working_usd),
            moment.minutes_to_close,
        )
        self._mode = mode
        if mode is PolicyMode.NORMAL:
            return ()
        restriction = restriction_of(mode, reason)
        sentence = reason.sentence if moment.known else f"{reason.sentence} ({moment.sentence})"
        value = reason.value if isinstance(reason.value, float) and math.isfinite(reason.value) else None
        return (
            NodeFinding(
                trigger="exposure_policy",
                level=_LEVELS.get(restriction.mode, "warning"),
                reason=f"{mode.name}: {sentence}",
                value=value,
                limit=reason.limit,
                figures={"policy_mode": mode.name, "regime": regime.name, "kind": reason.kind},
            ),
        )

    def released(self) -> None:
        """A person has released this node's freezes, and has seen which time the node believes it is."""
        self._accept_clock("release of the cluster")

    def summary(self) -> dict[str, Any]:
        """Return the mode for reports."""
        return {"policy_mode": self._mode.name}
