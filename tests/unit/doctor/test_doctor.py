"""The doctor: what an operator must hear of each thing that can be wrong, and that measuring disturbs nobody."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from killswitch import stores
from killswitch.cli import cli
from killswitch.clock import now_ns
from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import LeaderRecord
from killswitch.core.permit import Timing
from killswitch.doctor.findings import cluster_findings, judge, store_findings, timing_findings
from killswitch.doctor.machine import ClockPair, examine_machine, look_at_directory, look_at_installation, read_gate
from killswitch.doctor.machine_findings import gate_findings, machine_findings
from killswitch.doctor.measurements import (
    Attempt,
    ClusterSeen,
    DirectorySeen,
    Examination,
    GateSeen,
    InstallationSeen,
    MachineSeen,
    NodeSeen,
    RoundTrips,
    StoreExamined,
    StoreSeen,
)
from killswitch.doctor.probes import CALLS, LEASE_TRIES, SLOTS, examine
from killswitch.doctor.servers import server_findings
from killswitch.doctor.verdict import Finding, Severity, worst
from killswitch.gate import GateWriter
from killswitch.stores import open_store
from killswitch.stores.etcd.embedded import FORGETFUL_VERSIONS
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import Store, StoreForbidden
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until
from tests.unit.cluster.test_cluster import a_node, put
from tests.unit.core.test_core_flag import AT, a_freeze

TIMING = Timing()
GIB = 1024**3
OK, NOTE, WARNING, FAULT = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.FAULT

ETCD = StoreSeen(
    address="etcd://h:2379",
    answers=True,
    version="3.4.23",
    guarantees={
        "linearizable_reads": True, "survives_failover": True, "atomic_multi_key": True, "fenced": True,
        "lease_slack_ms": 3_000,
    },
    reads=RoundTrips(20, 1.0, 4.0),
    writes=RoundTrips(20, 2.0, 9.0),
    watch=Attempt(2.5),
    lease=Attempt(1.5),
)  # fmt: skip
HEALTHY = ClusterSeen(
    cluster="c", epoch=4, mode="ACTIVE", history_entries=4, nodes=(NodeSeen("n1", True, 2_000),), leader="c1", term=3
)
ROOM = DirectorySeen("/d", exists=True, writable=True, read_only=False, free_bytes=GIB)
OPEN_GATE = GateSeen(
    path="/g", asked_for=True, present=True, cluster="c", node="n1", epoch=4, mode="ACTIVE", permit_ms_left=1_800.0,
    heartbeat_ms_ago=200.0, writer_pid=77, writer_alive=True,
)  # fmt: skip
MACHINE = MachineSeen(
    clock_name="CLOCK_BOOTTIME", clock_note="", clocksource="tsc", stepped_ms=0.1, watched_ms=80.0,
    time_synchronised=True, gate=OPEN_GATE, shared_memory=ROOM, journal=ROOM,
    installation=InstallationSeen("killswitch-cluster 1.0", "/site/killswitch"),
)  # fmt: skip


def bad(findings: list[Finding]) -> list[tuple[str, str]]:
    """Severity and topic of all that is more than a note."""
    return [(finding.severity.word, finding.topic) for finding in findings if finding.severity >= WARNING]


def the_worst(findings: list[Finding]) -> Finding:
    """The first of the worst."""
    return max(findings, key=lambda finding: finding.severity)


# -- what is sound ---------------------------------------------------------------------------------------------------


def test_where_all_is_well_nothing_is_more_than_a_note() -> None:
    """Somebody who looks at a healthy cluster sees no alarm, and sees the bounds that it keeps."""
    found = judge(Examination(TIMING, "c", (StoreExamined(ETCD, HEALTHY),), MACHINE))
    assert worst(found) is OK
    said = " | ".join(finding.sentence for finding in found)
    for part in (
        "etcd://h:2379, version 3.4.23, answers",
        "reads take 1.0 ms (median of 20; slowest 4.0 ms)",
        "so 2 renewals in a row may fail",
        "commits take 2.0 ms",
        "about 2.5 ms after a freeze begins",
        "nothing is frozen at epoch 4",
        "the history verifies (4 entries)",
        "c1 leads in term 3",
        "every router stops within 945 ms of a freeze where its node reaches the store, or by itself within 2100 ms",
        "node n1: ACTIVE at epoch 4, permit 1800 ms left, its agent (pid 77) wrote 200 ms ago",
        "linearizable reads, atomic commits, survives a failover, a lease ends at most 3000 ms late",
    ):
        assert part in said


def test_what_a_store_keeps_is_told_beside_what_it_does_not() -> None:
    """Redis forgets, and reads linearizably all the same: the line of what holds is never left out."""
    redis = {**ETCD.guarantees, "survives_failover": False, "lease_slack_ms": 1_500}
    said = [
        (finding.severity, finding.what)
        for finding in store_findings(dataclasses.replace(ETCD, guarantees=redis), TIMING)
        if finding.topic == "promises"
    ]
    assert said == [
        (NOTE, "a failover of this store can forget a confirmed freeze"),
        (OK, "linearizable reads, atomic commits, a lease ends at most 1500 ms late"),
    ]


@pytest.mark.parametrize(
    ("url", "severity", "says"),
    [
        ("redis+sentinel://h/m", NOTE, "With wait_replicas=1 an old primary that is cut off answers nobody"),
        ("redis+sentinel://h/m?wait_replicas=0", WARNING, "set wait_replicas in the store's URL"),
        ("redis://h", NOTE, "One Redis, and no other to take over"),
        ("zookeeper://h", NOTE, "linearizable reads, atomic commits, survives a failover"),
        ("etcd://h", NOTE, "linearizable reads, atomic commits, survives a failover"),
    ],
)
def test_what_each_store_declares_is_judged_by_what_it_means(url: str, severity: Severity, says: str) -> None:
    """BOUNDED STOP: with its fence Sentinel fails for a freeze that a failover forgets, and that is a note."""
    with open_store(url) as store:
        declared = {field: getattr(store.guarantees, field) for field in ETCD.guarantees}
        seen = dataclasses.replace(ETCD, guarantees=declared, note=store.guarantees.note)
    found = [finding for finding in store_findings(seen, TIMING) if finding.topic == "promises"]
    assert worst(found) is severity
    assert says in " | ".join(finding.sentence for finding in found)


def test_the_bounds_are_those_of_config_check() -> None:
    """One line, said in the same words in both places."""
    printed = CliRunner().invoke(cli, ["config", "check"]).stdout.splitlines()
    assert timing_findings(TIMING)[0].sentence in printed


def test_the_worst_comes_first() -> None:
    """At three in the morning the first line is the one that matters."""
    sick = Examination(
        TIMING, "c", (StoreExamined(ETCD, dataclasses.replace(HEALTHY, leader="", history_faults=("x",))),), MACHINE
    )
    severities = [finding.severity for finding in judge(sick)]
    assert severities == sorted(severities, reverse=True)
    assert severities[:2] == [FAULT, WARNING]


def test_a_finding_says_what_why_and_what_to_do() -> None:
    """One sentence, put together the same way for people and for programs."""
    finding = Finding(WARNING, "nodes", "what", "why", "do", "etcd://h")
    assert finding.sentence == "what: why; do"
    assert Finding(OK, "nodes", "what").sentence == "what"
    assert Finding(OK, "nodes", "what", do="do").sentence == "what; do"
    assert finding.to_json() == {
        "severity": "warning", "topic": "nodes", "sentence": "what: why; do", "store": "etcd://h",
    }  # fmt: skip


# -- the store -------------------------------------------------------------------------------------------------------


def test_a_store_that_does_not_answer_closes_every_gate_and_is_told_so() -> None:
    """BOUNDED STOP: the operator hears how long anybody can still trade."""
    (finding,) = store_findings(StoreSeen(address="a", answers=False, error="it is down"), TIMING)
    assert finding.severity is FAULT
    assert finding.sentence == (
        "it is down: no permit is renewed without it, so every gate closes by itself within 2100 ms; start it, or mend "
        "its address or the network"
    )


def test_a_store_that_refuses_is_a_matter_of_rights() -> None:
    """It answers, so starting it again would not help."""
    (finding,) = store_findings(StoreSeen(address="a", answers=True, error="no"), TIMING)
    assert (finding.severity, finding.do) == (FAULT, "look at its credentials and rights")


@pytest.mark.parametrize(
    ("reads", "severity"),
    [
        (RoundTrips(20, 100.0, 200.0), OK),
        (RoundTrips(20, 101.0, 110.0), WARNING),
        (RoundTrips(20, 1.0, 201.0), WARNING),
        (RoundTrips(7, 1.0, 2.0, "no answer"), FAULT),
    ],
)
def test_reads_near_their_time_out_are_a_warning_and_failing_ones_a_fault(
    reads: RoundTrips, severity: Severity
) -> None:
    """BOUNDED STOP: a permit that is renewed with no room to spare closes healthy gates on a bad day."""
    found = [
        finding
        for finding in store_findings(dataclasses.replace(ETCD, reads=reads), TIMING)
        if finding.topic == "reads"
    ]
    assert [finding.severity for finding in found] == [severity]
    if severity is WARNING:
        assert "near request_timeout_ms (400; a renewal comes every 500)" in found[0].sentence


@pytest.mark.parametrize(
    ("changed", "severity", "topic"),
    [
        ({"writes": RoundTrips(0, 0, 0, "read only")}, FAULT, "commits"),
        ({"watch": Attempt(error="it did not start")}, WARNING, "watch"),
        ({"lease": Attempt(error="refused")}, FAULT, "lease"),
        ({"guarantees": {**ETCD.guarantees, "linearizable_reads": False}}, FAULT, "promises"),
        ({"guarantees": {**ETCD.guarantees, "fenced": False}}, WARNING, "promises"),
        ({"guarantees": {**ETCD.guarantees, "atomic_multi_key": False}}, FAULT, "promises"),
        ({"guarantees": {**ETCD.guarantees, "survives_failover": False}}, NOTE, "promises"),
        ({"note": "look out."}, NOTE, "promises"),
        ({"not_told": "CONFIG is forbidden"}, NOTE, "server"),
        ({"left_behind": "cut off"}, NOTE, "commits"),
    ],
)
def test_each_thing_that_a_store_lacks_is_told(changed: dict[str, Any], severity: Severity, topic: str) -> None:
    """What cannot be done there is told by what it means for a freeze."""
    worst_of = the_worst(store_findings(dataclasses.replace(ETCD, **changed), TIMING))
    assert (worst_of.severity, worst_of.topic) == (severity, topic)


# What real servers told, as `server_settings` of each store puts it: etcd 3.4.23 with three members, Redis 7.0.15
# alone and with two replicas and Sentinels, ZooKeeper 3.8.0 in an ensemble of three.
ETCD_TOLD = {
    "alarms": "none", "database_bytes": "20480", "leader": "99c790924145e4d6", "login_required": "no",
    "member": "99c790924145e4d6", "member_count": "3",
    "members": "etcd-0 (99c790924145e4d6), etcd-1 (5ec58a6d86942688), etcd-2 (2235c64fe6ac68f3)", "raft_term": "2",
    "voting_members": "3",
}  # fmt: skip
REDIS_TOLD = {
    "appendfsync": "always", "appendonly": "yes", "connected_replicas": "0", "maxmemory_policy": "noeviction",
    "min_replicas_to_write": "0", "role": "master", "wait_replicas": "0",
}  # fmt: skip
SENTINEL_TOLD = {**REDIS_TOLD, "connected_replicas": "2", "known_replicas": "2", "wait_replicas": "1"}
ZOOKEEPER_TOLD = {
    "connections": "2", "mode": "follower", "outstanding_requests": "0", "read_only": "false",
    "server": "127.0.0.1:35575", "session_timeout_ms": "10000", "znodes": "13",
}  # fmt: skip
SENTINEL_AT = "redis+sentinel://h:1/m"
TOLD = {
    "etcd": ETCD_TOLD, "embedded": ETCD_TOLD, "redis": REDIS_TOLD, "rediss": REDIS_TOLD,
    "redis+sentinel": SENTINEL_TOLD, "zookeeper": ZOOKEEPER_TOLD, "zookeeper+tls": ZOOKEEPER_TOLD,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "notes"), [("etcd", 1), ("redis", 0), ("redis+sentinel", 0), ("zookeeper", 0)])
def test_what_a_healthy_server_tells_is_nothing_to_worry_about(kind: str, notes: int) -> None:
    """Exit 0 must be within reach: an alarm that never falls silent is not heard."""
    found = server_findings(StoreSeen(address=f"{kind}://h:1", answers=True, settings=TOLD[kind]))
    assert [finding.severity for finding in found if finding.severity > OK] == [NOTE] * notes


@pytest.mark.parametrize(
    ("address", "version", "settings", "severity", "says"),
    [
        ("etcd://h:1", "3.5.0", {}, WARNING, "can forget commits"),
        ("embedded:///d", "3.5.2", {}, WARNING, "can forget commits"),
        ("etcd://h:1", "3.5.3", {}, NOTE, ""),
        ("etcd://h:1", "3.5.16", {}, NOTE, ""),
        ("etcd://h:1", "", {"alarms": "NOSPACE at 8e9e05c52164694d"}, FAULT, "has raised an alarm (NOSPACE"),
        ("etcd://h:1", "", {"alarms": "unknown: no answer"}, NOTE, ""),
        ("etcd://h:1", "", {"member_count": "1", "voting_members": "1"}, WARNING, "one member only"),
        ("etcd://h:1", "", {"member_count": "2", "voting_members": "1"}, WARNING, "one member that votes"),
        ("embedded:///d", "", {"member_count": "1", "voting_members": "1"}, NOTE, "one member only"),
        ("etcd://h:1", "", {"voting_members": "unknown: no answer"}, NOTE, ""),
        ("etcd://h:1", "", {"database_bytes": str(GIB)}, NOTE, "asks for no password"),
        # It may be 8 GiB: the quota is not told, so nothing is wrong as far as anybody can see.
        ("etcd://h:1", "", {"database_bytes": str(2 * GIB)}, NOTE, "has 2048 MiB: at its quota, which it does"),
        ("redis://h:1", "7.0", {"maxmemory_policy": "allkeys-lru"}, FAULT, "set maxmemory-policy noeviction"),
        ("rediss://h:1", "7.0", {"appendonly": "no", "appendfsync": "everysec"}, FAULT, "Redis has appendonly no"),
        (SENTINEL_AT, "", {"appendfsync": "everysec"}, WARNING, "appendfsync always"),
        ("redis://h:1", "", {"connected_replicas": "2"}, WARNING, "set wait_replicas=1 in the store's URL, or name it"),
        ("redis://h:1", "", {"connected_replicas": "2", "wait_replicas": "1"}, OK, "wait_replicas is 1, as it should"),
        (SENTINEL_AT, "", {"connected_replicas": "1"}, WARNING, "1 of the 2 replicas that the Sentinels know"),
        (SENTINEL_AT, "", {"connected_replicas": "1"}, WARNING, "1 replica follows the primary, and so many"),
        (
            SENTINEL_AT, "", {"connected_replicas": "4", "known_replicas": "4"}, WARNING,
            "of 5 servers the primary and 1 are no majority: an old primary that is cut off together with a replica "
            "goes on renewing permits; set wait_replicas=2",
        ),
        # Two away, and it is still the five that decide what a majority is.
        (SENTINEL_AT, "", {"known_replicas": "4"}, WARNING, "of 5 servers the primary and 1 are no majority"),
        (SENTINEL_AT, "", {"min_replicas_to_write": "2"}, WARNING, "2 replicas follow the primary, and so"),
        (SENTINEL_AT, "", {"wait_replicas": "0"}, OK, ""),
        ("zookeeper://h:1", "", {"mode": "read-only", "read_only": "true"}, FAULT, "read-only mode"),
        ("zookeeper+tls://h:1", "", {"mode": "standalone"}, WARNING, "ZooKeeper has one member only: while it is down"),
        ("zookeeper://h:1", "", {"mode": "unknown: add srvr", "read_only": "unknown: add srvr"}, OK, ""),
        ("redis://h:1", "", {"voting_members": "1", "alarms": "NOSPACE"}, OK, ""),
        ("etcd://h:1", "", {"appendonly": "no", "something new": "42"}, NOTE, ""),
        ("memory://m", "", {"appendonly": "no"}, OK, ""),
    ],
)  # fmt: skip
def test_settings_of_a_server_are_judged_by_what_they_do_to_a_freeze(
    address: str, version: str, settings: dict[str, str], severity: Severity, says: str
) -> None:
    """NOTHING IS LOST, BOUNDED STOP: one fact of a healthy server is another, and the operator hears what it means."""
    healthy = TOLD.get(address.partition("://")[0], {})
    seen = StoreSeen(address=address, answers=True, version=version, settings={**healthy, **settings})
    found = server_findings(seen)
    assert worst(found) is severity
    assert says in " ".join(finding.sentence for finding in found)


@pytest.mark.parametrize("scheme", ["etcd", "redis", "redis+sentinel", "zookeeper"])
def test_a_server_that_tells_nothing_of_itself_is_not_judged(scheme: str) -> None:
    """Rights that are narrow are no fault: what is not known leads to no finding."""
    assert server_findings(StoreSeen(address=f"{scheme}://h:1", answers=True)) == []


def test_the_forgetful_versions_are_those_that_the_embedded_store_knows() -> None:
    """One list of versions, in two places that must agree."""
    tried = [f"3.{minor}.{patch}" for minor in (4, 5, 6) for patch in range(30)]
    told = {
        version for version in tried if server_findings(StoreSeen(address="etcd://h", answers=True, version=version))
    }
    assert told == FORGETFUL_VERSIONS


# -- the cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "severity", "topic", "says"),
    [
        ({"flag_error": "there is no flag", "epoch": None}, FAULT, "flag", "there is no flag"),
        ({"freezes": 1, "mode": "FROZEN"}, NOTE, "flag", "1 freeze in force at epoch 4, strictest FROZEN"),
        ({"freezes": 2, "mode": "REDUCE_ONLY"}, NOTE, "flag", "2 freezes in force"),
        ({"history_error": "unreadable"}, FAULT, "history", "could not be verified (unreadable)"),
        ({"history_faults": tuple("abcde")}, FAULT, "history", "does not verify (a; b; c; 2 more)"),
        ({"books_error": "no answer"}, FAULT, "nodes", "could not be read"),
        ({"nodes": (NodeSeen("n2", False, 2_000),)}, WARNING, "nodes", "`killswitch nodes forget n2`"),
        ({"nodes": (NodeSeen("n2", True, 9_000),)}, WARNING, "nodes", "has permit_ttl_ms 9000, and here it is 2000"),
        ({"nodes": (NodeSeen("n2", True, None),)}, FAULT, "nodes", "record of node n2 cannot be read"),
        ({"unreadable_reports": ("n3",)}, FAULT, "nodes", "report of node n3 cannot be read: what it holds is not"),
        ({"nodes": ()}, NOTE, "nodes", "no node is registered"),
        ({"leader": "", "term": None}, WARNING, "leader", "nobody leads"),
        ({"leader_error": "unreadable"}, FAULT, "leader", "who leads could not be read"),
    ],
)
def test_each_thing_that_is_wrong_with_a_cluster_is_told(
    changed: dict[str, Any], severity: Severity, topic: str, says: str
) -> None:
    """What, why it matters, and what to do."""
    finding = the_worst(cluster_findings(dataclasses.replace(HEALTHY, **changed), TIMING))
    assert (finding.severity, finding.topic) == (severity, topic)
    assert says in finding.sentence


# -- this machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "severity", "says"),
    [
        ({"error": "there is no gate page at /g", "present": False}, FAULT, "routers that use it send nothing"),
        ({"present": False, "asked_for": False, "error": "none"}, NOTE, "there is no gate page at /g"),
        ({"present": True, "asked_for": False, "error": "of another boot"}, FAULT, "of another boot"),
        ({"cluster": "other"}, WARNING, "cluster other, not of cluster c"),
        ({"mode": "FROZEN"}, NOTE, "FROZEN at epoch 4"),
        ({"heartbeat_ms_ago": 1_600.0, "permit_ms_left": 400.0}, WARNING, "wrote 1600 ms ago"),
        ({"writer_alive": False}, NOTE, "there is no process 77 here"),
        ({"permit_ms_left": -5_000.0, "writer_alive": False}, FAULT, "ran out 5000 ms ago, and its agent (pid 77) is"),
        ({"permit_ms_left": -9.0, "writer_alive": True}, FAULT, "though its agent (pid 77) is there"),
        ({"permit_ms_left": None, "writer_alive": True}, FAULT, "it never had a permit"),
    ],
)
def test_each_thing_that_is_wrong_with_a_gate_is_told(changed: dict[str, Any], severity: Severity, says: str) -> None:
    """The operator hears whether routers of this machine may trade, and who is to be started or looked at."""
    found = gate_findings(dataclasses.replace(OPEN_GATE, **changed), "c", TIMING)
    assert worst(found) is severity
    assert says in the_worst(found).sentence


@pytest.mark.parametrize(
    ("changed", "severity", "says"),
    [
        ({"clock_note": "no CLOCK_BOOTTIME here"}, WARNING, "no CLOCK_BOOTTIME here"),
        ({"clocksource": "hpet"}, WARNING, "reads the time from hpet"),
        ({"clocksource": ""}, OK, ""),
        ({"stepped_ms": -3_600_000.0}, NOTE, "was stepped by -3600000 ms"),
        ({"time_synchronised": False}, NOTE, "NTP"),
        ({"time_synchronised": None}, OK, ""),
        ({"shared_memory": dataclasses.replace(ROOM, free_bytes=4_096)}, WARNING, "has 4096 bytes left"),
        ({"journal": dataclasses.replace(ROOM, read_only=True)}, FAULT, "takes no writes"),
        ({"journal": dataclasses.replace(ROOM, writable=False)}, NOTE, "may not write the journal"),
        ({"journal": dataclasses.replace(ROOM, exists=False, free_bytes=None)}, OK, ""),
        ({"installation": InstallationSeen("", "/src/killswitch")}, OK, ""),
        (
            {"installation": InstallationSeen("", "/k", {"killswitch-ai 0.2": "killswitch/__init__.py"})},
            FAULT,
            "the distribution killswitch-ai 0.2 owns killswitch/__init__.py, which is a name of killswitch-cluster",
        ),
    ],
)
def test_each_thing_that_is_wrong_with_a_machine_is_told(
    changed: dict[str, Any], severity: Severity, says: str
) -> None:
    """Clocks, memory and disk: what keeps an agent from working, and what only changes times in the history."""
    found = machine_findings(dataclasses.replace(MACHINE, **changed), "c", TIMING)
    assert worst(found) is severity
    assert says in the_worst(found).sentence


# -- the probes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """A store that misbehaves when told to."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex)) as made:
        yield made


