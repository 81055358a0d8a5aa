"""Whether what the routers report is fit to judge by: a router that has fallen silent, a mark that never moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from killswitch.risk.node_rule import NodeFinding, NodeSnapshot
from killswitch.risk.process.risk_limits_file import NodeInputsSettings

MAX_MARKS_WATCHED: Final = 100_000

_NANOSECONDS_PER_MS = 1_000_000


class NodeInputsRule:
    """A figure that nobody renews is a figure that nobody knows; how long that is meant, the settings say.

    Args:
        settings: the times, and what passing them does.
    """

    name = "inputs"

    def __init__(self, settings: NodeInputsSettings) -> None:
        self._settings = settings
        self._marks: dict[str, tuple[float, int]] = {}

    def set_settings(self, settings: NodeInputsSettings) -> None:
        """Go by other settings from now on; what is known of the marks stays."""
        self._settings = settings

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return the routers that are silent and the marks that do not move."""
        self._see_marks(snapshot)
        return [*self._silent(snapshot), *self._frozen(snapshot)]

    def _see_marks(self, snapshot: NodeSnapshot) -> None:
        for symbol, held in snapshot.holdings.items():
            known = self._marks.get(symbol)
            if known is None and len(self._marks) >= MAX_MARKS_WATCHED:
                continue
            if known is None or known[0] != held.mark_price_usd:
                self._marks[symbol] = (held.mark_price_usd, snapshot.now_ns)
        for symbol in [name for name in self._marks if name not in snapshot.holdings]:
            del self._marks[symbol]

    def _silent(self, snapshot: NodeSnapshot) -> list[NodeFinding]:
        limit_ms = self._settings.router_silent_after_ms
        if limit_ms is None:
            return []
        return [
            NodeFinding(
                trigger="router_silent",
                level=self._settings.silent,
                reason=f"router {router} is connected and has reported nothing for {age_ms:.0f} ms, and {limit_ms} ms "
                "are allowed: what it holds is not known",
                value=None,
                limit=float(limit_ms),
                figures={"router": router, "age_ms": age_ms},
            )
            for router, age_ms in sorted(snapshot.report_ages_ms.items(), key=lambda one: -one[1])
            if age_ms > limit_ms
        ][:1]  # the longest silence stands for all: a finding is told apart by its trigger

    def _frozen(self, snapshot: NodeSnapshot) -> list[NodeFinding]:
        limit_ms = self._settings.mark_frozen_after_ms
        if limit_ms is None:
            return []
        found = []
        for symbol, (_, since_ns) in sorted(self._marks.items()):
            still_ms = (snapshot.now_ns - since_ns) / _NANOSECONDS_PER_MS
            if still_ms > limit_ms and snapshot.holdings[symbol].quantity != 0:
                reason = f"the mark of {symbol} has not moved for {still_ms:.0f} ms, and {limit_ms} ms are allowed"
                found.append(
                    NodeFinding(
                        trigger="mark_frozen",
                        level=self._settings.frozen,
                        reason=reason,
                        symbol=symbol,
                        limit=float(limit_ms),
                        figures={"still_ms": still_ms},
                    )
                )
        return found
