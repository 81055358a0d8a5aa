"""The agent of a node: a thin shell of threads around the gatekeeper, the voice, the stopper and the membership.

Threads: *permit* (renews, acts on what it reads), *voice* (tells the store what the node found), *stopper* (routers
and acks), *membership* (lease and reports), one of the store's watch, one per router, one for HTTP. The freeze edge is
short: the watch's thread closes the gate itself. The last line of defence is none of them: the deadline on the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from agents.decisions import FreezeScopes
from agents.gatekeeper import GateKeeper, ReadAgain
from agents.journal import Journal
from agents.link_server import FreezeRequest, LinkEvents, LinkServer
from agents.membership import Identity, Membership, NameInUse, has_live_routers
from agents.metrics import AgentMetrics
from agents.node_monitor import NodeMonitor
from agents.routers import RouterBook, exposure_of
from agents.stopper import Stopper
from agents.voice import Voice
from killswitch.cluster import Cluster, new_freeze_id
from killswitch.config import AgentSettings
from killswitch.core.flag import fitting_freeze
from killswitch.core.modes import Mode
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.core.scopes import Scope
from killswitch.gate import GateError, GateUnavailable, GateWriter
from killswitch.http_status import StatusServer
from killswitch.link.messages import Exposure
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, StoreError, StoreForbidden, StoreUnavailable

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
SIGNAL_CHECK_S = 0.25
"""The main thread wakes this often: a signal that another thread has taken does not end its wait."""
LOOP_SILENT_AFTER_S = 5.0
"""A permit loop that has not turned for this long is stuck, and /healthz says so."""


class Agent:
    """One node's agent. :meth:`run` returns when :meth:`stop` was called or the node's name was taken.

    Args:
        cluster: the cluster in its store.
        settings: paths, ports, limits.
        identity: who this agent is.

    Raises:
        GateOwned: another agent of this node runs on this machine.
        JournalDamaged, JournalUnwritable, LinkUnavailable, GateUnavailable: said in one sentence; the gate is closed.
    """

    def __init__(self, cluster: Cluster, settings: AgentSettings, identity: Identity) -> None:
        self._cluster = cluster
        self._settings = settings
        self._identity = identity
        self._stopping = threading.Event()
        self._stop_asked = False
        self._renew_now = threading.Event()
        self._read_at_once = threading.Event()
        self._report_now = threading.Event()
        self._others_are_closing = False
        self._closed_ns = 0
        self._turned_ns = cluster.clock()
        self._raised: dict[str, str] = {}
        self._raised_lock = threading.Lock()
        self.name_taken: NameInUse | None = None
        self.failure: str | None = None
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.book = RouterBook()
        self._gate = GateWriter(settings.gate, cluster=cluster.name, node=identity.node)
        try:
            journal = Journal(Path(settings.state_dir) / f"{identity.node}.journal", cluster=cluster.name)
            self.keeper = GateKeeper(self._gate, journal, cluster, identity.node, on_change=self._gate_changed)
            self.voice = Voice(cluster, self.keeper)
            self.stopper = Stopper(cluster, identity.node, identity.instance, self.keeper, self.book)
            self.monitor = NodeMonitor(settings.limits, on_freeze=self._monitor_froze, registry=self.registry)
            self.metrics = AgentMetrics(self.registry, self.keeper, self.book)
            self._scopes = FreezeScopes(settings.freeze_scope, identity.node)
            self.membership = Membership(
                cluster,
                identity,
                self.keeper,
                self.book,
                utilization_pct=self.monitor.utilization_pct,
                report_min_interval_ms=settings.report_min_interval_ms,
                report_max_interval_ms=settings.report_max_interval_ms,
            )
            self._link = LinkServer(
                Path(settings.link),
                node=identity.node,
                cluster=cluster.name,
                book=self.book,
                events=LinkEvents(
                    on_exposure=self._router_reported,
                    on_answer=self._router_answered,
                    on_freeze=self._router_wants_freeze,
                    current_stop=self.stopper.current_stop,
                ),
            )
            self._http = StatusServer(
                settings.http_host, settings.http_port, registry=self.registry, healthy=self.healthy, ready=self.ready
            )
        except BaseException:
            self._gate.close()
            raise

    @property
    def http_port(self) -> int:
        """Port on which the status is served."""
        return self._http.port

    def run(self) -> None:
        """Join the cluster, then keep the gate true until stopped; closes the gate on the way out, whatever happens."""
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (
                ("permit", self._permit_loop),
                ("voice", self._voice_loop),
                ("stopper", self._stopper_loop),
                ("membership", self._membership_loop),
            )
        ]
        watch = self._cluster.store.watch(self._cluster.keys.flag, self._flag_changed, self._flag_gap)
        try:
            for thread in threads:
                thread.start()
            while not (self._stop_asked or self._stopping.wait(SIGNAL_CHECK_S)):
                pass
            self._stopping.set()
        finally:
            self.keeper.close()
            self._stopping.set()
            for event in (self._renew_now, self._read_at_once, self._report_now, self.voice.wake, self.stopper.wake):
                event.set()
            watch.close()
            for thread in threads:
                thread.join(timeout=self._cluster.timing.request_timeout_ms / 1000 * 3 + 1)
            self._link.close()
            self.membership.leave()
            self._http.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end. Safe in a signal handler."""
        # A plain name and no Event: the handler runs inside the main thread's own wait, whose lock it would wait for.
        self._stop_asked = True

    # -- what /healthz and /readyz say ---------------------------------------------------------------------------

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        """The permit loop turns. A store that is down is no reason to restart an agent."""
        silent_s = (self._cluster.clock() - self._turned_ns) / 1e9
        return silent_s < LOOP_SILENT_AFTER_S, {"permit_loop_silent_s": round(silent_s, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The node holds a permit; whether the gate is open is another question, and shown beside it."""
        left_ms = self.keeper.permit_ms_left()
        figures = {
            "permit_ms_left": left_ms,
            "mode": self.keeper.mode.name,
            "epoch": self.keeper.view().epoch,
            "last_reading": self.keeper.last_finding,
        }
        return left_ms > 0, figures

    # -- threads -------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread's work; whatever ends it unexpectedly closes the gate and ends the agent."""
        try:
            work()
        except NameInUse as error:
            self.name_taken = error
        except StoreForbidden as error:
            self.failure = f"the store refuses this agent: {error}"
        except GateError as error:
            if not self._stopping.is_set():  # otherwise it is closed because the agent ends
                self.failure = str(error)
        except Exception as error:
            name = threading.current_thread().name
            self.failure = f"the thread {name} failed, and the gate is closed: {error!r}"
            log.exception("agent_thread_died", thread=name)
        finally:
            self._stopping.set()

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
            try:
                with self.metrics.renewal_seconds.time():
                    outcome = "renewed" if self.keeper.renew() else self.keeper.last_finding
            except StoreError as error:
                outcome = "no_answer"
                log.warning("permit_not_renewed", error=str(error), ms_left=self.keeper.permit_ms_left())
            self.metrics.renewals.labels(outcome).inc()
            if self.keeper.reassertion is not None:
                self.voice.wake.set()

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
            self.stopper.wake.set()
            self._report_now.set()
        self._read_at_once.clear()

    def _pause(self, pause_ms: float, latest_ns: int) -> None:
        left_ms = (latest_ns - self._cluster.clock()) / NANOSECONDS_PER_MS
        self._read_at_once.wait(max(0.0, min(pause_ms, left_ms)) / 1000)

    def _voice_loop(self) -> None:
        while not self._stopping.is_set():
            self.voice.wake.wait()
            self.voice.wake.clear()
            while not self._stopping.is_set() and not self.voice.speak():
                self._renew_now.set()
                self._stopping.wait(RETRY_S)
            self._renew_now.set()

    def _stopper_loop(self) -> None:
        told = True
        while not self._stopping.is_set():
            self.stopper.wake.wait(None if told else RETRY_S)
            self.stopper.wake.clear()
            self.stopper.sync_routers(self._link.push_stop, self._link.push_resume)
            told = self.stopper.write_ack()
            self._release_monitor_if_lifted()

    def _membership_loop(self) -> None:
        pause_s = self._settings.report_min_interval_ms / 1000
        # Half of it, so that a keep-alive that is due a moment after a turn waits for half an interval at most.
        idle_s = self._cluster.timing.renew_every_ms / 2000
        while not self._stopping.is_set():
            if not self.keeper.is_registered:
                if not self._join():
                    return
                self.keeper.set_registered(True)
                self._renew_now.set()
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
                log.warning("name_in_use", node=self._identity.node, error=str(error))
                if self._cluster.clock() >= give_up_ns:
                    raise error if isinstance(error, NameInUse) else NameInUse(str(error)) from error
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("not_joined", error=str(error))
            else:
                log.info("joined", node=self._identity.node, store=self._cluster.store.address)
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
        self.metrics.watch_gaps.inc()
        self._read_at_once.set()
        self._renew_now.set()

    def _gate_changed(self) -> None:
        if self._others_are_closing and not has_live_routers(self.book):
            return  # the permit loop wakes them after its pause
        self.stopper.wake.set()
        self._report_now.set()

    def _router_reported(self, router: str, exposure: Exposure) -> None:
        del router, exposure  # the book has them; the monitor judges the node as a whole
        self._report_now.set()
        self.monitor.observe(exposure_of(self.book.states()))

    def _router_answered(self, router: str) -> None:
        del router
        self.stopper.wake.set()
        self._report_now.set()

    def _router_wants_freeze(self, request: FreezeRequest) -> None:
        try:
            scope = Scope.parse(request.scope) if request.scope else self._scopes.scope_for(None)
        except ValueError:
            scope = self._scopes.scope_for(None)
        self._raise(f"{request.source}:{request.trigger}", scope, request.trigger, request.reason, request.metadata)

    def _monitor_froze(self, trigger: str, reason: str, symbol: str | None, figures: Mapping[str, Any]) -> None:
        self._raise(f"monitor:{trigger}:{symbol}", self._scopes.scope_for(symbol), trigger, reason, figures)

    def _raise(self, source: str, scope: Scope, trigger: str, reason: str, figures: Mapping[str, Any]) -> None:
        """Freeze for one source; while its freeze is in force the same source does not freeze again."""
        with self._raised_lock:
            if source in self._raised and self.keeper.holds(self._raised[source]):
                return
            freeze = fitting_freeze(
                id=new_freeze_id(),
                scope=scope,
                mode=Mode.FROZEN,
                trigger=trigger,
                reason=reason,
                actor=f"agent:{self._identity.node}",
                at=self._cluster.wall_clock(),
                metadata={**figures, "source": source},
            )
            self._raised[source] = freeze.id
            self.voice.raise_freeze(freeze)
        self.metrics.freezes_raised.labels(freeze.trigger).inc()

    def _release_monitor_if_lifted(self) -> None:
        with self._raised_lock:
            lifted = [source for source, freeze_id in self._raised.items() if not self.keeper.holds(freeze_id)]
            for source in lifted:
                del self._raised[source]
        if any(source.startswith("monitor:") for source in lifted):
            self.monitor.released()
