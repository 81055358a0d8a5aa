"""The limits that every order is held against before it is sent, and what a refusal says."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from killswitch.settings.section import Usd

_EdgeBps = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class RiskLimits(BaseModel):
    """The three limits of a :class:`RuntimeRiskMonitor`, validated; unknown names refused.

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

    max_inventory_usd: Usd
    max_total_notional: Usd
    edge_freeze_threshold_bps: _EdgeBps
