"""What store, venue and routers say at one moment of a demo, and what of it is not as it should be.

The judge is pure: functions over what certificate, venue and routers say. An empty list means: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.cluster.records import CertificateRecord, ClusterViewRecord, HistoryRecord
from killswitch.core.flag import Flag, Freeze
from killswitch.simulation.demo.cluster import DemoCluster
from killswitch.simulation.demo.processes import read_json
from killswitch.simulation.demo.view import NodePicture, Picture
from killswitch.simulation.venue_client import VenueOperator

RULES = ("drawdown", "gross_notional")
"""Triggers of the rules that the fall of the price may trip."""


class DidNotHappen(Exception):
    """Something that should have happened did not; the message says what, in a sentence."""


# ---- what is said


def everybody_is_there(cluster: Cluster, venue: VenueOperator, setup: DemoCluster) -> bool:
    """Tell whether a coordinator leads, every node is active with all its routers, and the venue hears each router."""
    if cluster.leader() is None:
        return False
    membership = cluster.membership()
    for node in setup.nodes:
        report = membership.reports.get(node)
        if node not in membership.live or report is None or report.mode != "ACTIVE":
            return False
        if sum(router.state == "live" for router in report.routers) < len(setup.routers(node)):
            return False
    owners = venue.summary()["owners"]
    return all(owners.get(name, {}).get("connected") for name in setup.routers())


def read_flag(cluster: Cluster) -> Flag:
    """Read the flag.

    Raises:
        DidNotHappen: there is none.
    """
    try:
        return cluster.read_flag().flag
    except NotInitialised as error:
        raise DidNotHappen(str(error)) from error


def read_certificate(cluster: Cluster) -> CertificateRecord | None:
    """Read the leader's certificate for the flag as it stands, ``None`` before there is one. It may not be final."""
    entry = cluster.store.read(cluster.keys.certificate(read_flag(cluster).epoch))
    return None if entry is None else CertificateRecord.from_bytes(entry.value, key=entry.key)


def read_history_entry(cluster: Cluster, epoch: int) -> HistoryRecord:
    """Read one entry of the flag's history.

    Raises:
        DidNotHappen: there is none.
    """
    entry = cluster.store.read(cluster.keys.history(epoch))
    if entry is None:
        raise DidNotHappen(f"the history has no entry for epoch {epoch}")
    return HistoryRecord.from_bytes(entry.value, key=entry.key)


def read_view(cluster: Cluster) -> ClusterViewRecord | None:
    """Read the cluster's exposure as the leader last wrote it, ``None`` before it has."""
    entry = cluster.store.read(cluster.keys.view)
    return None if entry is None else ClusterViewRecord.from_bytes(entry.value, key=entry.key)


def read_stats(setup: DemoCluster, node: str | None = None) -> dict[str, dict[str, Any]]:
    """Read the counters of every router of one node, or of all, by its name."""
    return {name: read_json(setup.stats(name)) for name in setup.routers(node)}


def newest_arrival_ns(owners: Mapping[str, Any], routers: Sequence[str], since_ns: int) -> int:
    """When the last order of some routers was accepted, by the venue's clock; ``since_ns`` when none was since."""
    return max([since_ns, *(int(owners[name]["last_accepted_at_ns"] or 0) for name in routers)])


def take_picture(cluster: Cluster, venue: VenueOperator, setup: DemoCluster, killed_agent: str | None) -> Picture:
    """Put together what a view shows. ``killed_agent`` is the node whose agent has been killed by now."""
    seen = venue.summary()
    reports = cluster.membership().reports
    pictures = []
    for node in setup.nodes:
        routers, report = setup.routers(node), reports.get(node)
        stats = read_stats(setup, node).values()
        killed = node == killed_agent
        pictures.append(
            NodePicture(
                node,
                "killed" if killed else "running",
                "no permit" if killed else (report.mode if report else ""),
                sum(int(seen["owners"].get(name, {}).get("open", 0)) for name in routers),
                report.gross_usd if report else 0.0,
                report.pnl_usd if report else 0.0,
                sum(int(body.get("sent", 0)) for body in stats),
                sum(refused_attempts(body) for body in stats),
            )
        )
    tape = seen["tape"]
    where = f"{tape['label'] or 'not begun'}{' (holding)' if tape['holding'] else ''}"
    share = tape["played"] / max(1, tape["length"])
    return Picture(where, share, tape["prices_usd"], pictures, setup.limits)


