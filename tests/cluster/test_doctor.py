"""The doctor on a real etcd with a real agent: what an operator hears in each state of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from killswitch.doctor.servers import FORGETFUL_ETCD
from tests.cluster.lab import Lab
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


def warns_of_etcd(finding: dict[str, Any]) -> bool:
    """Said of the etcd from PyPI, and alone makes exit code 1 of 0; an etcd on the PATH may be a newer one."""
    return finding["severity"] == "warning" and "can forget commits" in finding["sentence"]


def warns_of_slow_reads(finding: dict[str, Any]) -> bool:
    """Said when one read of twenty took half of its time: on a busy machine no fault of the cluster."""
    return finding["severity"] == "warning" and finding["topic"] == "reads"


def examined(lab: Lab, exit_code: int) -> dict[str, Any]:
    """What the doctor says with the gate of n1, by topic: the worst of each."""
    # By its own name the store is known to be one server on purpose, which is a note there and a warning elsewhere.
    words = ("--store", lab.store.address, "-o", "json", "doctor", "--node-gate", str(lab.gate_path("n1")))
    ran = lab.run(*words, expect=None, only=True)
    body = ran.json
    assert body["schema"] == "killswitch.doctor/1"
    old_etcd = any(warns_of_etcd(finding) for finding in body["findings"])
    assert old_etcd == any(FORGETFUL_ETCD.match(one["version"]) for one in body["stores"])
    others = [one for one in body["findings"] if not (warns_of_etcd(one) or warns_of_slow_reads(one))]
    warned = len(others) < len(body["findings"])
    assert ran.code == (exit_code or int(warned)), f"exit {ran.code}\n{ran.out}\n{ran.err}"
    worst: dict[str, Any] = {}
    for finding in others:
        worst.setdefault(finding["topic"], (finding["severity"], finding["sentence"]))
    return {**worst, "json": body}


@pytest.mark.timeout(180)  # its look at a store that hangs waits a quarter of a minute for an embedded one to start
def test_the_doctor_tells_the_states_of_a_cluster_apart(make_lab: Callable[..., Lab]) -> None:
    """Not initialised, healthy, frozen, store hanging, agent dead: each is told by what it means and what to do."""
    lab = make_lab(initialise=False)
    found = examined(lab, 1)
    assert found["flag"][0] == "fault"
    assert "`killswitch --cluster lab init`" in found["flag"][1]
    assert found["gate"][0] == "fault"

    lab.run("init")
    lab.start_coordinator("c1")
    agent = lab.start_agent("n1")
    wait_until(lambda: lab.cluster.leader() is not None, what="a leader")
    found = examined(lab, 0)
    body = found.pop("json")
    assert {severity for severity, _ in found.values()} <= {"ok", "note"}
    (one,) = body["stores"]
    assert (one["reads"]["count"], one["writes"]["count"], one["watch"]["error"]) == (20, 20, "")
    assert one["version"]
    assert body["machine"]["gate"]["writer_pid"] == agent.pid
    assert found["leader"] == ("ok", "c1 leads in term 1")
    assert lab.cluster.store.scan(lab.cluster.keys.under("doctor")) == []

    lab.freeze()
    assert "1 freeze in force at epoch 2" in examined(lab, 0)["flag"][1]

    pid = lab.pause_etcd()
    try:
        found = examined(lab, 4)
    finally:
        lab.resume_etcd(pid)
    assert found["store"][0] == "fault"
    assert "every gate closes by itself within 1260 ms" in found["store"][1]
    assert found["gate"][1].startswith("node n1: FROZEN") or "is closed" in found["gate"][1]

    agent.kill()
    wait_until(lambda: "n1" not in lab.cluster.membership().live, within_s=20, what="the lease of n1 to run out")
    found = examined(lab, 1)
    assert found["gate"][0] == "fault"
    assert f"its agent (pid {agent.pid}) is gone" in found["gate"][1]
    assert found["nodes"][0] == "warning"
    assert "`killswitch nodes forget n1`" in found["nodes"][1]
    # The same server by its address: nobody says that one member is enough.
    assert "etcd has one member only" in lab.run("doctor", expect=1).out
