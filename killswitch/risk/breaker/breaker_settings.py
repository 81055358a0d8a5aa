"""Settings of the circuit breaker, and the classes of reason that it tells apart."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import Field

from killswitch.settings.section import CountToMillion, Fewer, Higher, LaterWord, Lower, Neither, NewStart, Section

NS_PER_SECOND = 1_000_000_000
A_YEAR_SECONDS = 31_536_000.0

# Strict: neither a text nor a boolean is a number.
Seconds = Annotated[float, Field(strict=True, gt=0, le=A_YEAR_SECONDS, allow_inf_nan=False)]
CountOrNone = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]


class ReasonClass(enum.StrEnum):
    """Why a breaker engages.

    ``unknown`` is for what cannot be told: a class that does not exist, a state file that cannot be read, a monitor
    that failed. It and ``manual`` never recover without a person, whatever the settings.
    """

    NETWORK = "network"
    DATA = "data"
    EDGE = "edge"
    POSITION = "position"
    DRAWDOWN = "drawdown"
    MANUAL = "manual"
    UNKNOWN = "unknown"


ONLY_A_PERSON = frozenset({ReasonClass.MANUAL, ReasonClass.UNKNOWN})
SensedClass = Literal["network", "data", "edge", "position", "drawdown"]


class Confirmations(Section):
    """Bad readings, after the first, that latch an engagement; 0: the first one latches."""

    network: Lower[CountOrNone] = Field(2, description="Count, of the class network.")
    data: Lower[CountOrNone] = Field(
        2, description="Count, of the class data: prices that are missing or make no sense."
    )
    edge: Lower[CountOrNone] = Field(2, description="Count, of the class edge.")
    position: Lower[CountOrNone] = Field(0, description="Count, of the class position: leverage and inventory.")
    drawdown: Lower[CountOrNone] = Field(0, description="Count, of the class drawdown.")


class BreakerSettings(Section):
    """Every setting of a circuit breaker."""

    kill_switch_mode: LaterWord[Literal["auto", "manual"]] = Field(
        "auto",
        description="auto: transient classes recover by themselves. manual: every class waits for a person. In both a "
        "breach engages by itself.",
    )
    recovery_cooldown_seconds: Higher[Seconds] = Field(
        60.0, description="Cool-down of the first engagement, in seconds; it doubles with each repeat."
    )
    max_cooldown_seconds: Higher[Seconds] = Field(3_600.0, description="Longest cool-down, in seconds.")
    backoff_reset_seconds: Higher[Seconds] = Field(
        3_600.0, description="This long safe without an engagement, in seconds, and the doubling starts over."
    )
    transient_classes: Fewer[tuple[SensedClass, ...]] = Field(
        ("network", "data"),
        max_length=5,
        description="Classes that may recover by themselves. An edge that collapsed waits for a person unless it is "
        "named here, as it does in RuntimeRiskMonitor.",
    )
    recovery_good_readings: Higher[CountToMillion] = Field(
        3, description="Count. Good readings in a row, after the cool-down and per class, that half-open it."
    )
    half_open_probes: Lower[CountToMillion] = Field(5, description="Count. Orders that pass while it is half-open.")
    half_open_good_readings: Higher[CountToMillion] = Field(
        5, description="Count. Good readings in a row while half-open that make it safe."
    )
    confirmations: Confirmations = Field(
        default_factory=Confirmations.model_construct,
        description="Counts of bad readings that latch a pause, by class.",
    )
    provisional_hold_seconds: Higher[Seconds] = Field(
        5.0,
        description="A pause that is not confirmed lifts itself this long after its last bad reading, in seconds, if "
        "its own sensor has said good since.",
    )
    escalate_after_engagements: Lower[CountToMillion] = Field(
        5, description="Count. This many engagements in the window, pauses included, and only a person releases."
    )
    escalate_window_seconds: Higher[Seconds] = Field(3_600.0, description="The window for that, in seconds.")
    state_file: NewStart[str | None] = Field(
        None, min_length=1, description="File that keeps the state over a restart and shares it between processes."
    )
    file_lock: NewStart[bool] = Field(
        True, strict=True, description="Lock the state file between processes; off where one process alone has it."
    )
    lock_timeout_seconds: Neither[Seconds] = Field(1.0, description="Longest wait for that lock, in seconds.")

    def faults(self) -> list[str]:
        """Return what does not fit together."""
        faults = []
        if self.max_cooldown_seconds < self.recovery_cooldown_seconds:
            faults.append(
                f"max_cooldown_seconds ({self.max_cooldown_seconds:g}) must be at least recovery_cooldown_seconds "
                f"({self.recovery_cooldown_seconds:g})"
            )
        if len(set(self.transient_classes)) < len(self.transient_classes):
            faults.append("transient_classes names one class twice")
        return faults

    def is_transient(self, kind: ReasonClass) -> bool:
        """True when a class may recover without a person."""
        return self.kill_switch_mode == "auto" and kind not in ONLY_A_PERSON and kind.value in self.transient_classes

    def confirmations_of(self, kind: ReasonClass) -> int:
        """Bad readings after the first that latch this class."""
        return 0 if kind in ONLY_A_PERSON else int(getattr(self.confirmations, kind.value))

    def cooldown_ns(self, repeats: int) -> int:
        """Cool-down of the engagement with this number in the series, which counts from 1: doubled, and capped."""
        longest = self.max_cooldown_seconds
        # Beyond 63 doublings every allowed cap is reached; a larger power would be no float any more.
        wanted = self.recovery_cooldown_seconds * 2.0 ** min(max(repeats, 1) - 1, 63)
        return int(min(wanted, longest) * NS_PER_SECOND)


def ns(seconds: float) -> int:
    """Seconds as nanoseconds."""
    return int(seconds * NS_PER_SECOND)
