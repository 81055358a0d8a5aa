"""Settings of exposure and policy: buckets, groups, the session, tolerance by regime, what a derisk does.

``config/risk_rules.yaml`` holds all of them with their defaults. Percentages are of equity: 125 is one and a quarter
times the equity. They end in ``_pct``; ratios, 0.1 for a tenth, end in ``_ratio``.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictStr

from killswitch.settings.section import (
    CountToMillion,
    Higher,
    LaterWord,
    Lower,
    MsOfDay,
    Neither,
    NewStart,
    Section,
    SymbolName,
    Tighter,
    settings_schema,
)
from killswitch.settings.settings_file import read_settings_file

MAX_GROUPS: Final = 1_000
MAX_SYMBOLS_IN_A_GROUP: Final = 10_000
UNGROUPED: Final = "UNGROUPED"
"""Name of the group of every symbol that no group names. It cannot be given to a group."""


ALWAYS_OPEN: Final = "24/7"
"""Name of the calendar of a venue that never closes."""

_GROUP_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/ -]{0,63}$")

# Strict: neither the text "125" nor the boolean true is a number.
Percentage = Annotated[float, Field(strict=True, gt=0, le=10_000)]
Ratio = Annotated[float, Field(strict=True, ge=0, le=1)]
Minutes = Annotated[float, Field(strict=True, ge=0, le=1_440)]
Derisk = Literal["none", "soft"]
MarkSeverity = Literal["warning", "unknown"]

_Target = Annotated[Percentage, Tighter.LOWER, Field(description="Per cent of equity. What the bucket should hold.")]
_Most = Annotated[
    Percentage,
    Tighter.LOWER,
    Field(description="Per cent of equity. The most it may hold; exactly this is allowed."),
]
_Tolerance = Annotated[
    Percentage, Tighter.LOWER, Field(description="Per cent of equity. Gross exposure that already counts.")
]
_AtTolerance = Annotated[
    Derisk, Tighter.LATER_WORD, Field(description="none or soft. What is asked for at the tolerance.")
]
# A regime that begins sooner is stricter sooner, since no regime is looser than the one before it.
_AfterOpen = Annotated[Minutes, Tighter.LOWER, Field(description="Minutes. Begins this long after the open.")]
_ToClose = Annotated[Minutes, Tighter.HIGHER, Field(description="Minutes. Begins this long before the close.")]


class Bucket(Section):
    """A bucket of positions: what it should hold, and the most."""

    target_pct: _Target
    max_pct: _Most

    def faults(self) -> list[str]:
        """Return whether target and most stand in the wrong order."""
        if self.target_pct <= self.max_pct:
            return []
        return [f"target_pct ({self.target_pct:g}) must be at most max_pct ({self.max_pct:g})"]


class LongTermBucket(Bucket):
    """The bucket of positions that are held for long."""

    target_pct: _Target = 80.0
    max_pct: _Most = 90.0


class MarketMakingBucket(Bucket):
    """The bucket of pure market-making."""

    target_pct: _Target = 20.0
    max_pct: _Most = 30.0


class BucketSettings(Section):
    """The two buckets; every position is in one of them."""

    LT: LongTermBucket = Field(default_factory=LongTermBucket, description="Held for long.")
    MM_PURE: MarketMakingBucket = Field(default_factory=MarketMakingBucket, description="Pure market-making.")


class ExposureSettings(Section):
    """What is added up, and the most of all."""

    gross_hard_cap_pct: Lower[Percentage] = Field(
        130.0, description="Per cent of equity. From this gross exposure on: HARD_DERISK, at any time of day."
    )
    buckets: BucketSettings = Field(default_factory=BucketSettings, description="Target and most of each bucket.")
    long_term_symbols: Neither[list[SymbolName]] = Field(
        default_factory=list,
        max_length=MAX_SYMBOLS_IN_A_GROUP,
        description="Symbols whose positions the agent of a node counts to LT; all others are MM_PURE. A process that "
        "keeps a book of its own names the bucket with every fill instead.",
    )
    groups: Neither[dict[StrictStr, list[SymbolName]]] = Field(
        default_factory=dict,
        max_length=MAX_GROUPS,
        description="Symbols of each group (sector, coin, country). Empty: no groups. With groups, a symbol that none "
        "of them names is a breach.",
    )
    max_symbols: Neither[CountToMillion] = Field(
        100_000, description="Count. Most symbols that a book follows; one more is a breach."
    )
    max_working_orders: Neither[CountToMillion] = Field(
        100_000, description="Count. Most working orders that a book follows; one more is a breach."
    )

    mark_max_age_ms: Lower[MsOfDay | None] = Field(
        60_000,
        description="Milliseconds that a mark, or the Greeks, of a symbol that a book holds or has orders in may be "
        "old while the market is open; its fills and first orders count as marks until a first one comes. Null: not "
        "asked. The agent of a node does not ask: its marks come with the reports of its routers.",
    )
    mark_missing: LaterWord[MarkSeverity] = Field(
        "unknown",
        description="warning or unknown. What a symbol does of which no mark has ever come and whose last fill is "
        "older than that; unknown makes every percentage unknown, which freezes.",
    )
    mark_stale: LaterWord[MarkSeverity] = Field(
        "unknown", description="warning or unknown. What a symbol does whose newest mark is older than that."
    )

    def faults(self) -> list[str]:
        """Return names of groups that cannot be, symbols in two groups, and groups that are too large."""
        faults = [
            f"groups.{name}: a group's name is 1 to 64 letters, digits, spaces and '._/-', and not {UNGROUPED}"
            for name in self.groups
            if name == UNGROUPED or not _GROUP_NAME.match(name)
        ]
        faults += [
            f"groups.{name}: {len(symbols)} symbols are more than {MAX_SYMBOLS_IN_A_GROUP}"
            for name, symbols in self.groups.items()
            if len(symbols) > MAX_SYMBOLS_IN_A_GROUP
        ]
        group_of: dict[str, str] = {}
        for name, symbols in self.groups.items():
            for symbol in symbols:
                if symbol in group_of:
                    faults.append(f"groups.{name}: {symbol} is in group {group_of[symbol]} already")
                group_of.setdefault(symbol, name)
        return faults

    def group_of(self) -> dict[str, str]:
        """Return the group of every symbol that has one."""
        return {symbol: name for name, symbols in self.groups.items() for symbol in symbols}


class SessionSettings(Section):
    """Whose hours the regimes follow."""

    calendar: Annotated[StrictStr, Field(min_length=1, max_length=32)] = Field(
        "XLON",
        description="Name of a trading calendar: a market identifier code such as XLON or XNYS (needs the extra "
        "'calendars'), or 24/7 for a venue that never closes.",
    )
    max_clock_step_ms: Annotated[int, Field(strict=True, ge=1, le=60_000)] = Field(
        2_000,
        description="Milliseconds. How far the wall clock may move away from the monotonic one within a minute; "
        "beyond that the time of day is unknown until a person accepts it.",
    )


class OpenRegime(Section):
    """From the open on."""

    tolerance_pct: _Tolerance = 125.0
    derisk: _AtTolerance = "none"


class EarlyRegime(Section):
    """After the first minutes."""

    from_minutes_after_open: _AfterOpen = 30.0
    tolerance_pct: _Tolerance = 125.0
    derisk: _AtTolerance = "none"


class MidRegime(Section):
    """The middle of the day; all day at a venue that never closes."""

    from_minutes_after_open: _AfterOpen = 120.0
    tolerance_pct: _Tolerance = 120.0
    derisk: _AtTolerance = "soft"


class LateRegime(Section):
    """The last quarter of an hour: from 16:15 where the close is at 16:30."""

    from_minutes_to_close: _ToClose = 15.0
    tolerance_pct: _Tolerance = 115.0
    derisk: _AtTolerance = "soft"


class CloseRegime(Section):
    """The close itself, and all the time that the market is closed."""

    from_minutes_to_close: _ToClose = 2.0
    hard_from_minutes_to_close: Higher[Minutes] = Field(
        2.0, description="Minutes. From this long before the close the tolerance asks for a hard derisk."
    )
    tolerance_pct: _Tolerance = 100.0
    derisk: LaterWord[Derisk] = Field("soft", description="none or soft. What is asked for until it is hard.")

    def faults(self) -> list[str]:
        """Return whether hard would begin before the regime does."""
        if self.hard_from_minutes_to_close <= self.from_minutes_to_close:
            return []
        return [
            f"hard_from_minutes_to_close ({self.hard_from_minutes_to_close:g}) must be at most "
            f"from_minutes_to_close ({self.from_minutes_to_close:g})"
        ]


class RegimeSettings(Section):
    """The tolerance table, from the loosest regime to the strictest."""

    OPEN: OpenRegime = Field(default_factory=OpenRegime, description="From the open on.")
    EARLY: EarlyRegime = Field(default_factory=EarlyRegime, description="After the first minutes.")
    MID: MidRegime = Field(default_factory=MidRegime, description="The middle of the day.")
    LATE: LateRegime = Field(default_factory=LateRegime, description="The last quarter of an hour.")
    CLOSE: CloseRegime = Field(default_factory=CloseRegime, description="The close, and while the market is closed.")

    def faults(self) -> list[str]:
        """Return where a later regime would be looser than an earlier one, or would begin before it."""
        faults = []
        rows = [(name, getattr(self, name)) for name in type(self).model_fields]
        for (name, row), (next_name, next_row) in itertools.pairwise(rows):
            if next_row.tolerance_pct > row.tolerance_pct:
                faults.append(
                    f"{next_name}.tolerance_pct ({next_row.tolerance_pct:g}) must be at most "
                    f"{name}.tolerance_pct ({row.tolerance_pct:g}): it never gets looser towards the close"
                )
            if row.derisk == "soft" and next_row.derisk == "none":
                faults.append(f"{next_name}.derisk must not be none when {name}.derisk is soft")
        if self.MID.from_minutes_after_open < self.EARLY.from_minutes_after_open:
            faults.append("MID.from_minutes_after_open must be at least EARLY.from_minutes_after_open")
        if self.CLOSE.from_minutes_to_close > self.LATE.from_minutes_to_close:
            faults.append("CLOSE.from_minutes_to_close must be at most LATE.from_minutes_to_close")
        return faults


class DeriskSettings(Section):
    """How a derisk is carried out."""

    soft_price_offset_usd: Neither[Annotated[float, Field(strict=True, ge=0, le=1_000)]] = Field(
        0.01, description="US dollars. A soft order is this much below (to sell) or above (to buy) the last trade."
    )
    soft_margin_pct: Neither[Annotated[float, Field(strict=True, gt=0, le=100)]] = Field(
        1.0, description="Per cent of equity. A soft derisk aims this far below the tolerance, which already counts."
    )
    hard_step_ratio: Neither[Annotated[float, Field(strict=True, gt=0, le=1)]] = Field(
        0.10, description="Ratio. Part of each position that one step of a hard derisk closes, across the spread."
    )


class RotationSettings(Section):
    """How much of the long-term inventory may serve small market-making."""

    min_ratio: Neither[Ratio] = Field(
        0.10, description="Ratio of the LT inventory. As little as this is worth rotating."
    )
    max_ratio: Neither[Ratio] = Field(0.20, description="Ratio of the LT inventory. No more than this may be rotated.")

    def faults(self) -> list[str]:
        """Return whether least and most stand in the wrong order."""
        if self.min_ratio <= self.max_ratio:
            return []
        return [f"min_ratio ({self.min_ratio:g}) must be at most max_ratio ({self.max_ratio:g})"]


class RiskRules(Section):
    """Everything in ``config/risk_rules.yaml``."""

    exposure: ExposureSettings = Field(default_factory=ExposureSettings, description="What is added up.")
    session: NewStart[SessionSettings] = Field(default_factory=SessionSettings, description="Whose hours count.")
    regimes: RegimeSettings = Field(default_factory=RegimeSettings, description="The tolerance table.")
    derisk: DeriskSettings = Field(default_factory=DeriskSettings, description="How a derisk is carried out.")
    rotation: RotationSettings = Field(default_factory=RotationSettings, description="Inventory rotation.")

    def faults(self) -> list[str]:
        """Return the regimes whose tolerance is above the hard cap, and derisks that aim at nothing."""
        cap_pct, margin_pct = self.exposure.gross_hard_cap_pct, self.derisk.soft_margin_pct
        faults = []
        for name in type(self.regimes).model_fields:
            tolerance_pct = getattr(self.regimes, name).tolerance_pct
            if tolerance_pct > cap_pct:
                faults.append(
                    f"regimes.{name}.tolerance_pct ({tolerance_pct:g}) must be at most "
                    f"exposure.gross_hard_cap_pct ({cap_pct:g})"
                )
            if margin_pct >= tolerance_pct:
                faults.append(
                    f"derisk.soft_margin_pct ({margin_pct:g}) must be below regimes.{name}.tolerance_pct "
                    f"({tolerance_pct:g})"
                )
        return faults


def rules_schema() -> dict[str, Any]:
    """Return the JSON schema of ``config/risk_rules.yaml``."""
    return settings_schema(RiskRules)


def load_risk_rules(path: Path | None) -> RiskRules:
    """Read ``risk_rules.yaml``; the built-in defaults for ``None``.

    Raises:
        RiskFileError: with one sentence for each fault.
    """
    return RiskRules() if path is None else read_settings_file(path, RiskRules)
