"""What an agent does at one store: renews the permit, tells it what the node found, keeps its lease, acknowledges.

An agent has one session for each store. They share the gate, the routers and the monitor, and nothing else: a store
that hangs delays nobody's freeze from another.

Threads of a session: *permit* (renews, acts on what it reads), *outbox* (tells the store what the node found), *acks*
(routers and acks), *membership* (lease and reports), and one of the store's watch. The freeze edge is short: the
watch's thread closes the gate itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from killswitch.cluster.cluster import Cluster
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.gate import GateUnavailable
from killswitch.settings.config import AgentSettings
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, StoreError, StoreUnavailable, Watch
from killswitch_agent.acknowledger import Acknowledger
from killswitch_agent.freeze_outbox import FreezeOutbox
from killswitch_agent.gate_per_store import GatePage
from killswitch_agent.gatekeeper import GateKeeper, ReadAgain
from killswitch_agent.journal import Journal
from killswitch_agent.membership import Identity, NameInUse, NodeRegistration, has_live_routers
from killswitch_agent.metrics import AgentMetrics
from killswitch_agent.router_stops import RouterStops
from killswitch_agent.routers import RouterRegistry

log = structlog.get_logger(__name__)

RETRY_S = 0.2
PAUSE_MS = 3
CROWDED_PAUSE_MS = 20
"""How long the work that follows a freeze waits once the watch has closed the gate; longer on a crowded machine.

Every agent hears of a freeze at the same instant. What those do next that closed first (read, sync, acknowledge,
report) takes the store, and on a shared machine the processor, from those that have not closed yet; figures in
``tests/bench/freeze_fanout.py``. Only the proof waits. A stop for routers is pushed at once, whatever might still have
to close is read at once, and no renewal becomes late by it.
"""
CROWDED_WHEN_LATE_MS = 0.5
"""A thread that was woken later than this, or slept this much too long, shares its processor with many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """What the sessions of one agent share.

    Attributes:
        identity: who the agent is.
        settings: intervals of the reports.
        routers: what is known of the routers.
        stops: what routers are told.
        stopping: set when the agent ends.
        utilization_pct: use of the node's limit, for reports.
        risk: what the node's rules find, for reports.
        limits_hash: tells the limits in force from others, for the node's record.
        report_unreadable: told why nobody knows what the node held before.
        sync_routers: pushes what has changed to the routers.
        after_ack: called after each turn of the thread *acks*.
    """

    identity: Identity
    settings: AgentSettings
    routers: RouterRegistry
    stops: RouterStops
    stopping: threading.Event
    utilization_pct: Callable[[], float | None]
    risk: Callable[[], dict[str, Any]]
    limits_hash: Callable[[], str]
    report_unreadable: Callable[[str], None]
    sync_routers: Callable[[], None]
    after_ack: Callable[[], None]


