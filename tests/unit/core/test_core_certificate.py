"""PROOF, NOT HOPE: what a certificate may say, and what it must never say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.core.certificate import Certificate, KnownNode, NodeProof, Proof, SeenAck, certify

LAW = settings(deadline=None, max_examples=200)
RATIO = 1.05
EPOCH = 5


def an_ack(**named: Any) -> SeenAck:
    """An ack that proves all there is to prove of freeze f1 at epoch 5."""
    values = {
        "epoch": EPOCH,
        "freeze_ids": frozenset({"f1"}),
        "seen_after_ms": 3.25,
        "complete": True,
        "orders_cancelled": 4,
        "orders_open": 0,
        "last_sequence": 17,
    }
    return SeenAck(**{**values, **named})


def a_certificate(
    nodes: list[KnownNode], acks: dict[str, SeenAck], *, waited_ms: float = 0.0, commit_ms: float = 10.0
) -> Certificate:
    """The certificate of freeze f1 at epoch 5."""
    return certify(
        epoch=EPOCH,
        freeze_ids=["f1"],
        nodes=nodes,
        acks=acks,
        since_commit_returned_ms=waited_ms,
        elapsed_ms=commit_ms + waited_ms,
        clock_rate_ratio=RATIO,
    )


def the_line(certificate: Certificate) -> NodeProof:
    """Its only line."""
    (line,) = certificate.nodes
    return line


N1 = KnownNode("n1", 2_000, working_orders=3)


def test_an_ack_proves_a_node_from_the_moment_it_was_seen_here() -> None:
    """PROOF, NOT HOPE: an ack says ACKED with the time seen here, orders cancelled and the last sequence number."""
    line = the_line(a_certificate([N1], {"n1": an_ack()}))
    assert line == NodeProof("n1", Proof.ACKED, 3.25, 4, 0, 17, flat=True, note="")


@pytest.mark.parametrize(
    "ack",
    [
        an_ack(epoch=EPOCH - 1),
        an_ack(freeze_ids=frozenset()),
        an_ack(freeze_ids=frozenset({"f2"})),
        an_ack(epoch=EPOCH + 1, freeze_ids=frozenset({"f2"})),
    ],
    ids=["older epoch", "no cause", "another cause", "newer epoch without the cause"],
)
def test_an_ack_of_something_else_proves_nothing(ack: SeenAck) -> None:
    """PROOF, NOT HOPE: an ack of an older epoch, or one that does not name the cause, leaves the node UNPROVEN."""
    certificate = a_certificate([N1], {"n1": ack})
    assert the_line(certificate).state is Proof.UNPROVEN
    assert the_line(certificate).gated_ms is None
    assert not certificate.stopped
    assert certificate.stopped_after_ms is None


@pytest.mark.parametrize("ack", [an_ack(epoch=EPOCH + 3), an_ack(freeze_ids=frozenset({"f1", "f2"}))])
def test_an_ack_of_a_later_epoch_that_names_the_cause_counts(ack: SeenAck) -> None:
    """PROOF, NOT HOPE: a node that has gone on to a later flag and still holds the cause has stopped."""
    assert the_line(a_certificate([N1], {"n1": ack})).state is Proof.ACKED


def test_every_cause_of_the_certificate_must_be_named() -> None:
    """PROOF, NOT HOPE: of two freezes made at once an ack must name both."""
    named = {"nodes": [N1], "since_commit_returned_ms": 0.0, "elapsed_ms": 1.0, "clock_rate_ratio": RATIO}
    half = certify(epoch=EPOCH, freeze_ids=["f1", "f2"], acks={"n1": an_ack()}, **named)
    both = an_ack(freeze_ids=frozenset({"f1", "f2"}))
    whole = certify(epoch=EPOCH, freeze_ids=["f1", "f2"], acks={"n1": both}, **named)
    assert (the_line(half).state, the_line(whole).state) == (Proof.UNPROVEN, Proof.ACKED)


def test_an_expired_permit_proves_a_silent_node_stopped_but_not_flat() -> None:
    """PROOF, NOT HOPE: once every permit has run out a silent node has stopped; its orders stay unproven."""
    certificate = a_certificate([N1], {}, waited_ms=2_100.0)
    line = the_line(certificate)
    assert (line.state, line.gated_ms, line.orders_open, line.flat) == (Proof.PERMIT_EXPIRED, 2_110.0, 3, False)
    assert certificate.stopped
    assert not certificate.flat
    assert certificate.stopped_after_ms == 2_110.0


def test_the_expiry_bound_counts_from_the_commits_return_times_the_clock_ratio() -> None:
    """BOUNDED STOP: not from the commit's start, and not without the tolerated clock rate: 2000 ms * 1.05."""
    just_before = a_certificate([N1], {}, waited_ms=2_099.999, commit_ms=5_000.0)
    assert the_line(just_before).state is Proof.UNPROVEN
    assert "stops by itself 2100 ms after the commit" in the_line(just_before).note
    at_it = a_certificate([N1], {}, waited_ms=2_100.0, commit_ms=5_000.0)
    assert the_line(at_it).state is Proof.PERMIT_EXPIRED
    assert the_line(at_it).gated_ms == 7_100.0


