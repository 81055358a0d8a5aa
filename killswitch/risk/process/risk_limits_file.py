"""``config/risk_limits.yaml``: every limit of a node and of its trading processes in one file.

The account's settings stand at the top level under the names that its users know; everything else has a
section of its own. A section that is absent is off. One file serves the agent (account, figures, rules of the node)
and every trading process (orders, pre-trade controls, rules of orders): whoever reads it takes its part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from killswitch.core.canonical import canonical_json, sha256_hex
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.figures.anomaly_settings import AnomalySettings
from killswitch.risk.figures.value_at_risk_settings import ValueAtRiskSettings
from killswitch.risk.limits.limit_schedule import LimitScheduleSettings
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.working_orders import MAX_WORKING_ORDERS
from killswitch.risk.node_rule import NodeLevel
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.process.rule_loading import RuleSettings
from killswitch.settings.section import (
    CountToMillion,
    LaterWord,
    Lower,
    MsOfDay,
    NewStart,
    NodeLimits,
    Section,
    Usd,
    settings_schema,
)
from killswitch.settings.settings_file import read_settings_file

NO_LIMIT_USD: Final = 1e15
"""Stands for a limit that is not set; beyond what anybody holds, and still exact as a float."""

ORDER_OTHER_NAMES: Final[Mapping[str, str]] = {
    "max_inventory_usd": "max_inventory_usd_per_symbol",
    "max_total_notional": "max_total_notional_usd",
}
"""Names that the limits had in an earlier version -> the name that they have here."""


class OrderLimitSettings(NodeLimits):
    """The limits of a RuntimeRiskMonitor: of one trading process, and of the node's own. An absent one is off.

    The order that would break one of the first two is refused.
    """

    model_config = ConfigDict(strict=True)
    other_names: ClassVar[Mapping[str, str]] = ORDER_OTHER_NAMES

    max_working_orders: NewStart[CountToMillion] = Field(
        MAX_WORKING_ORDERS, description="Count. Most orders that are followed at once; one more is refused."
    )
    schedule: LimitScheduleSettings | None = Field(
        None, description="Limits by symbol, by time of day and by volatility; they tighten the two above."
    )

    def to_risk_limits(self) -> RiskLimits:
        """Return the three limits, an absent one as a number that nobody reaches."""
        return RiskLimits(
            max_inventory_usd=self.max_inventory_usd_per_symbol or NO_LIMIT_USD,
            max_total_notional=self.max_total_notional_usd or NO_LIMIT_USD,
            edge_freeze_threshold_bps=(
                -NO_LIMIT_USD if self.edge_freeze_threshold_bps is None else self.edge_freeze_threshold_bps
            ),
        )


class NodeInputsSettings(Section):
    """What makes the reports of a node's routers unfit to judge by, and what that does."""

    router_silent_after_ms: Lower[MsOfDay | None] = Field(
        None,
        description="Milliseconds since a connected router has reported; absent: not asked, for routers that report "
        "when something changes and are quiet otherwise.",
    )
    silent: LaterWord[NodeLevel] = Field(
        "freeze", description="warning, pause, reduce_only or freeze. What a router does that has fallen silent."
    )
    mark_frozen_after_ms: Lower[MsOfDay | None] = Field(
        None, description="Milliseconds that the mark of a symbol that is held has not moved; absent: not asked."
    )
    frozen: LaterWord[NodeLevel] = Field(
        "pause", description="warning, pause, reduce_only or freeze. What a mark does that does not move."
    )


class JudgementSettings(Section):
    """How the agent has its node judged."""

    every_ms: Lower[Annotated[int, Field(strict=True, ge=10, le=60_000)]] = Field(
        1_000, description="Milliseconds. The node is judged at every report of a router, and at least this often."
    )
    budget_ms: Lower[Annotated[int, Field(strict=True, ge=1, le=60_000)]] = Field(
        2_000, description="Milliseconds that one rule may take, on the clock on the wall; a later answer is a breach."
    )
    on_late: LaterWord[Literal["pause", "reduce_only", "freeze"]] = Field(
        "pause",
        description="What a rule does that is late. By default the node pauses until the rule answers in time: a "
        "machine that is short of time is no reason to stop the others.",
    )
    on_error: LaterWord[Literal["pause", "reduce_only", "freeze"]] = Field(
        "freeze", description="What a rule does that raises or answers nonsense. It is never skipped."
    )


class RiskLimitsFile(AccountLimits):
    """Everything in ``config/risk_limits.yaml``."""

    initial_balance_usd: NewStart[Usd | None] = Field(
        None,
        description="USD. Equity that the node's routers start from; profit and loss count on top. Absent: the agent "
        "watches no account, so neither drawdown nor leverage.",
    )
    orders: OrderLimitSettings = Field(default_factory=OrderLimitSettings, description="Limits of inventory and edge.")
    pretrade: PreTradeSettings = Field(default_factory=PreTradeSettings, description="Pre-trade controls of orders.")
    value_at_risk: ValueAtRiskSettings | None = Field(
        None, description="Value at risk of the node; absent: off. Needs the extra 'figures'."
    )
    anomaly: NewStart[AnomalySettings | None] = Field(
        None, description="Streaming anomaly detector over the node's figures; absent: off. Needs the extra 'anomaly'."
    )
    inputs: NodeInputsSettings = Field(
        default_factory=NodeInputsSettings, description="Whether the reports of the routers are fit to judge by."
    )
    judgement: JudgementSettings = Field(default_factory=JudgementSettings, description="How the node is judged.")
    rules: NewStart[RuleSettings] = Field(default_factory=RuleSettings, description="Rules of the team's own.")

    def content_hash(self) -> str:
        """Return 16 hexadecimal digits that tell these limits from others: nodes with the same limits show the same."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))[:16]


def load_risk_limits(path: Path | str | None) -> RiskLimitsFile:
    """Read ``risk_limits.yaml``; the built-in defaults for ``None``.

    Raises:
        RiskFileError: with one sentence for each fault, each with path and line.
    """
    return RiskLimitsFile() if path is None else read_settings_file(Path(path), RiskLimitsFile)


def load_account_part(path: Path | str | None) -> AccountLimits:
    """Read the account's part of ``risk_limits.yaml``; the built-in defaults for ``None``.

    A file of account limits alone is one that says nothing of the rest. The rest is checked too: a file that is wrong
    anywhere is not believed in part.

    Raises:
        RiskFileError: with one sentence for each fault, each with path and line.
    """
    whole = load_risk_limits(path)
    written = AccountLimits.model_fields.keys() & whole.model_fields_set
    return AccountLimits.model_validate({name: getattr(whole, name) for name in written})


def limits_schema() -> dict[str, Any]:
    """Return the JSON schema of ``config/risk_limits.yaml``."""
    return settings_schema(RiskLimitsFile)
