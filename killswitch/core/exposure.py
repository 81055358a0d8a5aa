"""What the whole cluster holds: node reports added up, lost nodes with what they held last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeExposure:
    """A node's last report as the sum needs it; money in USD.

    Attributes:
        node: its name.
        live: its agent keeps its lease alive.
        notional_by_symbol: signed value of its position per symbol.
        pnl_usd: its profit and loss.
        working_orders: orders that venues may still fill for it.
    """

    node: str
    live: bool
    notional_by_symbol: Mapping[str, float]
    pnl_usd: float
    working_orders: int


@dataclass(frozen=True, slots=True)
class ClusterExposure:
    """The cluster's sum; money in USD.

    Attributes:
        gross_usd: sum over nodes and symbols of the absolute position. Nodes do not net against each other: they may
            trade for different accounts, and when one is cut off its leg cannot be closed.
        net_usd: signed sum.
        pnl_usd: sum of profit and loss.
        net_by_symbol: signed sum per symbol.
        gross_by_node: absolute sum per node.
        working_orders: over all nodes.
        counted_lost: lost nodes whose last-known holdings are in these sums.
        never_reported: registered nodes of which nothing is known.
    """

    gross_usd: float
    net_usd: float
    pnl_usd: float
    net_by_symbol: Mapping[str, float]
    gross_by_node: Mapping[str, float]
    working_orders: int
    counted_lost: tuple[str, ...]
    never_reported: tuple[str, ...]


def add_up(reports: Iterable[NodeExposure], registered: Iterable[str]) -> ClusterExposure:
    """Add up the last report of every node, live or lost (a lost node's positions have not gone away).

    Args:
        reports: last report of each node that ever made one.
        registered: all nodes in the cluster's books.
    """
    reports = sorted(reports, key=lambda report: report.node)
    symbols = sorted({symbol for report in reports for symbol in report.notional_by_symbol})
    return ClusterExposure(
        gross_usd=math.fsum(abs(usd) for report in reports for usd in report.notional_by_symbol.values()),
        net_usd=math.fsum(usd for report in reports for usd in report.notional_by_symbol.values()),
        pnl_usd=math.fsum(report.pnl_usd for report in reports),
        net_by_symbol={
            symbol: math.fsum(report.notional_by_symbol.get(symbol, 0.0) for report in reports) for symbol in symbols
        },
        gross_by_node={
            report.node: math.fsum(abs(usd) for usd in report.notional_by_symbol.values()) for report in reports
        },
        working_orders=sum(report.working_orders for report in reports),
        counted_lost=tuple(report.node for report in reports if not report.live),
        never_reported=tuple(sorted(set(registered) - {report.node for report in reports})),
    )
