"""Settings of the account monitor: drawdown and leverage, each with a warning and a hard level.

The names are those that its users know; for some there is a second name that says the unit. Either may be written,
never both. The settings of the circuit breaker stand in the same file.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StrictStr, ValidationError

from killswitch.risk.breaker.breaker_settings import BreakerSettings
from killswitch.settings.section import CountToMillion, Fewer, LaterWord, Lower, MsOfDay, Neither, SymbolName
from killswitch.settings.settings_file import read_settings_file

DAY_SECONDS: Final = 86_400

_Share = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
_Times = Annotated[float, Field(strict=True, gt=0, le=10_000, allow_inf_nan=False)]

MarkSeverity = Literal["warning", "engage"]
"""What a mark does that is missing or too old."""

OTHER_NAMES: Final[Mapping[str, str]] = {
    "max_daily_drawdown_ratio": "max_daily_drawdown",
    "drawdown_warning_ratio": "drawdown_warning",
    "max_account_leverage_ratio": "max_account_leverage",
    "leverage_warning_ratio": "leverage_warning",
    "recovery_cooldown_s": "recovery_cooldown_seconds",
}
"""Second name of a setting -> the name that it has here."""


class AccountLimits(BreakerSettings):
    """What an account is held against on every tick, and the settings of the breaker that it engages.

    Every level is inclusive: a value at the level counts.
    """

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES

    max_daily_drawdown: Lower[_Share] = Field(
        0.02,
        description="Ratio. Hard: part of the day's highest equity that may be lost; 0.02 is 2 %. At it the breaker "
        "engages.",
    )
    drawdown_warning: Lower[_Share] = Field(
        0.01, description="Ratio. Warn from this part of the day's highest equity on."
    )
    max_account_leverage: Lower[_Times] = Field(
        5.0, description="Ratio. Hard: total exposure over equity. At it the breaker engages."
    )
    leverage_warning: Lower[_Times] = Field(3.0, description="Ratio. Warn from this many times the equity on.")
    reported_leverage_cap: Neither[_Times] = Field(
        10.0, description="Ratio. Largest leverage that is shown; decisions use the true one, which may have no bound."
    )
    day_start_utc: Neither[Annotated[StrictStr, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]] = Field(
        "00:00", description="When a day begins, HH:MM in UTC: from here the highest equity is counted anew."
    )
    known_symbols: Fewer[tuple[SymbolName, ...] | None] = Field(
        None, max_length=100_000, description="A tick or fill of another symbol is a breach; none named: all are known."
    )
    max_symbols: Lower[CountToMillion] = Field(
        10_000, description="Count. Most symbols held at once; one more is a breach."
    )
    forensics_kept: Neither[CountToMillion] = Field(
        1_000, description="Count. Newest engagements kept with the account before and after."
    )
    days_kept: Neither[CountToMillion] = Field(400, description="Count. Newest days kept with their lowest point.")
    mark_max_age_ms: Lower[MsOfDay | None] = Field(
        60_000,
        description="Milliseconds that the newest mark of a symbol that is held may be old; its fills count as marks "
        "until a first one comes. Null: not asked. The node's own account does not ask: its marks come with the "
        "reports of its routers.",
    )
    mark_missing: LaterWord[MarkSeverity] = Field(
        "engage",
        description="warning or engage. What a symbol does of which no mark has ever come and whose last fill is older "
        "than that; engage is a bad reading of class data.",
    )
    mark_stale: LaterWord[MarkSeverity] = Field(
        "engage", description="warning or engage. What a symbol does whose newest mark is older than that."
    )
    log_interval_seconds: Neither[Annotated[float, Field(strict=True, ge=0, le=DAY_SECONDS)]] = Field(
        1.0, description="At most one line in the log for each kind of warning in this time, in seconds."
    )

    def faults(self) -> list[str]:
        """Return what does not fit together."""
        faults = super().faults()
        if self.drawdown_warning > self.max_daily_drawdown:
            faults.append(
                f"drawdown_warning ({self.drawdown_warning:g}) must be at most max_daily_drawdown "
                f"({self.max_daily_drawdown:g})"
            )
        if self.leverage_warning > self.max_account_leverage:
            faults.append(
                f"leverage_warning ({self.leverage_warning:g}) must be at most max_account_leverage "
                f"({self.max_account_leverage:g})"
            )
        if self.known_symbols is not None and len(set(self.known_symbols)) < len(self.known_symbols):
            faults.append("known_symbols names one symbol twice")
        return faults

    def breaker_settings(self) -> BreakerSettings:
        """Return the part that is the circuit breaker's."""
        return BreakerSettings.model_validate(
            {name: getattr(self, name) for name in BreakerSettings.model_fields if name in self.model_fields_set}
        )

    def breaker_differences(self, breaker: BreakerSettings) -> list[str]:
        """Return one sentence for each breaker setting that was written here and that a breaker has otherwise."""
        return [
            f"{name} is {getattr(self, name)!r} in the limits and {getattr(breaker, name)!r} in the circuit breaker; "
            "make the breaker from breaker_settings() of these limits, or leave the setting out here"
            for name in BreakerSettings.model_fields
            if name in self.model_fields_set and getattr(self, name) != getattr(breaker, name)
        ]

    def day_starts(self) -> dt.time:
        """When a day begins, in UTC."""
        return dt.time.fromisoformat(self.day_start_utc).replace(tzinfo=dt.UTC)


def merged_breaker_settings(before: AccountLimits, after: AccountLimits, breaker: BreakerSettings) -> BreakerSettings:
    """Return what a breaker goes by when the limits of its account change.

    What the new limits write holds. What they leave out goes back to the default where the old ones wrote it; else it
    is the breaker's own and stays.

    Raises:
        ValueError: it does not fit together.
    """
    values = {}
    for name in BreakerSettings.model_fields:
        written = name in after.model_fields_set or name in before.model_fields_set
        values[name] = getattr(after if written else breaker, name)
    try:
        return BreakerSettings.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors())
        raise ValueError(f"the circuit breaker's part of the limits does not fit together: {faults}") from error


def day_gets_longer(before: AccountLimits, after: AccountLimits) -> dt.timedelta:
    """How much later the running day ends when days begin at another time: below 24 hours, and never sooner."""
    old, new = before.day_starts(), after.day_starts()
    return dt.timedelta(minutes=(60 * (new.hour - old.hour) + new.minute - old.minute) % (24 * 60))


def load_account_limits(path: Path | str | None) -> AccountLimits:
    """Read the limits from a YAML file; the defaults for ``None``.

    Raises:
        RiskFileError: with one sentence for each fault.
    """
    return AccountLimits() if path is None else read_settings_file(Path(path), AccountLimits)
