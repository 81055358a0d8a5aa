"""Collects the certificate of every freeze that is made while this coordinator leads, and keeps it in the store."""

from __future__ import annotations

import structlog

from killswitch.cluster.certificates import CertificateCollector, is_settled
from killswitch.cluster.cluster import Cluster, Committed
from killswitch.cluster.records import CertificateRecord, FreezeRecord
from killswitch.core.certificate import Certificate
from killswitch.core.flag import Flag, Freeze
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.stores.port import StoreError
from killswitch_coordinator.election import Election

log = structlog.get_logger(__name__)

COLLECT_FOR_MS = 60_000
"""A certificate that is not settled by then is closed as it is, and says what is unproven."""

OPEN_MAX = 64
"""Certificates collected at the same time; the oldest is closed for a newer one."""


class Certifier:
    """Used from one thread.

    Args:
        cluster: the cluster in its store.
        election: whose fence every write carries.
        candidate: name of this coordinator.
    """

    def __init__(self, cluster: Cluster, election: Election, candidate: str) -> None:
        self._cluster = cluster
        self._election = election
        self._candidate = candidate
        self._collector = CertificateCollector(cluster)
        self._open: dict[int, tuple[tuple[Freeze, ...], Committed]] = {}
        self._written: dict[int, tuple[object, ...]] = {}
        self._known: frozenset[str] | None = None

    def close(self) -> None:
        """End collecting."""
        self._collector.close()

    def start(self, flag: Flag) -> None:
        """Begin a leadership: freezes in force already are the matter of whoever led when they were made."""
        self._known = flag.freeze_ids()
        self._open.clear()

    def begin(self, freeze: Freeze, committed: Committed) -> None:
        """Collect for a freeze that this leader has committed itself."""
        self._open[committed.flag.epoch] = ((freeze,), committed)
        self._known = (self._known or frozenset()) | {freeze.id}

    def saw(self, flag: Flag) -> None:
        """Collect for freezes that others have made; their time counts from now, which is later than they began.

        Freezes that came in between two looks share the certificate of the epoch at which they were seen.
        """
        now = self._cluster.clock()
        new = tuple(freeze for freeze in flag.freezes if self._known is not None and freeze.id not in self._known)
        if new:
            self._open[flag.epoch] = (new, Committed(flag, changed=True, started_ns=now, returned_ns=now))
        self._known = flag.freeze_ids()
        while len(self._open) > OPEN_MAX:
            del self._open[next(iter(self._open))]

    def step(self) -> None:
        """Bring every open certificate up to date in the store; close those that are settled, released or too old."""
        for epoch, (freezes, committed) in list(self._open.items()):
            wanted = frozenset(committed.flag.standing_for(freeze.id) for freeze in freezes)
            certificate = self._collector.current(committed, wanted)
            if certificate is None:
                continue
            age_ms = (self._cluster.clock() - committed.returned_ns) / NANOSECONDS_PER_MS
            released = self._known is not None and not wanted & self._known
            final = is_settled(certificate) or released or age_ms > COLLECT_FOR_MS
            if self._write(freezes[0], epoch, certificate, final=final) and final:
                del self._open[epoch]
                self._written.pop(epoch, None)

    def _write(self, freeze: Freeze, epoch: int, certificate: Certificate, *, final: bool) -> bool:
        """Write a certificate when it says something new; True when the store has it."""
        said = (final, *((line.node, line.state, line.flat, line.orders_open) for line in certificate.nodes))
        if self._written.get(epoch) == said:
            return True
        fence = self._election.fence
        if fence is None:
            return False
        record = CertificateRecord(
            **certificate.to_json(),
            freeze=FreezeRecord.model_validate(freeze.to_json()),
            collected_by=self._candidate,
            term=self._election.term,
            at=self._cluster.wall_clock(),
            final=final,
        )
        try:
            self._cluster.store.commit(fence, {self._cluster.keys.certificate(epoch): record.to_bytes()})
        except StoreError as error:
            log.warning("certificate_not_written", epoch=epoch, error=str(error))
            return False
        self._written[epoch] = said
        if final:
            log.warning(
                "certificate", freezes=list(certificate.freeze_ids), epoch=epoch, stopped=certificate.stopped,
                flat=certificate.flat, stopped_after_ms=certificate.stopped_after_ms,
            )  # fmt: skip
        return True