@pytest.fixture
def cluster(store: FaultyStore) -> Cluster:
    """A cluster at epoch 1 with a short request time-out."""
    made = Cluster(store, "c", timing=Timing(request_timeout_ms=50))
    made.initialise(actor="a", reason="r")
    return made


def test_examining_a_store_leaves_it_as_it_was(cluster: Cluster, store: FaultyStore) -> None:
    """The doctor disturbs nobody: what it writes is below a key of its own, and gone afterwards."""
    written: list[str] = []
    watch = store.watch("", lambda entry: written.append(entry.key), lambda: None)
    before = store.scan("")
    seen = examine(cluster)
    assert store.scan("") == before
    wait_until(lambda: written, what="the watch to show what the doctor writes")
    watch.close()
    assert all(key.startswith("/killswitch/c/doctor/") for key in written)
    assert seen.store.error == seen.store.left_behind == ""
    assert seen.store.reads is not None
    assert seen.store.writes is not None
    assert (seen.store.reads.count, seen.store.writes.count) == (CALLS, CALLS)
    assert seen.store.watch is not None
    assert seen.store.watch.took_ms is not None
    assert seen.store.lease is not None
    assert seen.store.lease.took_ms is not None


def test_doctors_that_come_again_leave_few_names_behind(cluster: Cluster, store: FaultyStore) -> None:
    """Some stores keep a trace of every name for ever, so a doctor that runs each minute must not invent names."""
    written: set[str] = set()
    watch = store.watch(cluster.keys.under("doctor"), lambda entry: written.add(entry.key), lambda: None)
    for _ in range(3 * SLOTS):
        assert examine(cluster, calls=1).store.left_behind == ""
    watch.close()
    assert 1 < len(written) <= 2 * SLOTS


