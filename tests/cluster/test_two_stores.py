"""One cluster in two stores: a freeze in any freezes, a release must be in all, a store that is down opens nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.core.permit import expiry_bound_ms, worst_case
from tests.cluster.lab import FAULT_FACTOR, TIMING, Lab
from tests.cluster.router import Router
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

PERMIT_S = expiry_bound_ms(TIMING.permit_ttl_ms, TIMING.clock_rate_ratio) / 1000
REACHABLE_S = worst_case(TIMING).reachable_ms / 1000


def freeze_in(lab: Lab, number: int) -> str:
    """Freeze by an operator who reaches one store only; returns the cause's id."""
    address = lab.stores[number].client_url
    done = lab.run("--store", address, "-o", "json", "freeze", "--reason", "a test", "--no-wait", expect=3, only=True)
    return str(done.json["freeze"]["id"])


def release_in(lab: Lab, number: int) -> None:
    """Release everything in one store only."""
    epoch = lab.clusters[number].read_flag().flag.epoch
    lab.run(
        "--store", lab.stores[number].client_url, "release", "--epoch", str(epoch), "--reason", "a test", "--yes",
        only=True, expect=None,
    )  # fmt: skip


def test_both_stores_are_told_and_the_proof_is_one(make_lab: Callable[..., Lab]) -> None:
    """ONE VOICE FREEZES, PROOF, NOT HOPE: one freeze with one id in both stores, one certificate, one release."""
    lab = make_lab(stores_count=2)
    for node in ("n1", "n2"):
        lab.start_agent(node)
    router = Router(lab, "n1", "r1", working=3)
    for cluster in lab.clusters:
        wait_until(lambda c=cluster: c.membership().exposure().working_orders == 3, what="the report")
    frozen = lab.freeze("the edge is gone").json
    for cluster in lab.clusters:
        assert cluster.read_flag().flag.freeze_ids() == {frozen["freeze"]["id"]}
    certificate = frozen["certificate"]
    assert (certificate["stopped"], certificate["flat"]) == (True, True)
    assert [line["node"] for line in certificate["nodes"]] == ["n1", "n2"]
    assert sum(line["orders_cancelled"] for line in certificate["nodes"]) == 3
    assert [entry["epoch"] for entry in frozen["stores"]] == [2, 2]
    lab.release()
    wait_until(lambda: lab.is_open("n1") and lab.is_open("n2"), what="trading to resume")
    status = lab.run("-o", "json", "status").json
    assert (status["mode"], [store["epoch"] for store in status["stores"]]) == ("ACTIVE", [3, 3])
    assert lab.run("status").out.count("store etcd://") == 2
    assert "one store at a time; give --store etcd://" in lab.run("nodes", expect=2).err
    router.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_freeze_in_either_store_freezes_and_only_its_release_opens(make_lab: Callable[..., Lab], number: int) -> None:
    """BOUNDED STOP, RELEASE IS FENCED: whichever holds the freeze, the gate closes, and opens when it is gone."""
    lab = make_lab(stores_count=2)
    lab.start_agent("n1")
    freeze_in(lab, number)
    wait_until(lambda: not lab.is_open("n1"), within_s=REACHABLE_S * FAULT_FACTOR + 2, what="the gate to close")
    # The other store gives permits all the while, and opens nothing.
    renewed_from = lab.gate_deadline_ns("n1")
    wait_until(lambda: lab.gate_deadline_ns("n1") > renewed_from, what="permits to go on")
    assert not lab.is_open("n1")
    release_in(lab, number)
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")


def test_a_freeze_in_both_needs_a_release_in_both(make_lab: Callable[..., Lab]) -> None:
    """RELEASE IS FENCED: released in one store alone, the same cause holds the gate closed by the other."""
    lab = make_lab(stores_count=2)
    lab.start_agent("n1")
    lab.freeze("both")
    release_in(lab, 0)
    acks = lab.clusters[0]
    released_epoch = acks.read_flag().flag.epoch
    wait_until(lambda: acks.acks()["n1"].epoch == released_epoch, what="the node to act on the first release")
    assert not lab.is_open("n1")
    assert lab.run("gate", str(lab.gate_path("n1")), expect=None).out.count("fz-") == 1
    # The rest is released by the command that knows both: it lifts what is left, and leaves the other store alone.
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")
    assert [c.read_flag().flag.epoch for c in lab.clusters] == [3, 3]


