"""Settings of value at risk and expected shortfall. Nothing of numpy is read here."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import Field

from killswitch.risk.node_rule import NodeLevel
from killswitch.settings.section import LaterWord, Lower, MsOfDay, NewStart, Section, Tighter, Usd
from killswitch.settings.settings_diff import way_of

MAX_PRICES_KEPT: Final = 100_000_000
"""Most prices that a history may keep over all symbols, 8 bytes each: 800 MB."""

Measure = Literal["var", "es"]
"""What the levels are held against: value at risk, or expected shortfall."""

_Count = Annotated[int, Field(strict=True, ge=2, le=1_000_000)]


class ValueAtRiskSettings(Section):
    """How much the positions of now may lose in one sampling step, and from where on that is too much.

    The horizon is ``sample_every_ms``. Nothing is scaled to a longer one: the square root of time holds for returns
    that are independent and alike, which they are not on the days that this is for.
    """

    confidence: NewStart[Annotated[float, Field(strict=True, gt=0.5, lt=1)]] = Field(
        0.99, description="Ratio. Part of all steps in which no more than the value at risk is lost; 0.99 is 99 %."
    )
    sample_every_ms: NewStart[MsOfDay] = Field(
        60_000, description="Milliseconds from one sample of all prices to the next; also the horizon of the figures."
    )
    observations_kept: NewStart[_Count] = Field(500, description="Count. Newest returns that are kept for each symbol.")
    min_observations: NewStart[_Count] = Field(
        250, description="Count. Fewer returns than this, and the figures are not to be trusted."
    )
    max_age_ms: NewStart[MsOfDay] = Field(
        60_000, description="Milliseconds. A price older than this is stale: it is not sampled, and not trusted."
    )
    max_symbols: NewStart[_Count] = Field(10_000, description="Count. Most symbols followed; one more has no history.")
    measure: NewStart[Measure] = Field(
        "es", description="var or es. What both levels are held against: the larger of historical and parametric."
    )
    warning_usd: Lower[Usd | None] = Field(None, description="US dollars. Warn from this much on; absent: no warning.")
    hard_usd: Lower[Usd | None] = Field(
        None, description="US dollars. From this much on: `hard`; absent: no hard level."
    )
    hard: LaterWord[Literal["pause", "reduce_only", "freeze"]] = Field(
        "freeze", description="What reaching hard_usd does."
    )
    unknown: LaterWord[NodeLevel] = Field(
        "pause",
        description="warning, pause, reduce_only or freeze. What figures that cannot be trusted do; too little history "
        "is one reason, unless nothing is held. With no hard_usd it is a warning, with no level nothing.",
    )

    def faults(self) -> list[str]:
        """Return levels in the wrong order, histories that never suffice, and tails with nothing in them."""
        faults = []
        if self.min_observations > self.observations_kept:
            faults.append(
                f"min_observations ({self.min_observations}) must be at most observations_kept "
                f"({self.observations_kept}), or no history ever suffices"
            )
        # As decimals: 100 times 0.01 is exactly the one observation that there must be.
        tail = 1 - Decimal(repr(self.confidence))
        if self.min_observations * tail < 1:
            least = -(-1 // tail)
            faults.append(
                f"min_observations ({self.min_observations}) must be at least {least} at a confidence of "
                f"{self.confidence:g}, or the tail holds less than one of them"
            )
        if self.observations_kept * self.max_symbols > MAX_PRICES_KEPT:
            faults.append(
                f"observations_kept ({self.observations_kept}) times max_symbols ({self.max_symbols}) must be at most "
                f"{MAX_PRICES_KEPT}"
            )
        if self.warning_usd is not None and self.hard_usd is not None and self.warning_usd > self.hard_usd:
            faults.append(f"warning_usd ({self.warning_usd:g}) must be at most hard_usd ({self.hard_usd:g})")
        return faults


LEVELS: Final = frozenset(
    name for name in ValueAtRiskSettings.model_fields if way_of(ValueAtRiskSettings, (name,)) is not Tighter.NEW_START
)
"""Settings that may change while figures are made; the others say how the figures are made."""