@pytest.mark.parametrize("waited_ms", [0.0, 1e6, 1e15])
def test_a_node_whose_permit_time_is_unknown_stays_unproven_for_ever(waited_ms: float) -> None:
    """PROOF, NOT HOPE: nothing follows from waiting when it is unknown how long the node's permits last."""
    certificate = a_certificate([KnownNode("n1", None, working_orders=0)], {}, waited_ms=waited_ms)
    assert the_line(certificate).state is Proof.UNPROVEN
    assert the_line(certificate).note == "its record cannot be read, so its permit time is unknown"
    assert not certificate.stopped


def test_a_node_whose_permit_time_is_unknown_can_still_ack() -> None:
    """PROOF, NOT HOPE: what the node says itself needs no permit time."""
    assert the_line(a_certificate([KnownNode("n1", None)], {"n1": an_ack()})).state is Proof.ACKED


@pytest.mark.parametrize(
    ("ack", "note"),
    [
        (an_ack(complete=False), "cancelling"),
        (an_ack(orders_open=1), "working orders not proven cancelled"),
        (an_ack(complete=False, orders_open=2), "cancelling"),
    ],
)
def test_stopped_is_not_flat(ack: SeenAck, note: str) -> None:
    """PROOF, NOT HOPE: a closed gate with working orders, or with routers that have not answered, is not flat."""
    certificate = a_certificate([N1], {"n1": ack})
    assert certificate.stopped
    assert not certificate.flat
    assert the_line(certificate).note == note


def test_one_unproven_node_among_many_spoils_the_certificate() -> None:
    """PROOF, NOT HOPE: stopped means every known node, also the one that says nothing."""
    nodes = [KnownNode(f"n{number}", 2_000) for number in range(4)]
    acks = {f"n{number}": an_ack() for number in range(3)}
    assert not a_certificate(nodes, acks).stopped
    assert a_certificate(nodes, {**acks, "n3": an_ack()}).stopped


def test_an_ack_of_an_unknown_node_makes_no_line() -> None:
    """PROOF, NOT HOPE: the list of nodes decides who must be proven, not who happens to speak."""
    certificate = a_certificate([N1], {"n2": an_ack()})
    assert [line.node for line in certificate.nodes] == ["n1"]
    assert not certificate.stopped


def test_a_cluster_without_nodes_has_stopped() -> None:
    """A certificate over no node is true, and says that the last gate was closed after nothing."""
    certificate = a_certificate([], {})
    assert (certificate.stopped, certificate.flat, certificate.stopped_after_ms) == (True, True, 0.0)


def test_stopped_after_is_the_last_gate() -> None:
    """PROOF, NOT HOPE: the cluster stopped when its last gate did."""
    nodes = [KnownNode("n1", 2_000), KnownNode("n2", 2_000)]
    acks = {"n1": an_ack(seen_after_ms=5.0), "n2": an_ack(seen_after_ms=80.0)}
    assert a_certificate(nodes, acks).stopped_after_ms == 80.0


def test_the_json_of_a_certificate_keeps_its_keys() -> None:
    """The versioned JSON has exactly these keys, with times rounded to microseconds."""
    body = a_certificate([N1], {"n1": an_ack(seen_after_ms=3.2500004)}).to_json()
    assert body == {
        "epoch": 5,
        "freezes": ["f1"],
        "stopped": True,
        "flat": True,
        "elapsed_ms": 10.0,
        "stopped_after_ms": 3.25,
        "nodes": [
            {
                "node": "n1",
                "state": "ACKED",
                "gated_ms": 3.25,
                "orders_cancelled": 4,
                "orders_open": 0,
                "last_sequence": 17,
                "flat": True,
                "note": "",
            }
        ],
    }


# -- laws ------------------------------------------------------------------------------------------------------------