# ---- the judge


def freeze_faults(freeze: Freeze) -> list[str]:
    """Return why a freeze does not come from a rule of the coordinator."""
    faults = []
    if not freeze.actor.startswith("coordinator:"):
        faults.append(f"the freeze came from {freeze.actor}, not from a coordinator")
    if freeze.trigger not in RULES:
        faults.append(f"the freeze has the trigger {freeze.trigger}, not {' or '.join(RULES)}")
    return faults


def certificate_faults(certificate: Mapping[str, Any], nodes: Sequence[str], killed: str | None) -> list[str]:
    """Return what a certificate does not say that it should.

    Every node with a living agent has acked with nothing left working. The node whose agent was killed is stopped by
    its permit and not proven flat: its orders are gone, but nobody is there to say so.
    """
    lines = {line["node"]: line for line in certificate["nodes"]}
    faults = [f"node {node} is not in the certificate" for node in nodes if node not in lines]
    for node in (node for node in nodes if node in lines):
        state, flat = lines[node]["state"], lines[node]["flat"]
        if node == killed:
            if state != "PERMIT_EXPIRED" or flat:
                faults.append(f"node {node} should be PERMIT_EXPIRED and not proven flat; it is {state}, flat {flat}")
        elif state != "ACKED" or not flat:
            faults.append(f"node {node} should be ACKED and flat; it is {state}, flat {flat}")
    if not certificate["stopped"]:
        faults.append("the certificate does not say that every node has stopped")
    return faults


def sequence_faults(
    certificate: Mapping[str, Any], owners: Mapping[str, Any], routers: Mapping[str, Sequence[str]]
) -> list[str]:
    """Compare the last sequence numbers that nodes stated with those that arrived at the venue.

    Args:
        certificate: the certificate.
        owners: what the venue's record says of each router.
        routers: names of the routers of each node.
    """
    faults = []
    for line in certificate["nodes"]:
        arrived = [owners[name]["last_sequence"] for name in routers.get(line["node"], ()) if name in owners]
        newest = max((sequence for sequence in arrived if sequence is not None), default=None)
        if line["state"] == "ACKED" and line["last_sequence"] != newest:
            faults.append(
                f"node {line['node']} says that its last sequence number is {line['last_sequence']}, the venue's "
                f"record says {newest}"
            )
    return faults


def closing_faults(record: Mapping[str, Any], stats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare the venue's record of the whole run with what the order routers counted, after they have ended.

    Args:
        record: the venue's last summary, empty when it did not answer.
        stats: counters of each router.
    """
    if not record:
        return ["the venue did not answer at the end, so nothing confirms what the routers counted"]
    faults = [
        f"the venue counted {record[name]} {name.replace('_', ' ')}"
        for name in ("sequence_faults", "duplicates", "open_orders")
        if record[name]
    ]
    for name, counters in stats.items():
        counted, arrived = counters.get("last_sequence"), record["owners"][name]["last_sequence"]
        if counted != arrived:
            faults.append(f"router {name} counted to sequence number {counted}, the venue's record to {arrived}")
    return faults


def refused_by_gate(stats: Mapping[str, Any]) -> int:
    """Attempts of a router that its gate refused. Its other controls refuse, too, and say nothing of a freeze."""
    return int(stats.get("refused", {}).get("gate", 0))


def refused_attempts(stats: Mapping[str, Any]) -> int:
    """Attempts of a router that were refused before anything was sent."""
    return sum(int(count) for cause, count in stats.get("refused", {}).items() if cause != "venue")
