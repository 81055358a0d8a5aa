"""Forgetting a node of a running cluster: nobody else stops, and the node that comes back is a new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.lab import FAULT_FACTOR, TIMING, Lab, Process
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

WITHIN_S = FAULT_FACTOR * TIMING.permit_ttl_ms / 1000


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A cluster with two nodes that trade."""
    made = make_lab()
    for node in ("n1", "n2"):
        made.start_agent(node)
    return made


def lose(lab: Lab, node: str) -> Process:
    """Kill a node's agent, and wait until its lease has run out."""
    process = lab.processes[node]
    process.kill()
    wait_until(lambda: node not in lab.cluster.membership().live, within_s=20, what=f"the lease of {node} to run out")
    return process


def test_a_lost_node_is_forgotten_while_the_others_trade(lab: Lab) -> None:
    """PROOF, NOT HOPE: it is in the certificates until a person forgets it; nobody else's gate closes or opens."""
    assert lab.run("nodes", "forget", "n2", "--yes", expect=5).err.count("is alive") == 1
    lose(lab, "n2")
    certificate = lab.freeze(expect=3).json["certificate"]
    assert {line["node"]: line["state"] for line in certificate["nodes"]} == {"n1": "ACKED", "n2": "PERMIT_EXPIRED"}
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="n1 to trade again")

    body = lab.run("-o", "json", "nodes", "forget", "n2", "--yes", "--reason", "sold").json
    assert (body["schema"], body["node"], body["epoch"]) == ("killswitch.forget/1", "n2", 4)
    assert body["forgotten"]["report"]["node"] == "n2"
    assert lab.is_open("n1")
    wait_until(lambda: lab.cluster.acks()["n1"].epoch == 4, within_s=WITHIN_S, what="n1 to take the new epoch over")
    assert lab.is_open("n1")
    assert list(lab.cluster.membership().nodes) == ["n1"]
    certificate = lab.freeze().json["certificate"]
    assert [line["node"] for line in certificate["nodes"]] == ["n1"]
    assert "verified: 5 entries" in lab.run("history", "--verify").out


def test_a_forgotten_node_that_is_started_again_registers_before_its_gate_opens(lab: Lab) -> None:
    """PROOF, NOT HOPE: it comes back as a new node; there is no moment with an open gate and no record."""
    lose(lab, "n2")
    lab.run("nodes", "forget", "n2", "--yes")
    assert not lab.is_open("n2")
    lab.start(*("n2", *lab.agent_words("n2")))
    wait_until(lambda: lab.is_open("n2"), within_s=15, what="the gate of n2 to open")
    # Written before its first permit, and nobody deletes it: read after the gate was seen open, it must be there.
    assert lab.cluster.membership().nodes.get("n2") is not None
    assert {line["node"] for line in lab.freeze().json["certificate"]["nodes"]} == {"n1", "n2"}


def test_an_agent_that_only_slept_is_in_the_books_again(lab: Lab) -> None:
    """A node that was taken for dead, and was paused: forgotten, it registers again and is in the next certificate."""
    sleeper = lab.processes["n2"]
    sleeper.pause()
    wait_until(lambda: "n2" not in lab.cluster.membership().live, within_s=20, what="the lease of n2 to run out")
    assert not lab.is_open("n2")
    lab.run("nodes", "forget", "n2", "--yes")
    sleeper.resume()
    wait_until(lambda: lab.is_live("n2", sleeper.pid), within_s=15, what="n2 to join again")
    wait_until(lambda: lab.cluster.membership().nodes.get("n2"), within_s=15, what="n2 to register again")
    wait_until(lambda: lab.is_open("n2"), within_s=15, what="the gate of n2 to open")
    assert {line["node"] for line in lab.freeze().json["certificate"]["nodes"]} == {"n1", "n2"}
