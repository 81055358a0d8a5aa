"""What a circuit breaker tells of itself: one record for each thing that happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from killswitch.risk.breaker.breaker_machine import BreakerMode, EffectKind
from killswitch.risk.breaker.breaker_settings import ReasonClass
from killswitch.risk.events import json_figures

TransitionKind = EffectKind | Literal["taken_from_file", "file_failed"]


class Told(NamedTuple):
    """What is told beside the effects of an event."""

    what: TransitionKind
    reason: str = ""
    kind: ReasonClass | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTransition:
    """One thing that happened to a breaker.

    Attributes:
        timestamp: when, for people: RFC 3339 in UTC with microseconds. Nothing is decided from it.
        what: what happened. ``taken_from_file``: another process changed the state. ``file_failed``: the state file
            could not be used; what holds in this process holds.
        mode: the mode after it.
        kind: class of the reason, ``None`` where no single class is meant.
        reason: the sentence for people.
        engagement: number that a release must name.
        metadata: figures that came with it, as JSON values; those that are not finite as words.
    """

    timestamp: str
    what: TransitionKind
    mode: BreakerMode
    kind: ReasonClass | None
    reason: str
    engagement: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(json_figures(self.metadata)))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "timestamp": self.timestamp,
            "what": self.what,
            "mode": self.mode.value,
            "kind": None if self.kind is None else self.kind.value,
            "reason": self.reason,
            "engagement": self.engagement,
            "metadata": dict(self.metadata),
        }
