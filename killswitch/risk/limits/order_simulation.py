"""What would happen to an order: every refusal, and the figures that it would lead to."""

from __future__ import annotations

from dataclasses import dataclass

from killswitch.risk.limits.warning_ladder import LimitWarning
from killswitch.risk.refusal import OrderRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSimulation:
    """The answer of ``simulate_order()``. Nothing was counted, reserved, warned of or frozen for it.

    Attributes:
        refusals: everything that would refuse the order, not only the first; empty when it would pass.
        reduces: the order can only bring its position nearer to flat, so the limits let it pass.
        symbol_usd: worst case of its symbol on the order's side, in USD; ``None`` when it cannot be worked out.
        symbol_limit_usd: the limit that it is held against now.
        total_usd: worst case over all symbols, in USD; likewise.
        total_limit_usd: the limit that it is held against now.
        warnings: steps of the warning ladder that would be told, if it passes.
    """

    refusals: tuple[OrderRefused, ...]
    reduces: bool = False
    symbol_usd: float | None = None
    symbol_limit_usd: float | None = None
    total_usd: float | None = None
    total_limit_usd: float | None = None
    warnings: tuple[LimitWarning, ...] = ()

    @property
    def passes(self) -> bool:
        """True when nothing would refuse the order."""
        return not self.refusals
