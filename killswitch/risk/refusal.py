"""An order that must not be sent, and why: the one refusal of every limit, control and rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
