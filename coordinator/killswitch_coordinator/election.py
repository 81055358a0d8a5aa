"""Who leads: a leased key with a term.

Leadership is a deadline on the leader's own clock, counted from *before* its last successful keep-alive, and shorter
than the lease: it turns false by itself, with no code running, before anybody else can hold the key. Every act of a
leader names the version of its key in the commit, so that one that was paused and woken up is refused by the store.

What this does not promise: that there is a leader at any moment. Freezing needs none.
"""

from __future__ import annotations

import threading

import structlog

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import LeaderRecord, TermRecord
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.stores.port import Conflict, Lease, LeaseLost, OutcomeUnknown, StoreError

log = structlog.get_logger(__name__)


class Election:
    """One candidate. :meth:`step` is called from one thread; :attr:`fence` may be read from any.

    Args:
        cluster: the cluster in its store.
        candidate: name of this coordinator.
        instance: which run of it.
    """

    def __init__(self, cluster: Cluster, candidate: str, instance: str) -> None:
        self._cluster = cluster
        self._candidate = candidate
        self._instance = instance
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._until_ns = 0
        self._term = 0

    @property
    def leads(self) -> bool:
        """True until the deadline of the last successful keep-alive."""
        with self._lock:
            return self._lease is not None and self._cluster.clock() < self._until_ns

    @property
    def term(self) -> int:
        """Term of this candidate's newest leadership, 0 before the first."""
        with self._lock:
            return self._term

    @property
    def fence(self) -> dict[str, int | None] | None:
        """What every act of this leader expects of the store, ``None`` when it does not lead."""
        with self._lock:
            if self._lease is None or self._cluster.clock() >= self._until_ns:
                return None
            return {self._lease.key: self._lease.version}

    def step(self) -> None:
        """Keep leading, or try to. Store errors are logged: the deadline decides, not they."""
        try:
            if self._lease is not None:
                self._keep()
            elif self._cluster.store.read(self._cluster.keys.leader) is None:
                self._stand()
        except Conflict:
            log.debug("another_leads", candidate=self._candidate)
        except StoreError as error:
            log.warning("election_no_answer", candidate=self._candidate, leads=self.leads, error=str(error))

    def resign(self) -> None:
        """Give up leading, at once for this process, and for others as soon as the store knows."""
        with self._lock:
            lease, self._lease, self._until_ns = self._lease, None, 0
        if lease is not None:
            try:
                lease.release()
            except StoreError as error:
                log.warning("resigned_without_goodbye", error=str(error))

    def _keep(self) -> None:
        lease = self._lease
        if lease is None:
            return
        sent_ns = self._cluster.clock()
        if not self._still_holds(lease):
            with self._lock:
                self._lease, self._until_ns = None, 0
            log.error("leadership_lost", candidate=self._candidate, term=self._term)
            return
        with self._lock:
            self._until_ns = sent_ns + self._cluster.timing.leader_deadline_ms * NANOSECONDS_PER_MS

    def _still_holds(self, lease: Lease) -> bool:
        """Keep the lease alive and look at its key: a store that was wiped keeps a lease alive whose key is gone."""
        try:
            lease.keep_alive()
        except LeaseLost:
            return False
        entry = self._cluster.store.read(lease.key)
        return entry is not None and entry.version == lease.version

    def _stand(self) -> None:
        """Take the key, then write the new term; only then does this candidate lead."""
        entry = self._cluster.store.read(self._cluster.keys.term)
        term = (TermRecord.from_bytes(entry.value, key=entry.key).term if entry else 0) + 1
        record = LeaderRecord(id=self._candidate, instance=self._instance, term=term, since=self._cluster.wall_clock())
        sent_ns = self._cluster.clock()
        lease = self._cluster.store.hold(
            self._cluster.keys.leader, record.to_bytes(), self._cluster.timing.lease_ttl_ms
        )
        try:
            self._cluster.store.commit(
                {lease.key: lease.version, self._cluster.keys.term: entry.version if entry else None},
                {self._cluster.keys.term: TermRecord(term=term).to_bytes()},
            )
        except (Conflict, OutcomeUnknown, StoreError):
            lease.release()
            raise
        with self._lock:
            self._lease, self._term = lease, term
            self._until_ns = sent_ns + self._cluster.timing.leader_deadline_ms * NANOSECONDS_PER_MS
        log.warning("leads", candidate=self._candidate, term=term)
