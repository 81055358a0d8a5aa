"""How long things took in the scenarios, beside the bound that holds for each; printed at the end of the run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

STOP_FACTOR = 1.25
"""On the bound of a stop, as the venue sees it. The promise is on the gate: what this allows is the way from a router's
second look to the venue's socket, on two processors that some forty processes share."""

BUSY_FACTOR = 2.0
"""On everything that needs code to run in time: renewals, elections, joining. The machine may be slow here. On the
bound of a node that reaches the store this is still less than what holds for a node that does not."""


@dataclass(frozen=True)
class Taken:
    """One measured time."""

    scenario: str
    what: str
    ms: float
    bound_ms: float | None


class Times:
    """Collects them over a run."""

    def __init__(self) -> None:
        self.all: list[Taken] = []

    def note(self, scenario: str, what: str, ms: float, bound_ms: float | None = None) -> None:
        """Keep one."""
        self.all.append(Taken(scenario, what, round(ms, 1), bound_ms))

    def table(self) -> list[str]:
        """Lines for people."""
        if not self.all:
            return []
        width = max(len(taken.scenario) for taken in self.all)
        lines = [f"{'scenario':{width}}  {'ms':>9}  {'bound':>7}  what"]
        for taken in self.all:
            bound = "" if taken.bound_ms is None else f"{taken.bound_ms:.0f}"
            lines.append(f"{taken.scenario:{width}}  {taken.ms:9.1f}  {bound:>7}  {taken.what}")
        return lines

    def write(self, path: Path) -> None:
        """Keep them for a pipeline."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([asdict(taken) for taken in self.all], indent=1) + "\n", encoding="utf-8")
