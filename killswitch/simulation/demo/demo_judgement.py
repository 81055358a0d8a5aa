"""The judge of a demo: pure functions over what certificate, venue and routers say. An empty list means: nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from killswitch.core.flag import Freeze

RULES = ("drawdown", "gross_notional")
"""Triggers of the rules that the fall of the price may trip."""


class DidNotHappen(Exception):
    """Something that should have happened did not; the message says what, in a sentence."""


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
