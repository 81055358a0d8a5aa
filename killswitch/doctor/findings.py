"""Judges what was measured: pure functions from measurements to findings, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from killswitch.core.permit import Timing, worst_case
from killswitch.doctor.machine_findings import machine_findings
from killswitch.doctor.measurements import ClusterSeen, Examination, RoundTrips, StoreSeen
from killswitch.doctor.servers import server_findings
from killswitch.doctor.verdict import Finding, Severity

NEAR_MEDIAN = 0.25
"""Half of all reads above this part of the request time-out leave little room for a bad moment."""
NEAR_MAX = 0.5
"""A single read above this part of it was such a moment."""

KEPT = {
    "linearizable_reads": "linearizable reads",
    "atomic_multi_key": "atomic commits",
    "survives_failover": "survives a failover",
}
"""What a store declares, in words."""

FAULTS_SHOWN = 3
"""Faults of the history that are told one by one."""

OK, NOTE, WARNING, FAULT = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.FAULT


def judge(seen: Examination) -> list[Finding]:
    """Return everything that was found, the worst first, otherwise in the order store, cluster, machine."""
    found: list[Finding] = []
    for one in seen.stores:
        of_this = store_findings(one.store, seen.timing)
        if one.cluster is not None:
            of_this += cluster_findings(one.cluster, seen.timing)
        found += [replace(finding, store=one.store.address) for finding in of_this]
    # With a fault anywhere no agent starts by these settings, so no bounds follow from them.
    found += settings_findings(seen.settings_faults) or timing_findings(seen.timing)
    found += machine_findings(seen.machine, seen.cluster, seen.timing)
    return sorted(found, key=lambda finding: -finding.severity)


def settings_findings(faults: Sequence[str]) -> list[Finding]:
    """Tell what is wrong with the settings; none where nothing is."""
    if not faults:
        return []
    do = "mend it and ask `killswitch config check`"
    return [Finding(FAULT, "settings", "; ".join(faults), "no agent and no coordinator starts with them", do)]


def timing_findings(timing: Timing) -> list[Finding]:
    """Say what the settings promise, in the words of ``killswitch config check``."""
    bounds = worst_case(timing)
    return [
        Finding(
            OK,
            "timing",
            f"every router stops within {bounds.reachable_ms:.0f} ms of a freeze where its node reaches the store, or "
            f"by itself within {bounds.unreachable_ms:.0f} ms",
        )
    ]


# -- the store -------------------------------------------------------------------------------------------------------


def store_findings(seen: StoreSeen, timing: Timing) -> list[Finding]:
    """Judge a store."""
    bound_ms = worst_case(timing).unreachable_ms
    if seen.error:
        why = f"no permit is renewed without it, so every gate closes by itself within {bound_ms:.0f} ms"
        do = "look at its credentials and rights" if seen.answers else "start it, or mend its address or the network"
        return [Finding(FAULT, "store", seen.error, why, do)]
    version = f", version {seen.version}," if seen.version else ""
    found = [Finding(OK, "store", f"{seen.address}{version} answers"), *_guarantee_findings(seen)]
    found += server_findings(seen)
    if seen.not_told:
        what = f"the server does not tell how it is set up ({seen.not_told})"
        found.append(Finding(NOTE, "server", what, "a wrong setting would not be seen here"))
    if seen.reads is not None:
        found += _read_findings(seen.reads, timing)
    found += _write_findings(seen)
    found += _watch_findings(seen, timing)
    if seen.lease is not None and seen.lease.error:
        why = "no agent can join and no coordinator can lead without one"
        found.append(Finding(FAULT, "lease", f"no lease was granted ({seen.lease.error})", why))
    elif seen.lease is not None and seen.lease.took_ms is not None:
        what = f"a lease of {timing.lease_ttl_ms} ms is granted in {seen.lease.took_ms:.1f} ms"
        found.append(Finding(OK, "lease", what))
    return found


def _guarantee_findings(seen: StoreSeen) -> list[Finding]:
    found = []
    told = seen.guarantees
    linearizable, survives = told.get("linearizable_reads", True), told.get("survives_failover", True)
    if not linearizable and survives:
        # Nothing is ever taken back, and yet a read may be old: it is the reads themselves.
        why = "a permit could be renewed by a flag from before a freeze: no stop is bounded"
        found.append(Finding(FAULT, "promises", "this store's reads may be old", why, "use another store"))
    if not told.get("fenced", True):
        what = "a primary of this store that is cut off goes on answering those who still reach it"
        why = "their permits are renewed by a flag from before a freeze, for as long as that lasts"
        do = "set wait_replicas in the store's URL, so that with the primary it is more than half of all servers"
        found.append(Finding(WARNING, "promises", what, why, do))
    if not told.get("atomic_multi_key", True):
        why = "the flag and its history can come apart"
        found.append(Finding(FAULT, "promises", "this store does not write several keys at once", why))
    if not survives:
        # A note: it is so by the nature of the store that was chosen, and nobody can mend it here.
        what = "a failover of this store can forget a confirmed freeze"
        why = "agents remember it and say it again, but a node that was away would trade until then"
        if not linearizable:
            what += ", and until then reads are linearizable"
        found.append(Finding(NOTE, "promises", what, why))
    if told:
        kept = [words for name, words in KEPT.items() if told.get(name)]
        what = ", ".join([*kept, f"a lease ends at most {told['lease_slack_ms']} ms late"])
        found.append(Finding(OK, "promises", what))
    if seen.note:
        found.append(Finding(NOTE, "promises", seen.note.rstrip(".")))
    return found


def _read_findings(reads: RoundTrips, timing: Timing) -> list[Finding]:
    limit = timing.request_timeout_ms
    if reads.error:
        what = f"a read failed after {reads.count} that succeeded ({reads.error})"
        why = f"a permit lasts {timing.permit_ttl_ms} ms and needs one read in that time"
        return [Finding(FAULT, "reads", what, why, "look at the store and the network")]
    times = _times(reads)
    if reads.p50_ms > NEAR_MEDIAN * limit or reads.max_ms > NEAR_MAX * limit:
        what = f"reads take {times}, near request_timeout_ms ({limit}; a renewal comes every {timing.renew_every_ms})"
        why = "a read that times out is a lost renewal, and a few lost ones in a row close every gate"
        return [Finding(WARNING, "reads", what, why, "mend the store or the network, or give the timing more room")]
    # The last renewal that still comes in time has to succeed.
    spare = int((timing.permit_ttl_ms - reads.max_ms) // timing.renew_every_ms) - 1
    what = (
        f"reads take {times}; a permit lasts {timing.permit_ttl_ms} ms and is renewed every {timing.renew_every_ms} "
        f"ms, so {spare} renewals in a row may fail"
    )
    return [Finding(OK, "reads", what)]


def _write_findings(seen: StoreSeen) -> list[Finding]:
    found = []
    writes = seen.writes
    if writes is not None and writes.error:
        why = "a freeze is a commit, and so are a registration and a report"
        what = f"a commit failed after {writes.count} that succeeded ({writes.error})"
        found.append(Finding(FAULT, "commits", what, why, "look at the store's rights, disk and quorum"))
    elif writes is not None:
        found.append(Finding(OK, "commits", f"commits take {_times(writes)}"))
    if seen.left_behind:
        what = f"the key that the doctor wrote below doctor/ could not be deleted ({seen.left_behind})"
        found.append(Finding(NOTE, "commits", what, "it means nothing to anybody"))
    return found


def _times(trips: RoundTrips) -> str:
    return f"{trips.p50_ms:.1f} ms (median of {trips.count}; slowest {trips.max_ms:.1f} ms)"


def _watch_findings(seen: StoreSeen, timing: Timing) -> list[Finding]:
    if seen.watch is None:
        return []
    if seen.watch.took_ms is None:
        late_ms = worst_case(timing).reachable_ms
        why = f"gates hear of a freeze by their next renewal only, up to {late_ms:.0f} ms later"
        return [Finding(WARNING, "watch", f"the watch is not alive ({seen.watch.error})", why)]
    what = f"a gate that watches closes about {seen.watch.took_ms:.1f} ms after a freeze begins (commit and watch)"
    return [Finding(OK, "watch", what)]


# -- the cluster -----------------------------------------------------------------------------------------------------


def cluster_findings(seen: ClusterSeen, timing: Timing) -> list[Finding]:
    """Judge the cluster in a store."""
    found = [*_flag_findings(seen), *_history_findings(seen)]
    if seen.books_error:
        found.append(Finding(FAULT, "nodes", f"the nodes could not be read ({seen.books_error})"))
    else:
        found += _node_findings(seen, timing)
    if seen.leader_error:
        found.append(Finding(FAULT, "leader", f"who leads could not be read ({seen.leader_error})"))
    elif not seen.leader:
        why = "no rule freezes and no certificate is kept; freeze and release work without one"
        found.append(Finding(WARNING, "leader", "nobody leads", why, "start a coordinator"))
    else:
        found.append(Finding(OK, "leader", f"{seen.leader} leads in term {seen.term}"))
    return found


def _flag_findings(seen: ClusterSeen) -> list[Finding]:
    if seen.flag_error:
        return [Finding(FAULT, "flag", seen.flag_error)]
    if not seen.freezes:
        return [Finding(OK, "flag", f"nothing is frozen at epoch {seen.epoch}")]
    freezes = "1 freeze" if seen.freezes == 1 else f"{seen.freezes} freezes"
    return [Finding(NOTE, "flag", f"{freezes} in force at epoch {seen.epoch}, strictest {seen.mode}",
                    do="`killswitch status` shows them")]  # fmt: skip


def _history_findings(seen: ClusterSeen) -> list[Finding]:
    if seen.history_error:
        return [Finding(FAULT, "history", f"the history could not be verified ({seen.history_error})")]
    if seen.history_faults:
        told = "; ".join(seen.history_faults[:FAULTS_SHOWN])
        more = len(seen.history_faults) - FAULTS_SHOWN
        what = f"the history does not verify ({told}{f'; {more} more' if more > 0 else ''})"
        why = "the store lost data, or somebody changed it behind the cluster's back"
        return [Finding(FAULT, "history", what, why, "keep what `killswitch history --verify` prints")]
    if seen.history_entries is None:
        return []
    entries = "1 entry" if seen.history_entries == 1 else f"{seen.history_entries} entries"
    return [Finding(OK, "history", f"the history verifies ({entries})")]


def _node_findings(seen: ClusterSeen, timing: Timing) -> list[Finding]:
    found = []
    for node in seen.nodes:
        if not node.live:
            why = "what it held last goes on counting, and every certificate names it"
            do = f"start its agent, or, when it is gone for good: `killswitch nodes forget {node.node}`"
            found.append(Finding(WARNING, "nodes", f"node {node.node} is lost", why, do))
        if node.permit_ttl_ms is None:
            why = "its permit time is unknown, so no certificate can prove it stopped while it is silent"
            found.append(Finding(FAULT, "nodes", f"the record of node {node.node} cannot be read", why))
        elif node.permit_ttl_ms != timing.permit_ttl_ms:
            what = f"node {node.node} has permit_ttl_ms {node.permit_ttl_ms}, and here it is {timing.permit_ttl_ms}"
            why = "certificates go by the node's own, people by what they read here"
            found.append(Finding(WARNING, "nodes", what, why, "give the whole cluster one timing"))
    for name in seen.unreadable_reports:
        why = "what it holds is not counted"
        found.append(
            Finding(FAULT, "nodes", f"the report of node {name} cannot be read", why, "is it of another version?")
        )
    live = sum(node.live for node in seen.nodes)
    if not seen.nodes:
        found.append(Finding(NOTE, "nodes", "no node is registered", do="start an agent on each"))
    elif live == len(seen.nodes):
        found.append(Finding(OK, "nodes", f"{live} of {len(seen.nodes)} registered nodes live"))
    return found