def test_a_lease_that_another_doctor_holds_is_no_fault(cluster: Cluster, store: FaultyStore) -> None:
    """Two people may look at once: another name is taken."""
    held = [store.hold(cluster.keys.under("doctor", f"lease-{slot}"), b"{}", 60_000) for slot in range(LEASE_TRIES - 1)]
    for _ in range(SLOTS):
        lease = examine(cluster, calls=1).store.lease
        assert lease is not None
        assert lease.error == ""
    for lease_held in held:
        lease_held.keep_alive()


def test_times_are_those_of_the_store(cluster: Cluster, store: FaultyStore) -> None:
    """A store that takes 15 ms for each call is seen to."""
    store.delay(15)
    seen = examine(cluster, calls=3).store
    assert seen.reads is not None
    assert seen.writes is not None
    assert min(seen.reads.p50_ms, seen.reads.max_ms, seen.writes.p50_ms) >= 15


def test_a_store_that_is_cut_off_costs_one_call(cluster: Cluster, store: FaultyStore) -> None:
    """An operator in a hurry does not wait for twenty time-outs."""
    store.cut()
    seen = examine(cluster)
    assert (seen.store.answers, seen.cluster) == (False, None)
    assert "is cut off by the test" in seen.store.error
    assert store.failed_calls == 1


