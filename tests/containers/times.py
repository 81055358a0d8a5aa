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

# Why a time has no bound.
PROOF_WAITS = "a proof waits for whoever answers last; what is bounded is the stop"
STARTS_PYTHON = "it holds the start of a process of Python, of which nothing is promised"
RULES_FOLLOW = "a rule judges what was reported, and no time is promised for a report and its reading"
ALL_AT_ONCE = "a figure of this machine, on which all the voices contend"
STORE_ELECTS = "the store elects in its own time; nothing is promised until it answers"


@dataclass(frozen=True)
class Taken:
    """One measured time; either a bound with its factor, or why there is none."""

    scenario: str
    what: str
    ms: float
    bound_ms: float | None
    factor: float | None
    no_bound: str


class Times:
    """Collects them over a run."""

    def __init__(self) -> None:
        self.all: list[Taken] = []

    def note(
        self,
        scenario: str,
        what: str,
        ms: float,
        bound_ms: float | None = None,
        factor: float | None = None,
        *,
        no_bound: str = "",
    ) -> None:
        """Keep one, and judge it by its bound.

        Args:
            scenario: which test.
            what: was measured.
            ms: how long it took.
            bound_ms: what ``config check`` promises for it.
            factor: on that bound, one of those above.
            no_bound: why nothing is promised for it; instead of the two.

        Raises:
            AssertionError: it took longer than the bound times the factor.
        """
        if (bound_ms is None) != (factor is None) or (bound_ms is None) != bool(no_bound):
            raise ValueError(f"{what}: a time has a bound and a factor, or a reason why there is no bound")
        self.all.append(Taken(scenario, what, round(ms, 1), bound_ms, factor, no_bound))
        if bound_ms is not None and factor is not None:
            assert ms <= bound_ms * factor, (
                f"{what}: {ms:.0f} ms; the bound is {bound_ms:.0f} ms, times {factor:g} here"
            )

    def table(self) -> list[str]:
        """Lines for people."""
        if not self.all:
            return []
        width = max(len(taken.scenario) for taken in self.all)
        lines = [f"{'scenario':{width}}  {'ms':>9}  {'bound':>7}  {'factor':>6}  what"]
        for taken in self.all:
            bound = "none" if taken.bound_ms is None else f"{taken.bound_ms:.0f}"
            factor = "" if taken.factor is None else f"{taken.factor:g}"
            what = f"{taken.what} (no bound: {taken.no_bound})" if taken.no_bound else taken.what
            lines.append(f"{taken.scenario:{width}}  {taken.ms:9.1f}  {bound:>7}  {factor:>6}  {what}")
        return lines

    def write(self, path: Path) -> None:
        """Keep them for a pipeline."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([asdict(taken) for taken in self.all], indent=1) + "\n", encoding="utf-8")
