"""The limits that every order is held against before it is sent, and what a refusal says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Usd = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Bps = Annotated[float, Field(strict=True, allow_inf_nan=False)]

RefusalKind = Literal[
    # the monitor
    "frozen",
    "bad_input",
    "monitor_error",
    "symbol_limit",
    "total_limit",
    # working orders
    "duplicate_id",
    "unknown_order",
    "working_orders",
    "working_orders_symbol",
    # pre-trade controls
    "symbol_not_permitted",
    "order_quantity",
    "order_value",
    "price_collar",
    "price_collar_over_time",
    "order_throttle",
    "order_throttle_symbol",
    "amend_throttle",
    "amend_throttle_symbol",
    "duplicate_order",
    "repeated_execution",
    "daily_orders",
    "daily_cancels",
    "daily_losses",
    "daily_loss",
    # health of the inputs
    "price_missing",
    "price_stale",
    "price_bad",
    "quote_crossed",
    "quote_frozen",
    "clock_stepped",
    "control_error",
    "control_overrun",
    "table_full",
    # the account as a whole
    "policy_throttle",
    "breaker",
    # a rule of the user's own
    "rule",
]
"""Why an order is refused, in one word."""

RefusalUnit = Literal["usd", "units", "bps", "messages", "orders", "cancels", "executions", "losses", "ms", "symbols"]


class RiskLimits(BaseModel):
    """The three limits of a :class:`~agents.risk.runtime_monitor.RuntimeRiskMonitor`, validated; unknown names refused.

    Numbers must be numbers (no text, no booleans) and finite: a limit of infinity or NaN would pass every order.

    Attributes:
        max_inventory_usd: most that may be held in one symbol, in USD of notional; reaching it exactly is allowed.
        max_total_notional: most that may be held over all symbols, in USD of notional; reaching it is allowed.
        edge_freeze_threshold_bps: an expected net edge strictly below this many basis points freezes. May be
            negative, for a strategy that is content with a rebate.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) a limit is missing, not a number, not finite or not positive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_inventory_usd: _Usd
    max_total_notional: _Usd
    edge_freeze_threshold_bps: _Bps


@dataclass(frozen=True, slots=True)
class OrderRefused:
    """One order that must not be sent, and why.

    Attributes:
        kind: the cause in one word.
        limit: the limit that the order would pass, in ``unit``; ``None`` when no limit is the cause.
        value: what the order would bring the figure to, in ``unit``; ``None`` when it cannot be known or does not
            matter.
        symbol: symbol of the order as it was given, as text.
        sentence: the refusal for people.
        unit: what ``limit`` and ``value`` are counted in.
    """

    kind: RefusalKind
    limit: float | None
    value: float | None
    symbol: str
    sentence: str
    unit: RefusalUnit = "usd"
