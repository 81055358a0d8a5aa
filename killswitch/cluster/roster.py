"""Who is in a cluster: the nodes, whether they live, and what each last reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog

from killswitch.cluster.records import Keys, LiveRecord, NodeRecord, Record, ReportRecord, UnreadableRecord
from killswitch.core.certificate import KnownNode
from killswitch.core.exposure import ClusterExposure, NodeExposure, add_up
from killswitch.stores.port import Entry, Store

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class NodeRoster:
    """Every node ever registered and not forgotten, as the store knows it at one reading.

    Attributes:
        nodes: lasting records; ``None`` for one that cannot be read.
        live: leased records of the nodes whose agent keeps them alive.
        reports: last report of each node that ever made one and whose report can be read.
        report_versions: store version of each report; *that it changed* is the only trusted sign of freshness.
    """

    nodes: Mapping[str, NodeRecord | None]
    live: Mapping[str, LiveRecord | None]
    reports: Mapping[str, ReportRecord]
    report_versions: Mapping[str, int]

    def known(self) -> list[KnownNode]:
        """What a certificate needs to know of each."""
        known = []
        for name, record in self.nodes.items():
            report = self.reports.get(name)
            working = report.working_orders if report else None
            known.append(record.to_known(working) if record else KnownNode(name, None, working))
        return known

    def lost(self) -> tuple[str, ...]:
        """Registered nodes whose agent keeps no lease alive."""
        return tuple(sorted(set(self.nodes) - set(self.live)))

    def unreadable_reports(self) -> tuple[str, ...]:
        """Nodes that made a report which this version cannot read: what they hold is unknown."""
        return tuple(sorted(set(self.report_versions) - set(self.reports)))

    def exposure(self) -> ClusterExposure:
        """What the cluster holds, lost nodes with what they held last."""
        reports = [
            NodeExposure(
                node=name,
                live=name in self.live,
                notional_by_symbol={symbol: held.notional_usd for symbol, held in report.holdings.items()},
                pnl_usd=report.pnl_usd,
                working_orders=report.working_orders,
            )
            for name, report in self.reports.items()
        ]
        return add_up(reports, self.nodes)


def read_roster(store: Store, keys: Keys) -> NodeRoster:
    """Read who is known, who is live and what each holds: one scan each, nodes last.

    Nodes are read last so that a node registered while this runs is in the result rather than forgotten.

    Raises:
        StoreError: the store did not answer or refuses.
    """
    reports = read_family(store, keys, "reports", ReportRecord)
    live = read_family(store, keys, "live", LiveRecord)
    nodes = read_family(store, keys, "nodes", NodeRecord)
    return NodeRoster(
        nodes={name: record for name, (record, _) in nodes.items()},
        live={name: record for name, (record, _) in live.items()},
        reports={name: record for name, (record, _) in reports.items() if record is not None},
        report_versions={name: version for name, (_, version) in reports.items()},
    )


def read_family(store: Store, keys: Keys, family: str, model: type[R]) -> dict[str, tuple[R | None, int]]:
    """Read every record of a family, by node, with its version; ``None`` for one that cannot be read.

    Raises:
        StoreError: the store did not answer or refuses.
    """
    prefix = keys.under(family)
    found: dict[str, tuple[R | None, int]] = {}
    for entry in store.scan(prefix):
        try:
            record: R | None = read_of_node(model, entry)
        except UnreadableRecord as error:
            log.error("record_unreadable", key=entry.key, error=str(error))
            record = None
        found[entry.key.removeprefix(prefix)] = (record, entry.version)
    return found


def read_of_node(model: type[R], entry: Entry) -> R:
    """Read a record that stands under its node's name; one that speaks of another node proves nothing of either.

    Raises:
        UnreadableRecord: it cannot be read, or names another node than its key does.
    """
    record = model.from_bytes(entry.value, key=entry.key)
    named, own = getattr(record, "node", None), entry.key.rpartition("/")[2]
    if named != own:
        raise UnreadableRecord(f"key {entry.key} cannot be read (node: it speaks of {named!r}, not of {own!r})")
    return record
