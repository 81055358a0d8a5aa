"""The certificate: who is proven to have stopped after a freeze, and who is proven to have nothing working.

``stopped`` and ``flat`` are different promises. A node has *stopped* when its gate is proven closed: it said so
(``ACKED``), or every permit that did not know of the freeze has run out (``PERMIT_EXPIRED``). It is *flat* when it
said, router by router, that no working order in the scope is left. Positions may remain; flat speaks of orders only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from killswitch.core.permit import expiry_bound_ms


class Proof(enum.Enum):
    """What is known of one node."""

    ACKED = "ACKED"
    PERMIT_EXPIRED = "PERMIT_EXPIRED"
    UNPROVEN = "UNPROVEN"


@dataclass(frozen=True, slots=True)
class KnownNode:
    """What the cluster knows of a node without asking it.

    Attributes:
        node: its name.
        permit_ttl_ms: how long its permits last; ``None`` when its record cannot be read, so nothing follows.
        working_orders: working orders in its last report, ``None`` when it never reported.
    """

    node: str
    permit_ttl_ms: int | None
    working_orders: int | None = None


@dataclass(frozen=True, slots=True)
class SeenAck:
    """What a node said, and when that was seen here.

    Attributes:
        epoch: the epoch that its gate shows.
        freeze_ids: the causes that its gate holds closed.
        seen_after_ms: time from the start of the commit until the ack was first seen, on the waiter's clock; an upper
            bound of the time in which the gate closed.
        complete: every router of the node has said how its cancelling went.
        orders_cancelled: working orders cancelled.
        orders_open: working orders in scope not proven cancelled.
        last_sequence: highest sequence number that its routers sent, ``None`` when no router ever sent one.
    """

    epoch: int
    freeze_ids: frozenset[str]
    seen_after_ms: float
    complete: bool
    orders_cancelled: int
    orders_open: int
    last_sequence: int | None


@dataclass(frozen=True, slots=True)
class NodeProof:
    """One line of a certificate; ``gated_ms`` is ``None`` while nothing is proven."""

    node: str
    state: Proof
    gated_ms: float | None
    orders_cancelled: int
    orders_open: int | None
    last_sequence: int | None
    flat: bool
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as JSON values."""
        return {
            "node": self.node,
            "state": self.state.value,
            "gated_ms": None if self.gated_ms is None else round(self.gated_ms, 3),
            "orders_cancelled": self.orders_cancelled,
            "orders_open": self.orders_open,
            "last_sequence": self.last_sequence,
            "flat": self.flat,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof of one freeze, node by node.

    Attributes:
        epoch: epoch that the freeze made.
        freeze_ids: the causes that this certificate is about.
        stopped: every known node's gate is proven closed.
        flat: every known node has proven that no working order in the scope is left.
        elapsed_ms: time from the start of the commit until this certificate, on the waiter's clock.
        nodes: one line per known node, sorted by name.
    """

    epoch: int
    freeze_ids: tuple[str, ...]
    stopped: bool
    flat: bool
    elapsed_ms: float
    nodes: tuple[NodeProof, ...]

    @property
    def stopped_after_ms(self) -> float | None:
        """When the last gate was proven closed; ``None`` while one is not."""
        times = [line.gated_ms for line in self.nodes]
        known = [ms for ms in times if ms is not None]
        return max(known, default=0.0) if len(known) == len(times) else None

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        after = self.stopped_after_ms
        return {
            "epoch": self.epoch,
            "freezes": list(self.freeze_ids),
            "stopped": self.stopped,
            "flat": self.flat,
            "elapsed_ms": round(self.elapsed_ms, 3),
            "stopped_after_ms": None if after is None else round(after, 3),
            "nodes": [line.to_json() for line in self.nodes],
        }


_STRENGTH = {Proof.ACKED: 2, Proof.PERMIT_EXPIRED: 1, Proof.UNPROVEN: 0}


def combine(certificates: Sequence[Certificate]) -> Certificate:
    """Join what several stores prove of the same freeze: a node proven by one of them is proven.

    A gate opens only with a permit of every store and no freeze in any, so one store's proof that it is closed is
    proof. Every node that *any* store knows of has its line.

    Args:
        certificates: at least one; the first names the epoch.
    """
    best: dict[str, NodeProof] = {}
    for line in (line for certificate in certificates for line in certificate.nodes):
        kept = best.get(line.node)
        if kept is None or (_STRENGTH[line.state], line.flat) > (_STRENGTH[kept.state], kept.flat):
            best[line.node] = line
    lines = tuple(best[node] for node in sorted(best))
    return Certificate(
        epoch=certificates[0].epoch,
        freeze_ids=tuple(sorted({name for certificate in certificates for name in certificate.freeze_ids})),
        stopped=all(line.state is not Proof.UNPROVEN for line in lines),
        flat=all(line.flat for line in lines),
        elapsed_ms=max(certificate.elapsed_ms for certificate in certificates),
        nodes=lines,
    )


def certify(
    *,
    epoch: int,
    freeze_ids: Sequence[str],
    nodes: Sequence[KnownNode],
    acks: Mapping[str, SeenAck],
    since_commit_returned_ms: float,
    elapsed_ms: float,
    clock_rate_ratio: float,
    released: bool = False,
) -> Certificate:
    """Say what is proven of each known node.

    Args:
        epoch: epoch that the freeze made.
        freeze_ids: the causes to prove; an ack counts when it names all of them.
        nodes: every node ever registered and not forgotten, read after the commit returned.
        acks: newest ack of each node.
        since_commit_returned_ms: waited since the commit returned; permit expiry is counted from there.
        elapsed_ms: time since the start of the commit.
        clock_rate_ratio: tolerated ratio of clock rates.
        released: the causes are known to be lifted again: whoever has not acked them may be trading by right.
    """
    wanted = frozenset(freeze_ids)
    lines = []
    for node in sorted(nodes, key=lambda known: known.node):
        ack = acks.get(node.node)
        if ack is not None and ack.epoch >= epoch and wanted <= ack.freeze_ids:
            lines.append(_acked(node.node, ack))
        elif released or (ack is not None and ack.epoch > epoch):
            # A newer ack without the cause comes from a node that has taken over a release of it.
            note = "the freeze was lifted before this node had confirmed it"
            lines.append(
                NodeProof(node.node, Proof.UNPROVEN, None, 0, node.working_orders, None, flat=False, note=note)
            )
        else:
            before_commit_returned_ms = elapsed_ms - since_commit_returned_ms
            lines.append(_not_acked(node, since_commit_returned_ms, before_commit_returned_ms, clock_rate_ratio))
    stopped = all(line.state is not Proof.UNPROVEN for line in lines)
    flat = all(line.flat for line in lines)
    return Certificate(epoch, tuple(sorted(wanted)), stopped, flat, elapsed_ms, tuple(lines))


def _acked(node: str, ack: SeenAck) -> NodeProof:
    flat = ack.complete and ack.orders_open == 0
    note = "" if flat else ("cancelling" if not ack.complete else "working orders not proven cancelled")
    return NodeProof(
        node, Proof.ACKED, ack.seen_after_ms, ack.orders_cancelled, ack.orders_open, ack.last_sequence, flat, note
    )


def _not_acked(
    node: KnownNode, since_commit_returned_ms: float, commit_took_ms: float, clock_rate_ratio: float
) -> NodeProof:
    if node.permit_ttl_ms is None:
        note = "its record cannot be read, so its permit time is unknown"
        return NodeProof(node.node, Proof.UNPROVEN, None, 0, node.working_orders, None, flat=False, note=note)
    bound_ms = expiry_bound_ms(node.permit_ttl_ms, clock_rate_ratio)
    if since_commit_returned_ms >= bound_ms:
        note = "did not answer; its permit has run out, its working orders are not proven cancelled"
        gated_ms = commit_took_ms + bound_ms
        return NodeProof(node.node, Proof.PERMIT_EXPIRED, gated_ms, 0, node.working_orders, None, flat=False, note=note)
    note = f"no answer yet; stops by itself {bound_ms:.0f} ms after the commit"
    return NodeProof(node.node, Proof.UNPROVEN, None, 0, node.working_orders, None, flat=False, note=note)