def test_a_store_that_refuses_answers(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusal is no silence: the exit code is another."""

    def refuse(self: FaultyStore, key: str) -> None:
        raise StoreForbidden("these credentials may not")

    monkeypatch.setattr(FaultyStore, "read", refuse)
    seen = examine(cluster)
    assert (seen.store.answers, seen.store.error) == (True, "these credentials may not")


def test_a_silent_watch_is_found_while_calls_work(cluster: Cluster, store: FaultyStore) -> None:
    """BOUNDED STOP: a connection that hangs shows nowhere else."""
    store.silence_watches()
    seen = examine(cluster, calls=2)
    assert seen.store.watch is not None
    assert "did not start within 250 ms" in seen.store.watch.error
    assert bad(store_findings(seen.store, cluster.timing)) == [("warning", "watch")]


def test_writes_that_fail_are_found_while_reads_work(
    cluster: Cluster, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONE VOICE FREEZES: a store that can be read and not written takes no freeze, and nothing else would show it."""

    def refuse(*args: Any, **named: Any) -> int:
        raise StoreForbidden("it is read only")

    monkeypatch.setattr(store, "commit", refuse)
    seen = examine(cluster, calls=2)
    assert seen.store.writes == RoundTrips(0, 0.0, 0.0, "it is read only")
    assert ("fault", "commits") in bad(store_findings(seen.store, cluster.timing))


class _Telling(MemoryStore):
    """A store whose server tells of itself."""

    def server_version(self) -> str:
        return "7.0"

    def server_settings(self) -> dict[str, str]:
        return {"appendonly": "no", "requirepass": "hunter2", "masterauth": "hunter3", "auth enabled": "no"}


class _Crashing(_Telling):
    def server_settings(self) -> dict[str, str]:
        raise AttributeError("isLearner")


def test_secrets_among_the_settings_are_not_shown() -> None:
    """Whatever a server tells, its passwords stay with it."""
    with _Telling(uuid.uuid4().hex) as telling:
        seen = examine(Cluster(telling, "c"), calls=1).store
    assert (seen.version, dict(seen.settings)) == ("7.0", {"appendonly": "no", "auth enabled": "no"})


def test_a_server_that_cannot_be_asked_keeps_nothing_else_from_being_told() -> None:
    """A traceback would hide all that was found out."""
    with _Crashing(uuid.uuid4().hex) as crashing:
        seen = examine(Cluster(crashing, "c"), calls=1).store
    assert (seen.version, seen.not_told) == ("7.0", "isLearner")
    assert seen.lease is not None


def test_the_cluster_is_read_part_by_part(cluster: Cluster, store: FaultyStore) -> None:
    """What cannot be read hides nothing of the rest."""
    keys = cluster.keys
    put(cluster, keys.under("nodes", "n1"), a_node("n1", 9_000))
    put(cluster, keys.under("reports", "n2"), b"?")
    put(cluster, keys.under("nodes", "n3"), b"?")
    put(cluster, keys.leader, LeaderRecord(id="c1", instance="i", term=4, since=AT).to_bytes())
    cluster.freeze(a_freeze(), timeout_ms=1_000)
    seen = examine(cluster, calls=1).cluster
    assert seen is not None
    assert (seen.epoch, seen.mode, seen.freezes, seen.history_entries) == (2, "FROZEN", 1, 2)
    assert seen.nodes == (NodeSeen("n1", False, 9_000), NodeSeen("n3", False, None))
    assert (seen.unreadable_reports, seen.leader, seen.term) == (("n2",), "c1", 4)
    for key in (keys.flag, keys.leader, keys.history(1)):
        put(cluster, key, b"?")
    again = examine(cluster, calls=1).cluster
    assert again is not None
    assert "flag cannot be read" in again.flag_error
    assert "leader cannot be read" in again.leader_error
    assert again.nodes == seen.nodes


def test_a_history_that_cannot_be_read_is_told_beside_the_flag(cluster: Cluster) -> None:
    """NOTHING IS LOST: the flag is sound, and the history is not."""
    put(cluster, cluster.keys.history(1), b"?")
    seen = examine(cluster, calls=1).cluster
    assert seen is not None
    assert (seen.epoch, seen.flag_error) == (1, "")
    assert "history/000000000001 cannot be read" in seen.history_error


def test_a_step_of_the_wall_clock_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of deadlines did not move with it."""
    clocks = ClockPair()
    assert abs(clocks.stepped_ms()) < 50
    real = __import__("time").time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + 3_600_000_000_000)
    assert clocks.stepped_ms() == pytest.approx(3_600_000, abs=50)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[GateWriter]:
    """A gate page that this process writes, with a permit."""
    with GateWriter(tmp_path / "gate", cluster="c", node="n1") as made:
        made.update([], epoch=4, permit_deadline_ns=now_ns() + 60_000_000_000)
        yield made


def test_a_gate_is_read_as_a_router_reads_it(writer: GateWriter, tmp_path: Path) -> None:
    """Who writes it, whether that process is there, and how long the permit lasts."""
    seen = read_gate(str(tmp_path / "gate"), asked_for=True)
    assert (seen.node, seen.cluster, seen.epoch, seen.mode, seen.error) == ("n1", "c", 4, "ACTIVE", "")
    assert (seen.writer_pid, seen.writer_alive) == (os.getpid(), True)
    assert seen.permit_ms_left is not None
    assert 50_000 < seen.permit_ms_left < 60_000


def test_a_gate_of_a_dead_agent_of_another_boot_or_damaged_is_told(tmp_path: Path) -> None:
    """A page proves nothing by being there."""
    path = tmp_path / "gate"
    code = f"from killswitch.gate import GateWriter; GateWriter({str(path)!r}, cluster='c', node='n1')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    dead = read_gate(str(path), asked_for=True)
    assert (dead.writer_alive, dead.permit_ms_left) == (False, None)
    assert bad(gate_findings(dead, "c", TIMING)) == [("fault", "gate")]
    page = bytearray(path.read_bytes())
    page[32:48] = b"another boot id!"
    path.write_bytes(page)
    assert "before this machine started" in read_gate(str(path), asked_for=False).error
    path.write_bytes(b"")
    assert "cannot be used" in read_gate(str(path), asked_for=False).error
    path.unlink()
    missing = read_gate(str(path), asked_for=False)
    assert (missing.present, worst(gate_findings(missing, "c", TIMING))) == (False, NOTE)


def test_a_directory_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    """An agent makes it when it starts; whether it can is what matters."""
    assert look_at_directory(tmp_path).exists
    below = look_at_directory(tmp_path / "a" / "b")
    assert (below.exists, below.writable, below.path) == (False, True, str(tmp_path / "a" / "b"))
    assert below.free_bytes is not None
    assert below.free_bytes > 0


@pytest.mark.parametrize(
    ("file", "is_ours"),
    [
        ("killswitch/__init__.py", True),
        ("killswitch.py", True),
        ("killswitch_agent/agent.py", True),
        ("killswitch_coordinator.py", True),
        ("../../../bin/killswitch", True),
        ("../../Scripts/killswitch.exe", True),
        ("agents/__init__.py", False),
        ("killswitch_stub/__init__.py", False),
        ("other/bin/killswitch_tool", False),
        ("killswitch-0.1.3.dist-info/METADATA", False),
    ],
)
def test_another_distribution_that_owns_a_name_of_ours_is_found(tmp_path: Path, file: str, is_ours: bool) -> None:
    """An import root, a file below one and the command are ours; what only looks alike is not."""
    for name, files in (("Killswitch_Cluster", "killswitch/__init__.py"), ("kin", file), ("third", "third.py")):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text(f"{files},,\n")
    (tmp_path / "damaged-1.0.dist-info").mkdir()
    seen = look_at_installation([str(tmp_path)])
    assert seen.distribution == "killswitch-cluster 1.0"
    assert seen.others == ({"kin 1.0": file} if is_ours else {})


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    """Every probe of the machine works where the tests run."""
    seen = examine_machine(ClockPair(), gate=str(tmp_path / "gate"), gate_asked_for=False, state_dir=str(tmp_path))
    assert seen.clock_name == "CLOCK_BOOTTIME"
    assert seen.journal.writable
    assert worst(machine_findings(seen, "c", TIMING)) <= WARNING


# -- the command -----------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, store: FaultyStore, tmp_path: Path) -> Iterator[Run]:
    """Run the command on the test's own store; closing it is the test's."""
    for name in list(os.environ):
        if name.upper().startswith("KILLSWITCH_"):
            monkeypatch.delenv(name)
    config = tmp_path / "settings.json"
    agent = {"gate": str(tmp_path / "gate"), "state_dir": str(tmp_path)}
    config.write_text(json.dumps({"agent": agent}))

    def opened(*_: Any, **__: Any) -> Store:
        return store

    monkeypatch.setattr(stores, "open_store", opened)
    monkeypatch.setattr(store, "close", lambda: None)

    def invoke(*args: str) -> Result:
        words = ["--config", str(config), "--store", "memory://m", "--cluster", "c", *args]
        result = CliRunner().invoke(cli, words, env={"COLUMNS": "80"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    yield invoke
    monkeypatch.undo()
    structlog.reset_defaults()


def told(result: Result, exit_code: int) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert result.exit_code == exit_code, result.output
    body = json.loads(result.stdout)
    assert body["schema"] == "killswitch.doctor/1"
    return dict(body)


def test_doctor_exits_0_where_nothing_is_wrong(run: Run, cluster: Cluster, writer: GateWriter) -> None:
    """Notes are allowed: a frozen cluster is as it was asked to be."""
    put(cluster, cluster.keys.leader, LeaderRecord(id="c1", instance="i", term=4, since=AT).to_bytes())
    cluster.freeze(a_freeze(), timeout_ms=1_000)
    body = told(run("-o", "json", "doctor"), 0)
    assert body["verdict"] == "note"
    (one,) = body["stores"]
    assert (one["reads"]["count"], one["cluster"]["epoch"]) == (CALLS, 2)
    assert body["machine"]["gate"]["writer_pid"] == os.getpid()
    assert body["worst_case"]["unreachable_ms"] == 2_100.0


def test_doctor_exits_1_with_a_warning_or_a_fault(run: Run) -> None:
    """A script sees that something is wrong without reading sentences."""
    body = told(run("-o", "json", "doctor"), 1)
    assert body["verdict"] == "warning"
    assert any(finding["topic"] == "leader" for finding in body["findings"])


def test_doctor_exits_4_without_the_store_and_tells_all_the_rest(
    run: Run, store: FaultyStore, writer: GateWriter
) -> None:
    """What can be found out without the store is: the gate of this machine, its permit, the bounds."""
    store.cut()
    body = told(run("-o", "json", "doctor"), 4)
    topics = {finding["topic"] for finding in body["findings"]}
    assert {"store", "gate", "timing", "journal"} <= topics
    assert body["findings"][0]["severity"] == "fault"
    assert body["stores"][0]["cluster"] is None
    store.heal()


def test_doctor_says_the_same_words_in_the_table_and_in_json(run: Run) -> None:
    """Whoever is read to over the telephone finds the sentence again; nothing is cut at 80 columns."""
    said = told(run("-o", "json", "doctor"), 1)["findings"]
    lines = run("doctor").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    left = lines[0].index("finding")
    shown = "".join(line[left:] for line in lines[1:-1]).replace(" ", "")
    # Times and free space differ from one run to the next.
    steady = [text for finding in said if " ms" not in (text := finding["sentence"]) and "free" not in text]
    assert len(steady) >= 5
    assert [sentence for sentence in steady if sentence.replace(" ", "") not in shown] == []
    notes = sum(finding["severity"] == "note" for finding in said)
    assert lines[-1] == f"cluster c: 0 faults, 1 warning, {notes} notes"


def test_doctor_prints_what_others_wrote_as_it_stands(run: Run, cluster: Cluster) -> None:
    """Brackets in a name that others gave are no markup, and end no command."""
    put(cluster, cluster.keys.under("nodes", "[/red]"), a_node("[/red]"))
    result = run("doctor")
    assert result.exit_code == 1
    assert "node [/red] is lost" in result.stdout


def test_doctor_looks_at_the_gate_that_is_named(run: Run, tmp_path: Path) -> None:
    """--node-gate: a page that was asked for ought to be there."""
    absent = tmp_path / "nothing-here"
    named = told(run("-o", "json", "doctor", "--node-gate", str(absent)), 1)
    assert named["findings"][0]["sentence"].startswith(f"there is no gate page at {absent}")
    assert named["verdict"] == "fault"


def test_doctor_with_a_store_url_that_is_not_understood_exits_2() -> None:
    """A mistyped URL is a wrong use, as everywhere."""
    result = CliRunner().invoke(cli, ["--store", "nonsense", "doctor"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")


def test_doctor_hides_the_password_of_a_store_that_does_not_answer() -> None:
    """Secrets appear in no output: neither in a sentence nor in JSON."""
    run = [sys.executable, "-m", "killswitch", "--store", "etcd://ann:hunter2@127.0.0.1:1", "-o", "json", "doctor"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode in {2, 4}
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