class StoreSession:
    """An agent's dealings with one store.

    Args:
        cluster: the cluster in that store.
        gate: the page, or this store's part of it.
        journal: what earlier runs have seen there.
        node: what the sessions share.
    """

    def __init__(self, cluster: Cluster, gate: GatePage, journal: Journal, node: SessionContext) -> None:
        self._cluster = cluster
        self._gate = gate
        self._node = node
        self._stopping = node.stopping
        self._renew_now = threading.Event()
        self._read_at_once = threading.Event()
        self._report_now = threading.Event()
        self._others_are_closing = False
        self._closed_ns = 0
        self._turned_ns = cluster.clock()
        self._metrics: AgentMetrics | None = None
        identity = node.identity
        self.keeper = GateKeeper(gate, journal, cluster, identity.node, on_change=self._gate_changed)
        self.outbox = FreezeOutbox(cluster, self.keeper)
        self.membership = NodeRegistration(
            cluster,
            identity,
            self.keeper,
            node.routers,
            utilization_pct=node.utilization_pct,
            risk=node.risk,
            limits_hash=node.limits_hash,
            report_unreadable=node.report_unreadable,
            report_min_interval_ms=node.settings.report_min_interval_ms,
            report_max_interval_ms=node.settings.report_max_interval_ms,
        )
        self.acknowledger = Acknowledger(
            cluster,
            node=identity.node,
            instance=identity.instance,
            keeper=self.keeper,
            stops=node.stops,
            routers=node.routers,
            fence=lambda: self.membership.fence,
        )

    @property
    def address(self) -> str:
        """Which store it is."""
        return self._cluster.store.address

    def silent_s(self) -> float:
        """For how long the permit loop has not turned."""
        return (self._cluster.clock() - self._turned_ns) / 1e9

    def loops(self, metrics: AgentMetrics) -> Iterator[tuple[str, Callable[[], None]]]:
        """Name each thread and give its work, which ends when the agent stops."""
        self._metrics = metrics
        yield "permit", self._permit_loop
        yield "outbox", self._outbox_loop
        yield "acks", self._ack_loop
        yield "membership", self._membership_loop

    def watch(self) -> Watch:
        """Subscribe to the flag: its changes close the gate on the thread that they arrive on."""
        return self._cluster.store.watch(self._cluster.keys.flag, self._flag_changed, self._flag_gap)

    def wake(self) -> None:
        """Make every loop look at ``stopping`` now."""
        for event in (self._renew_now, self._read_at_once, self._report_now, self.outbox.wake, self.acknowledger.wake):
            event.set()

    def routers_changed(self) -> None:
        """A router has answered a stop: acknowledge and report."""
        self.acknowledger.wake.set()
        self._report_now.set()

    def report_soon(self) -> None:
        """The node's exposure has changed."""
        self._report_now.set()

    # -- threads -------------------------------------------------------------------------------------------------

    def _permit_loop(self) -> None:
        interval_ns = self._cluster.timing.renew_every_ms * NANOSECONDS_PER_MS
        while not self._stopping.is_set():
            # Counted from the start of the last renewal, not from its end: a slow answer must not make the next late,
            # or the bound that `config check` prints would not hold.
            due_ns = self._turned_ns + interval_ns
            self._renew_now.wait(max(0, due_ns - self._cluster.clock()) / 1e9)
            self._let_others_close(due_ns)
            self._renew_now.clear()
            self._turned_ns = self._cluster.clock()
            if not self._gate.is_published:
                raise GateUnavailable(
                    f"the gate page {self._gate.path} was removed or replaced: routers that start now would not find "
                    "it; start the agent again, and keep cleaners away from that directory"
                )
            self._renew()
            if self.keeper.reassertion is not None:
                self.outbox.wake.set()

    def _renew(self) -> None:
        started_ns = self._cluster.clock()
        try:
            outcome = "renewed" if self.keeper.renew() else self.keeper.last_finding
        except StoreError as error:
            outcome = "no_answer"
            log.warning("permit_not_renewed", error=str(error), ms_left=self.keeper.permit_ms_left())
        if self._metrics is not None:
            self._metrics.renewal_seconds.observe((self._cluster.clock() - started_ns) / 1e9)
            self._metrics.renewals.labels(outcome).inc()

    def _let_others_close(self, latest_ns: int) -> None:
        """After the watch has closed the gate: pause, but not beyond ``latest_ns``, and wake whose work waited."""
        if self._others_are_closing:
            began_ns = self._cluster.clock()
            late_ms = (began_ns - self._closed_ns) / NANOSECONDS_PER_MS
            if late_ms < CROWDED_WHEN_LATE_MS:
                self._pause(PAUSE_MS, latest_ns)
                late_ms = (self._cluster.clock() - began_ns) / NANOSECONDS_PER_MS - PAUSE_MS
            if late_ms >= CROWDED_WHEN_LATE_MS:
                self._pause(CROWDED_PAUSE_MS, latest_ns)
            self._others_are_closing = False
            self.acknowledger.wake.set()
            self._report_now.set()
        self._read_at_once.clear()

    def _pause(self, pause_ms: float, latest_ns: int) -> None:
        left_ms = (latest_ns - self._cluster.clock()) / NANOSECONDS_PER_MS
        self._read_at_once.wait(max(0.0, min(pause_ms, left_ms)) / 1000)

    def _outbox_loop(self) -> None:
        while not self._stopping.is_set():
            self.outbox.wake.wait()
            self.outbox.wake.clear()
            while not self._stopping.is_set() and not self.outbox.flush():
                self._renew_now.set()
                self._stopping.wait(RETRY_S)
            self._renew_now.set()

    def _ack_loop(self) -> None:
        told = True
        while not self._stopping.is_set():
            self.acknowledger.wake.wait(None if told else RETRY_S)
            self.acknowledger.wake.clear()
            self._node.sync_routers()
            told = self.acknowledger.write_ack()
            self._node.after_ack()

    def _membership_loop(self) -> None:
        pause_s = self._node.settings.report_min_interval_ms / 1000
        # Half of it, so that a keep-alive that is due a moment after a turn waits for half an interval at most.
        idle_s = self._cluster.timing.renew_every_ms / 2000
        while not self._stopping.is_set():
            if not self.keeper.is_registered:
                if not self._join():
                    return
                self.keeper.set_registered(True)
                self._renew_now.set()
                self.acknowledger.wake.set()
            try:
                if not self.membership.keep_alive():
                    self.keeper.set_registered(False)
                    continue
                if not self._others_are_closing:
                    self.membership.report_if_due()
            except StoreError as error:
                log.warning("not_reported", error=str(error))
                self._stopping.wait(RETRY_S)
            self._stopping.wait(pause_s)
            self._report_now.wait(idle_s)
            self._report_now.clear()

    def _join(self) -> bool:
        """Join, waiting for an earlier holder's lease to run out; the gate stays closed all the while.

        Raises:
            NameInUse: somebody else keeps the name alive.
        """
        timing = self._cluster.timing
        wait_ms = timing.lease_ttl_ms * timing.clock_rate_ratio + self._cluster.store.guarantees.lease_slack_ms
        give_up_ns: int | None = None
        while not self._stopping.is_set():
            try:
                self.membership.join()
            except (NameInUse, Conflict) as error:
                give_up_ns = give_up_ns or self._cluster.clock() + int(wait_ms * NANOSECONDS_PER_MS)
                log.warning("name_in_use", node=self._node.identity.node, error=str(error))
                if self._cluster.clock() >= give_up_ns:
                    raise error if isinstance(error, NameInUse) else NameInUse(str(error)) from error
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("not_joined", error=str(error))
            else:
                log.info("joined", node=self._node.identity.node, store=self.address)
                return True
            self._stopping.wait(RETRY_S)
        return False

    # -- what comes in -------------------------------------------------------------------------------------------

    def _flag_changed(self, entry: Entry) -> None:
        if self._stopping.is_set():
            return
        self._others_are_closing = True
        again = self.keeper.heard(entry)
        self._closed_ns = self._cluster.clock()
        if again is ReadAgain.NOW:
            self._read_at_once.set()
        if again is not ReadAgain.NO:
            self._renew_now.set()

    def _flag_gap(self) -> None:
        if self._metrics is not None:
            self._metrics.watch_gaps.inc()
        self._read_at_once.set()
        self._renew_now.set()

    def _gate_changed(self) -> None:
        if self._others_are_closing and not has_live_routers(self._node.routers):
            return  # the permit loop wakes them after its pause
        self.acknowledger.wake.set()
        self._report_now.set()
