"""Collecting the proof of a freeze: watch the acks, time them here, and say node by node what is proven.

No time that another node wrote is used. An ack proves its node from the moment at which it is *seen* here; a silent
node is proven stopped once every permit that began before the commit returned has run out (see ``core/permit.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from killswitch.cluster.cluster import Cluster, Committed, NotInitialised
from killswitch.cluster.records import AckRecord, UnreadableRecord
from killswitch.cluster.roster import read_of_node
from killswitch.core.certificate import Certificate, KnownNode, Proof, certify, combine
from killswitch.core.flag import Flag
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.stores.port import Entry, StoreError, StoreUnavailable

log = structlog.get_logger(__name__)

RECHECK_MS = 50
"""How often a waiter looks at the clock; acks wake it earlier."""

MEMBERSHIP_EVERY_MS = 500
"""How often the list of nodes is read again while waiting, so that a node registered late is not left out."""

SIGHTS_MAX = 64
"""First sights kept for each node; the oldest go first."""


class NodesUnreadable(StoreUnavailable):
    """A freeze is in force, but its nodes could not be read: nobody knows who must be proven stopped."""

    def __init__(self, addresses: Sequence[str], why: str) -> None:
        super().__init__(
            f"the freeze is in force, but the nodes that must be proven stopped could not be read from"
            f" {', '.join(addresses)}: {why}. A gate that does not reach the store closes by its permit; look at"
            f" `killswitch nodes` when the store answers"
        )


def is_settled(certificate: Certificate) -> bool:
    """Tell whether waiting longer can hardly prove more: each node is flat, or stopped by its expired permit."""
    return certificate.stopped and all(line.flat or line.state is Proof.PERMIT_EXPIRED for line in certificate.nodes)


class CertificateCollector:
    """Collects acks from the moment it is made; made *before* the freeze is committed, it misses none.

    Use as a context manager. Making it does not wait for the store, so it never delays a freeze.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._changed = threading.Condition()
        self._acks: dict[str, tuple[AckRecord, int]] = {}
        # First sight of each set of causes that a node named: a later ack may replace it before anybody asks.
        self._first_sight_ns: dict[str, dict[frozenset[str], int]] = {}
        self._nodes: list[KnownNode] | None = None
        self._nodes_read_ns = 0
        self._flag: Flag | None = None
        self._acks_due = threading.Event()
        self._failures: dict[str, str] = {}
        self._watch = cluster.store.watch(cluster.keys.under("acks"), self._on_change, self._on_gap)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The store that the acks come from."""
        return self._cluster.store.address

    @property
    def failure(self) -> str:
        """Why the nodes could not be read at the last try; empty when they were."""
        return self._failures.get("certificate_nodes_unreadable", "")

    def is_past(self, deadline_ns: int) -> bool:
        """Tell whether a deadline on the cluster's clock has passed."""
        return self._cluster.clock() >= deadline_ns

    def pause(self, seconds: float) -> None:
        """Wait for an ack, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def close(self) -> None:
        """End the watch."""
        self._watch.close()

    def current(self, committed: Committed, freeze_ids: frozenset[str]) -> Certificate | None:
        """Say what is proven now; ``None`` until the list of nodes was read after the commit returned.

        A store that stops answering later leaves that list in use: nodes do not vanish from a certificate.
        """
        self._read_nodes_if_due(committed.returned_ns)
        self._read_acks_if_due()
        if self._nodes is None or self._nodes_read_ns < committed.returned_ns:
            # A list read before the commit returned may miss a node whose permit does not know of the freeze.
            return None
        with self._changed:
            seen = {
                node: ack.to_seen(self._seen_after_ms(node, seen_ns, freeze_ids, committed.started_ns))
                for node, (ack, seen_ns) in self._acks.items()
            }
        now = self._cluster.clock()
        return certify(
            epoch=committed.flag.epoch,
            freeze_ids=sorted(freeze_ids),
            nodes=self._nodes,
            acks=seen,
            since_commit_returned_ms=(now - committed.returned_ns) / NANOSECONDS_PER_MS,
            elapsed_ms=(now - committed.started_ns) / NANOSECONDS_PER_MS,
            clock_rate_ratio=self._cluster.timing.clock_rate_ratio,
            released=self._flag is not None
            and self._flag.epoch > committed.flag.epoch
            and not freeze_ids <= self._flag.freeze_ids(),
        )

    def wait(
        self,
        committed: Committed,
        freeze_ids: frozenset[str],
        *,
        timeout_ms: int,
        until: Callable[[Certificate], bool] = is_settled,
        on_progress: Callable[[Certificate], None] | None = None,
    ) -> Certificate:
        """Wait until the certificate is as wanted, or the time is up; return the last one either way.

        Raises:
            NodesUnreadable: the list of nodes could not be read even once, so nothing can be certified.
        """
        deadline_ns = committed.returned_ns + timeout_ms * NANOSECONDS_PER_MS
        while True:
            certificate = self.current(committed, freeze_ids)
            if certificate is not None:
                if on_progress is not None:
                    on_progress(certificate)
                if until(certificate):
                    return certificate
            if self._cluster.clock() >= deadline_ns:
                if certificate is None:
                    raise NodesUnreadable([self.address], self.failure)
                return certificate
            with self._changed:
                self._changed.wait(RECHECK_MS / 1000)

    def _seen_after_ms(self, node: str, seen_ns: int, freeze_ids: frozenset[str], started_ns: int) -> float:
        """Time until the node first said that its gate holds these freezes; later acks only add to the cancelling."""
        sights = [at for named, at in self._first_sight_ns.get(node, {}).items() if freeze_ids <= named]
        return max(0, min(sights, default=seen_ns) - started_ns) / NANOSECONDS_PER_MS

    def _read_nodes_if_due(self, committed_ns: int) -> None:
        now = self._cluster.clock()
        fresh = (
            self._nodes_read_ns >= committed_ns and now - self._nodes_read_ns < MEMBERSHIP_EVERY_MS * NANOSECONDS_PER_MS
        )
        if fresh:
            return
        try:
            nodes = self._cluster.membership().known()
            self._flag = self._cluster.read_flag().flag
        except (NotInitialised, UnreadableRecord) as error:
            # No gate opens without a flag that can be read: nothing was released.
            self._failed("certificate_flag_unreadable", error)
        except StoreError as error:
            self._failed("certificate_nodes_unreadable", error)
            return
        else:
            self._failures.pop("certificate_flag_unreadable", None)
        self._failures.pop("certificate_nodes_unreadable", None)
        self._nodes, self._nodes_read_ns = nodes, now
        # A watch that has to find another server may be later than the permits: who answers here knows the acks, too.
        self._acks_due.set()

    def _failed(self, event: str, error: Exception) -> None:
        """Say a failure once until it is over: whoever waits asks many times a second, and has to read what matters."""
        if event not in self._failures:
            log.warning(event, error=str(error))
        self._failures[event] = str(error)

    def _on_change(self, entry: Entry) -> None:
        self._take(entry, self._cluster.clock())

    def _on_gap(self) -> None:
        self._acks_due.set()
        self._read_acks_if_due()

    def _read_acks_if_due(self) -> None:
        """Read all acks after a gap of the watch, and with the nodes: an ack that was missed never comes again."""
        if not self._acks_due.is_set():
            return
        self._acks_due.clear()
        began_ns = self._cluster.clock()
        try:
            entries = self._cluster.store.scan(self._cluster.keys.under("acks"))
        except StoreError as error:
            self._acks_due.set()
            self._failed("certificate_acks_unreadable", error)
            return
        self._failures.pop("certificate_acks_unreadable", None)
        for entry in entries:
            self._take(entry, self._cluster.clock(), read_since_ns=began_ns)

    def _take(self, entry: Entry, seen_ns: int, *, read_since_ns: int | None = None) -> None:
        if entry.value is None:
            return
        try:
            ack = read_of_node(AckRecord, entry)
        except UnreadableRecord as error:
            log.error("ack_unreadable", error=str(error))
            return
        with self._changed:
            known = self._acks.get(ack.node)
            if known is not None and read_since_ns is not None and known[1] > read_since_ns:
                return  # the watch has told a newer one while this one was being read
            self._acks[ack.node] = (ack, seen_ns)
            sights = self._first_sight_ns.setdefault(ack.node, {})
            sights.setdefault(frozenset(ack.freezes), seen_ns)
            while len(sights) > SIGHTS_MAX:
                del sights[next(iter(sights))]
            self._changed.notify_all()


def wait_in_all_stores(
    parts: Sequence[tuple[CertificateCollector, Committed, frozenset[str]]],
    *,
    timeout_ms: int,
    on_progress: Callable[[Certificate], None] | None = None,
) -> Certificate:
    """Wait for the proof of a freeze that several stores hold; as :meth:`CertificateCollector.wait` for one.

    Args:
        parts: for each store that took the freeze its collector, the commit, and the causes as its flag names them.
        timeout_ms: from the last commit's return.
        on_progress: told what is proven, again and again.

    Raises:
        NodesUnreadable: a store's list of nodes could not be read even once, so nobody knows who must be proven.
    """
    if len(parts) == 1:
        collector, committed, freeze_ids = parts[0]
        return collector.wait(committed, freeze_ids, timeout_ms=timeout_ms, on_progress=on_progress)
    first = parts[0][0]
    deadline_ns = max(committed.returned_ns for _, committed, _ in parts) + timeout_ms * NANOSECONDS_PER_MS
    while True:
        found = [collector.current(committed, freeze_ids) for collector, committed, freeze_ids in parts]
        known = [certificate for certificate in found if certificate is not None]
        if len(known) == len(parts):
            certificate = combine(known)
            if on_progress is not None:
                on_progress(certificate)
            if is_settled(certificate) or first.is_past(deadline_ns):
                return certificate
        elif first.is_past(deadline_ns):
            unread = [c for (c, _, _), seen in zip(parts, found, strict=True) if seen is None]
            raise NodesUnreadable([c.address for c in unread], "; ".join(c.failure for c in unread))
        first.pause(RECHECK_MS / 1000)