def test_a_store_that_hangs_stops_neither_the_freeze_nor_its_proof(make_lab: Callable[..., Lab]) -> None:
    """ONE VOICE FREEZES, UNKNOWN IS FROZEN: one store is enough to freeze; without the other no permit is renewed."""
    lab = make_lab(stores_count=2)
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=2)
    wait_until(lambda: lab.clusters[1].membership().exposure().working_orders == 2, what="the report")
    paused = lab.pause_etcd(0)
    done = lab.freeze("while a store hangs")
    assert done.json["certificate"]["stopped"]
    assert done.json["certificate"]["flat"]
    assert "does not have it" in done.err
    assert [entry["epoch"] for entry in done.json["stores"]] == [None, 2]
    status = lab.run("-o", "json", "status", expect=4).json
    assert status["mode"] == "FROZEN"
    assert "did not answer" in status["stores"][0]["error"]
    assert status["stores"][1]["epoch"] == 2
    # A release needs both.
    refused = lab.run("release", "--epoch", "1", "--epoch", "2", "--reason", "x", "--yes", expect=4)
    assert "did not answer" in refused.err
    release_in(lab, 1)
    wait_until(lambda: not lab.has_permit("n1"), within_s=PERMIT_S * FAULT_FACTOR, what="the permit to run out")
    assert not lab.is_open("n1"), "the store that answers has nothing against it, and alone it may not open"
    lab.resume_etcd(paused)
    wait_until(lambda: lab.is_open("n1"), within_s=20, what="trading to resume")
    router.close()


def test_a_store_that_is_wiped_opens_nothing_and_is_told_again(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: an empty store is no permission, though the other store holds no freeze at all."""
    lab = make_lab(stores_count=2)
    lab.start_agent("n1")
    frozen = freeze_in(lab, 1)
    wait_until(lambda: not lab.is_open("n1"), what="the gate to close")
    lab.stores[1].commit({}, {}, [entry.key for entry in lab.stores[1].scan("/killswitch/lab/")])

    def told_again() -> bool:
        entry = lab.stores[1].read(lab.clusters[1].keys.flag)
        return entry is not None and frozen in lab.clusters[1].parse_flag(entry).flag.freeze_ids()

    wait_until(told_again, within_s=15, what="the freeze to be said again")
    assert not lab.is_open("n1")
    assert lab.clusters[0].read_flag().flag.freezes == ()


def test_an_agent_that_cannot_reach_its_second_store_never_opens(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: at the start, too, each store must have said yes once."""
    lab = make_lab(stores_count=2)
    paused = lab.pause_etcd(1)
    lab.start_agent("n1", wait=False)
    wait_until(lambda: "n1" in lab.clusters[0].membership().live, within_s=15, what="n1 to join where it can")
    epoch = lab.clusters[0].read_flag().flag.epoch
    wait_until(lambda: lab.clusters[0].acks().get("n1"), what="its ack of the first store")
    assert lab.clusters[0].acks()["n1"].epoch == epoch
    assert not lab.is_open("n1")
    assert not lab.has_permit("n1"), "not judged yet, and without a permit besides"
    lab.resume_etcd(paused)
    wait_until(lambda: lab.is_open("n1"), within_s=20, what="the gate to open")


def test_a_monitors_freeze_is_told_to_both_and_stays_until_both_have_let_it_go(make_lab: Callable[..., Lab]) -> None:
    """NOTHING IS LOST: what a node finds reaches each store, and one that hangs hears of it when it is back."""
    lab = make_lab(stores_count=2)
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=0)
    paused = lab.pause_etcd(1)
    router.link.request_freeze("edge_collapse", "the edge is gone")
    first = lab.clusters[0]
    wait_until(lambda: first.read_flag().flag.freezes, what="the first store to be told")
    assert not lab.is_open("n1")
    lab.resume_etcd(paused)
    cause = next(iter(first.read_flag().flag.freeze_ids()))
    wait_until(
        lambda: cause in lab.clusters[1].read_flag().flag.freeze_ids(), within_s=15, what="the second to be told"
    )
    lab.release()
    wait_until(lambda: lab.is_open("n1"), within_s=15, what="trading to resume")
    router.close()


def test_a_second_store_can_be_added_to_a_running_cluster(make_lab: Callable[..., Lab]) -> None:
    """NOTHING IS LOST: ``init`` leaves the flag that is there alone, and the node remembers what it knew of it."""
    lab = make_lab(stores_count=2, initialise=False)
    lab.run("--store", lab.stores[0].client_url, "init", only=True)
    frozen = freeze_in(lab, 0)
    said = lab.run("init").out
    assert "exists already in etcd" in said
    assert "is initialised in etcd" in said
    lab.start_agent("n1", wait=False)
    wait_until(lambda: lab.has_permit("n1"), within_s=15, what="n1 to hold a permit of both")
    assert not lab.is_open("n1")
    assert lab.clusters[0].read_flag().flag.freeze_ids() == {frozen}
    lab.release()
    wait_until(lambda: lab.is_open("n1"), within_s=15, what="trading to resume")
    assert lab.run("init", expect=5).err.count("exists already") == 1
