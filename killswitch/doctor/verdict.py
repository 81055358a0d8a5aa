"""What a finding is: how bad, what, why it matters, what to do."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Severity(enum.IntEnum):
    """How bad a finding is."""

    OK = 0
    """As it should be."""

    NOTE = 1
    """Worth knowing; nothing has to be done for it."""

    WARNING = 2
    """A promise still holds, but with less room than it should have, or something is missing from the cluster."""

    FAULT = 3
    """A promise does not hold, or nobody can trade."""

    @property
    def word(self) -> str:
        """The word for people and for JSON."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: how bad.
        topic: the part that it is about, in one word.
        what: what was found.
        why: why it matters, empty where that goes without saying.
        do: what to do, empty where there is nothing.
        store: address of the store that it is about, empty for the machine.
    """

    severity: Severity
    topic: str
    what: str
    why: str = ""
    do: str = ""
    store: str = ""

    @property
    def sentence(self) -> str:
        """The whole of it: what, why, and what to do."""
        because = f": {self.why}" if self.why else ""
        return f"{self.what}{because}; {self.do}" if self.do else f"{self.what}{because}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "severity": self.severity.word,
            "topic": self.topic,
            "sentence": self.sentence,
            "store": self.store or None,
        }


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity; ``OK`` when nothing was found."""
    return max((finding.severity for finding in findings), default=Severity.OK)
