"""What a rule of the node sees and what it says: the whole contract of a rule of one's own that judges the node.

A rule is a small class with one method. It is asked on a thread of its own kind, never on the path of an order, as
often as the node's routers report and at least once in ``judgement.every_ms``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from killswitch.link.messages import Holding

NodeLevel = Literal["warning", "pause", "reduce_only", "freeze"]
"""How far a finding goes, mildest first.

``warning``
    It is logged, counted and reported; nothing closes.
``pause``
    This node's gate closes for as long as the finding is made, and opens by itself when it is not made any more. The
    cluster is not told: for what may still turn out to be nothing.
``reduce_only``
    A freeze of the cluster, in the scope that the settings say, in which only what reduces passes.
``freeze``
    A freeze of the cluster, in the scope that the settings say.
"""

LEVEL_RANK: Mapping[NodeLevel, int] = {"warning": 1, "pause": 2, "reduce_only": 3, "freeze": 4}
"""Mildest first, 1 to 4; 0 is no finding."""


NodeHolding = Holding
"""What the node holds in one symbol over all its routers: of the same kind as what each of them tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSnapshot:
    """One moment of a node, as its routers have told it. Lost and ended routers count with what they held last.

    Attributes:
        node: its name.
        now_ns: when it is judged, on the deadline clock.
        holdings: by symbol.
        gross_usd: sum over symbols of the absolute net position.
        net_usd: sum of the signed ones.
        pnl_usd: profit and loss since the routers started, realised and not.
        working_orders: how many work, those of lost routers among them.
        working_notional_usd: what they are worth together.
        edges_bps: expected net edge by symbol, of several routers the lowest.
        routers_live: routers that are connected.
        routers_lost: routers whose connection broke without goodbye.
        report_ages_ms: milliseconds since each connected router has reported, by its name.
    """

    node: str
    now_ns: int
    holdings: Mapping[str, NodeHolding] = field(default_factory=dict)
    gross_usd: float = 0.0
    net_usd: float = 0.0
    pnl_usd: float = 0.0
    working_orders: int = 0
    working_notional_usd: float = 0.0
    edges_bps: Mapping[str, float] = field(default_factory=dict)
    routers_live: int = 0
    routers_lost: int = 0
    report_ages_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinding:
    """One thing that a rule has found. It is made again at every judgement for as long as it holds.

    Attributes:
        trigger: the cause in one word, as it stands in the freeze: ``drawdown``, ``leverage``, ...
        level: how far it goes.
        reason: the sentence for people.
        symbol: the symbol that it is about, ``None`` when it is about the whole node. With ``trigger`` it tells one
            finding of a rule from another.
        value: the figure, larger meaning worse; ``None`` when there is none that could be compared. After a person has
            released a freeze, a finding whose value has not grown since is *accepted*; one without a value freezes
            again.
        limit: what the figure is held against.
        figures: what else led to it, as JSON values.
    """

    trigger: str
    level: NodeLevel
    reason: str
    symbol: str | None = None
    value: float | None = None
    limit: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


class NodeRule(Protocol):
    """A rule that judges the node; a team's own is one too.

    What it raises, an answer that is no finding, and an answer that came too late are breaches (``monitor_error``).
    """

    name: str

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return everything that is wrong now, nothing when all is well."""
