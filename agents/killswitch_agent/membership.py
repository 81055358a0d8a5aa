"""The node in the cluster: its lasting record, its lease, its reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from killswitch.clock import boot_id
from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import (
    HoldingRecord,
    LiveRecord,
    NodeRecord,
    ReportRecord,
    RouterReport,
    UnreadableRecord,
    mode_name,
)
from killswitch.core.permit import NANOSECONDS_PER_MS, expiry_bound_ms
from killswitch.link.messages import BadLine, Exposure
from killswitch.stores.port import Conflict, Entry, Lease, LeaseLost, StoreError
from killswitch_agent.gatekeeper import GateKeeper
from killswitch_agent.routers import NodeExposure, RouterPresence, RouterRegistry, exposure_of

log = structlog.get_logger(__name__)

MATERIAL_FRACTION = 0.001
"""A move of P&L or working notional below a thousandth of the node's gross waits for the regular report."""


class NameInUse(Exception):
    """Another agent holds this node's name; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is."""

    node: str
    instance: str
    build: str
    gate: str


REPORT_UNREADABLE = "report_unreadable"
"""Trigger of the freeze of a node whose earlier report cannot be read: nobody knows what it holds."""


@dataclass(frozen=True, slots=True)
class LeaseFence:
    """A node's lease as a commit names it, to be written only while the lease is held: its key and version."""

    key: str
    version: int


def whereabouts(gate: str) -> str:
    """Which boot of which machine this is, and which file there the gate page is; empty where that cannot be told.

    Pods on one machine have the same boot id, and the same path of the gate in file systems of their own.
    """
    try:
        page = Path(gate).stat()
    except OSError:
        return ""
    boot = boot_id()
    return f"{boot}/{page.st_dev}:{page.st_ino}" if boot else ""


def is_material(before: ReportRecord | None, now: ReportRecord) -> bool:
    """Tell whether a report says something that should not wait for the regular one."""
    if before is None or (before.mode, before.epoch, before.working_orders) != (
        now.mode,
        now.epoch,
        now.working_orders,
    ):
        return True
    quantities = {symbol: holding.quantity for symbol, holding in now.holdings.items()}
    if quantities != {symbol: holding.quantity for symbol, holding in before.holdings.items()}:
        return True
    if _levels(before.risk) != _levels(now.risk):
        return True
    threshold_usd = MATERIAL_FRACTION * max(now.gross_usd, before.gross_usd)
    moved_usd = max(abs(now.gross_usd - before.gross_usd), abs(now.pnl_usd - before.pnl_usd))
    return moved_usd > threshold_usd


