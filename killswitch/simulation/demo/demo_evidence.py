"""What store, venue and routers say at one moment of a demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.cluster.records import CertificateRecord, ClusterViewRecord, HistoryRecord
from killswitch.core.flag import Flag
from killswitch.simulation.demo.demo_cluster import DemoCluster
from killswitch.simulation.demo.demo_judgement import DidNotHappen, refused_attempts
from killswitch.simulation.demo.demo_processes import read_json
from killswitch.simulation.demo.demo_view import NodePicture, Picture
from killswitch.simulation.venue_client import VenueOperator


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