NODES = st.lists(
    st.builds(
        KnownNode,
        node=st.sampled_from(["n1", "n2", "n3", "n4"]),
        permit_ttl_ms=st.none() | st.integers(1, 5_000),
        working_orders=st.none() | st.integers(0, 9),
    ),
    max_size=4,
    unique_by=lambda known: known.node,
)
ACKS = st.dictionaries(
    st.sampled_from(["n1", "n2", "n3", "n4"]),
    st.builds(
        SeenAck,
        epoch=st.integers(EPOCH - 2, EPOCH + 2),
        freeze_ids=st.frozensets(st.sampled_from(["f1", "f2", "f3"])),
        seen_after_ms=st.floats(0, 10_000),
        complete=st.booleans(),
        orders_cancelled=st.integers(0, 9),
        orders_open=st.integers(0, 2),
        last_sequence=st.none() | st.integers(0, 99),
    ),
)
WANTED = st.lists(st.sampled_from(["f1", "f2"]), min_size=1, unique=True)
TIMES = st.floats(0, 12_000)


@LAW
@given(NODES, ACKS, WANTED, TIMES, TIMES)
def test_stopped_is_never_said_of_a_node_with_neither_ack_nor_expired_permit(
    nodes: list[KnownNode], acks: dict[str, SeenAck], wanted: list[str], waited_ms: float, commit_ms: float
) -> None:
    """PROOF, NOT HOPE: stopped is said exactly when each node has acked or can hold no older permit."""
    certificate = certify(
        epoch=EPOCH, freeze_ids=wanted, nodes=nodes, acks=acks, since_commit_returned_ms=waited_ms,
        elapsed_ms=commit_ms + waited_ms, clock_rate_ratio=RATIO,
    )  # fmt: skip

    def acked(node: KnownNode) -> bool:
        ack = acks.get(node.node)
        return ack is not None and ack.epoch >= EPOCH and set(wanted) <= ack.freeze_ids

    def expired(node: KnownNode) -> bool:
        ack = acks.get(node.node)
        released = ack is not None and ack.epoch > EPOCH
        return not released and node.permit_ttl_ms is not None and waited_ms >= node.permit_ttl_ms * RATIO

    assert certificate.stopped is all(acked(node) or expired(node) for node in nodes)
    assert [line.node for line in certificate.nodes] == sorted(node.node for node in nodes)
    assert certificate.flat is all(
        acked(node) and acks[node.node].complete and acks[node.node].orders_open == 0 for node in nodes
    )
    assert not certificate.flat or certificate.stopped
    assert (certificate.stopped_after_ms is not None) is certificate.stopped


@LAW
@given(NODES, ACKS, TIMES, TIMES)
def test_what_is_proven_stays_proven_while_time_passes(
    nodes: list[KnownNode], acks: dict[str, SeenAck], waited_ms: float, longer_ms: float
) -> None:
    """PROOF, NOT HOPE: waiting longer never takes a proof back, nor makes its time another."""
    early = a_certificate(nodes, acks, waited_ms=waited_ms)
    late = a_certificate(nodes, acks, waited_ms=waited_ms + longer_ms)
    assert late.stopped >= early.stopped
    assert late.flat >= early.flat
    for before, after in zip(early.nodes, late.nodes, strict=True):
        if before.state is not Proof.UNPROVEN:
            assert after.state is before.state
            assert after.gated_ms == pytest.approx(before.gated_ms)
            assert dataclasses.replace(after, gated_ms=before.gated_ms) == before


def test_a_freeze_that_was_lifted_meanwhile_proves_nothing_of_who_had_not_confirmed_it() -> None:
    """PROOF, NOT HOPE: a node that has taken over the release, or may have, is not called stopped by its old permit."""
    trading = SeenAck(EPOCH + 1, frozenset(), 50.0, complete=True, orders_cancelled=0, orders_open=0, last_sequence=3)
    nodes = [KnownNode("n1", 2_000)]
    by_ack = a_certificate(nodes, {"n1": trading}, waited_ms=60_000.0)
    assert [line.state for line in by_ack.nodes] == [Proof.UNPROVEN]
    assert not by_ack.stopped
    by_flag = certify(
        epoch=EPOCH, freeze_ids=["f1"], nodes=nodes, acks={}, since_commit_returned_ms=60_000.0, elapsed_ms=60_000.0,
        clock_rate_ratio=RATIO, released=True,
    )  # fmt: skip
    assert not by_flag.stopped
    assert "lifted" in by_flag.nodes[0].note