def _levels(risk: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What the node's rules find, without the figures, which move all the time."""
    names = ("rule", "trigger", "symbol", "level")
    return [tuple(finding.get(name) for name in names) for finding in risk.get("findings", [])]


class NodeRegistration:
    """Registers the node, keeps its lease alive and reports what it holds.

    Used from one thread; :attr:`has_joined` and :attr:`fence` may be asked from any.
    """

    def __init__(
        self,
        cluster: Cluster,
        identity: Identity,
        keeper: GateKeeper,
        routers: RouterRegistry,
        *,
        utilization_pct: Callable[[], float | None],
        risk: Callable[[], dict[str, Any]],
        limits_hash: Callable[[], str],
        report_unreadable: Callable[[str], None],
        report_min_interval_ms: int,
        report_max_interval_ms: int,
    ) -> None:
        self._cluster = cluster
        self._report_unreadable = report_unreadable
        self._identity = identity
        self._keeper = keeper
        self._routers = routers
        self._utilization_pct = utilization_pct
        self._risk = risk
        self._limits_hash = limits_hash
        self._registered_hash = ""
        self._min_interval_ns = report_min_interval_ms * NANOSECONDS_PER_MS
        self._max_interval_ns = report_max_interval_ms * NANOSECONDS_PER_MS
        self._lease: Lease | None = None
        self._kept_alive_ns = 0
        self._reported: ReportRecord | None = None
        self._reported_ns = 0
        self._count = 0
        self._joined_before = False

    @property
    def has_joined(self) -> bool:
        """True once the node has joined, and the routers of an earlier run are known."""
        return self._joined_before

    @property
    def fence(self) -> LeaseFence | None:
        """The lease that this agent holds as its node; ``None`` before it has joined, and once that lease is lost.

        Whoever has a fence knows the routers of earlier runs, as far as this store does.
        """
        lease = self._lease
        if lease is None or not self._joined_before:
            return None
        return LeaseFence(self._cluster.keys.under("live", self._identity.node), lease.version)

    # -- joining and leaving -------------------------------------------------------------------------------------

    def join(self) -> None:
        """Take the lease and write the lasting record. Only after this may the node hold a permit.

        May be called again, when the records were found missing: what is there already is kept.

        Raises:
            NameInUse: another agent holds the name now; try again until its lease would have run out.
            StoreError: the store did not answer or refuses.
        """
        self._drop_dead_lease()
        if self._lease is None:
            self._take_lease()
        self._register()
        self._keeper.lease_confirmed(self._kept_alive_ns)
        if not self._joined_before:
            self._remember_routers()
            self._joined_before = True

    def _register(self) -> None:
        key = self._cluster.keys.under("nodes", self._identity.node)
        entry = self._cluster.store.read(key)
        self._outwait_longer_permits(entry)
        limits_hash = self._limits_hash()
        record = NodeRecord(
            node=self._identity.node,
            permit_ttl_ms=self._cluster.timing.permit_ttl_ms,
            build=self._identity.build,
            limits_hash=limits_hash,
            address=os.uname().nodename,
            registered_at=self._cluster.wall_clock(),
        )
        self._cluster.store.commit({key: entry.version if entry else None}, {key: record.to_bytes()})
        self._registered_hash = limits_hash

    def _outwait_longer_permits(self, entry: Entry | None) -> None:
        """Let the permits of an earlier run run out before the record promises a shorter time than they have."""
        if entry is None:
            return
        try:
            before_ms = NodeRecord.from_bytes(entry.value, key=entry.key).permit_ttl_ms
        except UnreadableRecord as error:
            log.error("own_record_unreadable", error=str(error))
            return
        if before_ms > self._cluster.timing.permit_ttl_ms:
            self._cluster.pause(expiry_bound_ms(before_ms, self._cluster.timing.clock_rate_ratio) / 1000)

    def _take_lease(self) -> None:
        key = self._cluster.keys.under("live", self._identity.node)
        record = LiveRecord(
            node=self._identity.node,
            instance=self._identity.instance,
            pid=os.getpid(),
            boot_id=whereabouts(self._identity.gate),
            gate=self._identity.gate,
            started_at=self._cluster.wall_clock(),
        )
        started_ns = self._cluster.clock()
        try:
            self._lease = self._cluster.store.hold(key, record.to_bytes(), self._cluster.timing.lease_ttl_ms)
        except Conflict:
            self._clear_own_past(key)
            self._lease = self._cluster.store.hold(key, record.to_bytes(), self._cluster.timing.lease_ttl_ms)
        self._kept_alive_ns = started_ns

    def _clear_own_past(self, key: str) -> None:
        """Delete the lease of an earlier run of this node's agent; it must be dead, for its gate's lock is ours.

        Raises:
            NameInUse: the lease is not provably an earlier run of ours.
        """
        entry = self._cluster.store.read(key)
        if entry is None:
            return
        try:
            holder = LiveRecord.from_bytes(entry.value, key=key)
        except UnreadableRecord as error:
            raise NameInUse(f"{error}; it goes when its lease runs out") from error
        ours = holder.instance == self._identity.instance
        # The same page means the same lock, and that is ours now.
        same_gate = holder.boot_id == whereabouts(self._identity.gate) != "" and holder.gate == self._identity.gate
        if not (ours or same_gate):
            raise NameInUse(
                f"another agent runs as node {self._identity.node!r} (pid {holder.pid}, since {holder.started_at}, "
                f"gate {holder.gate}): give each node its own name, or stop that agent and wait "
                f"{self._cluster.timing.lease_ttl_ms} ms"
            )
        try:
            self._cluster.store.commit({key: entry.version}, {}, [key])
        except Conflict:
            log.info("earlier_lease_gone", node=self._identity.node)

    def _remember_routers(self) -> None:
        """Take over the routers of an earlier run with what they held: a restart makes nothing vanish.

        What cannot be read is unknown, and this agent's next report writes over it: the node is frozen for it first.
        """
        key = self._cluster.keys.under("reports", self._identity.node)
        entry = self._cluster.store.read(key)
        if entry is None:
            return
        try:
            report = ReportRecord.from_bytes(entry.value, key=key)
        except UnreadableRecord as error:
            log.error("own_report_unreadable", error=str(error))
            self._report_unreadable(f"what the node held before is unknown: {error}")
            return
        self._count = report.report
        for router in report.routers:
            try:
                exposure = Exposure.from_wire(router.exposure)
            except BadLine as error:
                log.error("own_report_unreadable", router=router.router, error=str(error))
                self._report_unreadable(f"what router {router.router} held before is unknown: {error}")
                continue
            self._routers.remember_lost(router.router, router.instance, exposure, router.orphaned_orders)

    def leave(self) -> None:
        """Go on purpose, with the gate closed: give up the lease; and the record too, when nothing is left behind.

        A node that leaves positions or working orders stays in the cluster's books as lost, so that they go on
        counting.
        """
        exposure = exposure_of(self._routers.states())
        holds_nothing = exposure.working_orders == 0 and exposure.gross_usd == 0
        try:
            if self._lease is None:
                return
            self._report(self._record(exposure), self._cluster.clock())
            if holds_nothing:
                families = ("nodes", "reports", "acks")
                keys = [self._cluster.keys.under(family, self._identity.node) for family in families]
                live = self._cluster.keys.under("live", self._identity.node)
                self._cluster.store.commit({live: self._lease.version}, {}, keys)
            self._lease.release()
        except StoreError as error:
            log.warning("left_without_goodbye", error=str(error))

    # -- staying -------------------------------------------------------------------------------------------------

    def keep_alive(self) -> bool:
        """Keep the lease alive when it is time; False when the node's records are no longer what they were.

        The records are read as well: a store that was wiped keeps a lease alive whose key is gone.

        Raises:
            StoreError: the store did not answer.
        """
        now = self._cluster.clock()
        interval_ns = self._cluster.timing.renew_every_ms * NANOSECONDS_PER_MS
        if self._lease is None:
            return False
        if now - self._kept_alive_ns < interval_ns:
            return True
        try:
            self._lease.keep_alive()
        except LeaseLost:
            log.warning("lease_lost", node=self._identity.node)
            self._lease = None
            return False
        self._kept_alive_ns = now
        if not (self._lease_key_is_ours() and self._store_has_record()):
            return False
        self._keeper.lease_confirmed(now)
        if self._registered_hash != self._limits_hash():
            self._register()  # the node's limits have changed
        return True

    def _drop_dead_lease(self) -> None:
        """Forget a lease whose key is gone or somebody else's, so that joining takes a new one."""
        if self._lease is not None and not self._lease_key_is_ours():
            lease, self._lease = self._lease, None
            lease.release()

    def _lease_key_is_ours(self) -> bool:
        entry = self._cluster.store.read(self._cluster.keys.under("live", self._identity.node))
        return entry is not None and self._lease is not None and entry.version == self._lease.version

    def _store_has_record(self) -> bool:
        return self._cluster.store.read(self._cluster.keys.under("nodes", self._identity.node)) is not None

    def report_if_due(self) -> None:
        """Report at once what is material, but not more often than allowed, and everything regularly.

        Raises:
            StoreError: the store did not take it; it is due again.
        """
        now = self._cluster.clock()
        since_ns = now - self._reported_ns
        if since_ns < self._min_interval_ns:
            return
        record = self._record(exposure_of(self._routers.states()))
        if since_ns >= self._max_interval_ns or is_material(self._reported, record):
            self._report(record, now)

    def _report(self, record: ReportRecord, now_ns: int) -> None:
        key = self._cluster.keys.under("reports", self._identity.node)
        self._cluster.store.commit({}, {key: record.to_bytes()})
        self._reported, self._reported_ns = record, now_ns
        self._count += 1

    def _record(self, exposure: NodeExposure) -> ReportRecord:
        view = self._keeper.view()
        return ReportRecord(
            node=self._identity.node,
            instance=self._identity.instance,
            report=self._count + 1,
            at=self._cluster.wall_clock(),
            mode=mode_name(self._keeper.mode),
            epoch=view.epoch,
            permit_ms_left=self._keeper.permit_ms_left(),
            holdings={
                symbol: HoldingRecord(
                    quantity=holding.quantity,
                    mark_price_usd=holding.mark_price_usd,
                    notional_usd=holding.notional_usd,
                )
                for symbol, holding in exposure.holdings.items()
            },
            gross_usd=exposure.gross_usd,
            net_usd=exposure.net_usd,
            pnl_usd=exposure.pnl_usd,
            working_orders=exposure.working_orders,
            working_notional_usd=exposure.working_notional_usd,
            utilization_pct=self._utilization_pct(),
            risk=self._risk(),
            last_sequence=exposure.last_sequence,
            routers=[
                RouterReport(
                    router=state.router,
                    instance=state.instance,
                    state=state.presence.value,
                    orphaned_orders=state.orphaned_orders,
                    exposure=state.exposure.to_wire(),
                )
                for state in self._routers.states()
            ],
        )


def has_live_routers(routers: RouterRegistry) -> bool:
    """Tell whether any router is connected."""
    return any(state.presence is RouterPresence.LIVE for state in routers.states())
