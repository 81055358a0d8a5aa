"""What a risk monitor says when it freezes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from killswitch.core.canonical import finite_or_text

FreezeTrigger = Literal["edge_collapse", "manual", "limit_violation"]
FREEZE_TRIGGERS: tuple[FreezeTrigger, ...] = get_args(FreezeTrigger)

MONITOR_ERROR: Final = "monitor_error"
"""Value of ``metadata["cause"]`` when not the market but the monitor's own inputs are the reason: a price that is NaN,
a mark price source that raised, a fill that makes no sense. The trigger is then ``limit_violation``: whether a limit
holds cannot be told any more, and a limit that cannot be told counts as broken (UNKNOWN IS FROZEN)."""


@dataclass(frozen=True, slots=True)
class FreezeEvent:
    """One freeze of one monitor.

    Attributes:
        timestamp: when, for people: RFC 3339 in UTC with microseconds. Nothing is decided from it.
        trigger: the kind of cause; also the label of ``freeze_triggered_total``.
        reason: the sentence for people.
        metadata: the figures that led to it, and how the cancelling went, as JSON values. Numbers that are not finite
            are kept as the words ``nan``, ``inf`` and ``-inf``, since they may be the very fault.

    Raises:
        ValueError: the trigger is none of :data:`FREEZE_TRIGGERS`.
    """

    timestamp: str
    trigger: FreezeTrigger
    reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trigger not in FREEZE_TRIGGERS:
            raise ValueError(f"{self.trigger!r} is not a trigger; the triggers are {', '.join(FREEZE_TRIGGERS)}")
        object.__setattr__(self, "metadata", MappingProxyType(json_figures(self.metadata)))

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        return {
            "timestamp": self.timestamp,
            "trigger": self.trigger,
            "reason": self.reason,
            "metadata": dict(self.metadata),
        }


def json_figures(metadata: object) -> dict[str, Any]:
    """Return figures as values that JSON can hold, whatever they were; nothing is raised.

    They tell of a stop that must not fail for them: a decimal or an object becomes text, what is no mapping a note.
    """
    if not isinstance(metadata, Mapping):
        return {"unreadable_metadata": f"a {type(metadata).__name__}"}
    try:
        figures = dict(finite_or_text(metadata))
        return {name: _json_value(value) for name, value in figures.items()}
    except Exception:  # an object that cannot even be named must not come before the stop
        return {"unreadable_metadata": f"a {type(metadata).__name__}"}


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, list) else str(value)
