"""The agent of a node: one session for each store, around one gate, one set of routers and one monitor.

Threads: those of each :class:`~agents.store_session.StoreSession`, one per router, one for HTTP. The last line of
defence is none of them: the deadline on the page.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from agents.decisions import FreezeScopes
from agents.gate_shares import share_gate
from agents.journal import Journal, JournalUnwritable
from agents.link_server import FreezeRequest, LinkEvents, LinkServer
from agents.membership import Identity, NameInUse
from agents.metrics import AgentMetrics
from agents.node_monitor import NodeMonitor
from agents.routers import RouterBook, exposure_of
from agents.stopper import RouterStops
from agents.store_session import Node, StoreSession
from killswitch.cluster import Cluster, new_freeze_id
from killswitch.config import AgentSettings
from killswitch.core.canonical import sha256_hex
from killswitch.core.flag import fitting_freeze
from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import Scope
from killswitch.gate import GateError, GateWriter
from killswitch.http_status import StatusServer
from killswitch.link.messages import Exposure
from killswitch.stores.port import StoreForbidden

log = structlog.get_logger(__name__)

SIGNAL_CHECK_S = 0.25
"""The main thread wakes this often: a signal that another thread has taken does not end its wait."""
LOOP_SILENT_AFTER_S = 5.0
"""A permit loop that has not turned for this long is stuck, and /healthz says so."""


class Agent:
    """One node's agent. :meth:`run` returns when :meth:`stop` was called or the node's name was taken.

    Args:
        clusters: the cluster in each of its stores, at least one. A freeze in any of them freezes.
        settings: paths, ports, limits.
        identity: who this agent is.

    Raises:
        GateOwned: another agent of this node runs on this machine.
        JournalDamaged, JournalUnwritable, LinkUnavailable, GateUnavailable: said in one sentence; the gate is closed.
    """

    def __init__(self, clusters: Sequence[Cluster], settings: AgentSettings, identity: Identity) -> None:
        self._clusters = tuple(clusters)
        first = self._clusters[0]
        self._identity = identity
        self._wall_clock = first.wall_clock
        self._timing = first.timing
        self._stopping = threading.Event()
        self._stop_asked = False
        self._raised: dict[str, str] = {}
        self._raised_lock = threading.Lock()
        self.name_taken: NameInUse | None = None
        self.failure: str | None = None
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.book = RouterBook()
        self.stops = RouterStops()
        self._scopes = FreezeScopes(settings.freeze_scope, identity.node)
        self._gate = GateWriter(settings.gate, cluster=first.name, node=identity.node)
        try:
            self.monitor = NodeMonitor(settings.limits, on_freeze=self._monitor_froze, registry=self.registry)
            self.sessions = self._open_sessions(settings)
            self.metrics = AgentMetrics(self.registry, [session.keeper for session in self.sessions], self.book)
            self._link = LinkServer(
                Path(settings.link),
                node=identity.node,
                cluster=first.name,
                book=self.book,
                events=LinkEvents(
                    on_exposure=self._router_reported,
                    on_answer=self._router_answered,
                    on_freeze=self._router_wants_freeze,
                    current_stop=self.stops.current_stop,
                ),
            )
            self._http = StatusServer(
                settings.http_host, settings.http_port, registry=self.registry, healthy=self.healthy, ready=self.ready
            )
        except BaseException:
            self._gate.close()
            raise

    def _open_sessions(self, settings: AgentSettings) -> list[StoreSession]:
        node = Node(
            identity=self._identity,
            settings=settings,
            book=self.book,
            stops=self.stops,
            stopping=self._stopping,
            utilization_pct=self.monitor.utilization_pct,
            sync_routers=lambda: self.stops.sync(self._link.push_stop, self._link.push_resume),
            after_ack=self._release_monitor_if_lifted,
        )
        paths = journal_paths(Path(settings.state_dir), self._identity.node, [c.store.address for c in self._clusters])
        pages = share_gate(self._gate, len(self._clusters))
        return [
            StoreSession(cluster, page, Journal(path, cluster=cluster.name), node)
            for cluster, page, path in zip(self._clusters, pages, paths, strict=True)
        ]

    @property
    def http_port(self) -> int:
        """Port on which the status is served."""
        return self._http.port

    def run(self) -> None:
        """Join the cluster, then keep the gate true until stopped; closes the gate on the way out, whatever happens."""
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for session in self.sessions
            for name, work in session.loops(self.metrics)
        ]
        watches = [session.watch() for session in self.sessions]
        try:
            for thread in threads:
                thread.start()
            while not (self._stop_asked or self._stopping.wait(SIGNAL_CHECK_S)):
                pass
            self._stopping.set()
        finally:
            self._gate.close()
            self._stopping.set()
            for session in self.sessions:
                session.wake()
            for watch in watches:
                watch.close()
            for thread in threads:
                thread.join(timeout=self._timing.request_timeout_ms / 1000 * 3 + 1)
            self._link.close()
            for session in self.sessions:
                session.membership.leave()
            self._http.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end. Safe in a signal handler."""
        # A plain name and no Event: the handler runs inside the main thread's own wait, whose lock it would wait for.
        self._stop_asked = True

    # -- what /healthz and /readyz say ---------------------------------------------------------------------------

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        """The permit loops turn. A store that is down is no reason to restart an agent."""
        silent_s = max(session.silent_s() for session in self.sessions)
        return silent_s < LOOP_SILENT_AFTER_S, {"permit_loop_silent_s": round(silent_s, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The node holds a permit of every store; whether the gate is open is another question, and shown beside it."""
        keepers = [session.keeper for session in self.sessions]
        left_ms = min(keeper.permit_ms_left() for keeper in keepers)
        figures: dict[str, Any] = {
            "permit_ms_left": left_ms,
            "mode": strictest(keeper.mode for keeper in keepers).name,
            "epoch": sum(keeper.view().epoch for keeper in keepers),
            "last_reading": ", ".join(keeper.last_finding for keeper in keepers),
        }
        if len(self.sessions) > 1:
            figures["stores"] = {
                session.address: {
                    "permit_ms_left": session.keeper.permit_ms_left(),
                    "epoch": session.keeper.view().epoch,
                }
                for session in self.sessions
            }
        return left_ms > 0, figures

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

    # -- what comes in -------------------------------------------------------------------------------------------

    def _router_reported(self, router: str, exposure: Exposure) -> None:
        del router, exposure  # the book has them; the monitor judges the node as a whole
        for session in self.sessions:
            session.report_soon()
        self.monitor.observe(exposure_of(self.book.states()))

    def _router_answered(self, router: str) -> None:
        del router
        for session in self.sessions:
            session.routers_changed()

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
            if source in self._raised and self._holds(self._raised[source]):
                return
            freeze = fitting_freeze(
                id=new_freeze_id(),
                scope=scope,
                mode=Mode.FROZEN,
                trigger=trigger,
                reason=reason,
                actor=f"agent:{self._identity.node}",
                at=self._wall_clock(),
                metadata={**figures, "source": source},
            )
            self._raised[source] = freeze.id
            for session in self.sessions:
                session.voice.raise_freeze(freeze)
        self.metrics.freezes_raised.labels(freeze.trigger).inc()

    def _release_monitor_if_lifted(self) -> None:
        with self._raised_lock:
            lifted = [source for source, freeze_id in self._raised.items() if not self._holds(freeze_id)]
            for source in lifted:
                del self._raised[source]
        if any(source.startswith("monitor:") for source in lifted):
            self.monitor.released()

    def _holds(self, freeze_id: str) -> bool:
        return any(session.keeper.holds(freeze_id) for session in self.sessions)


def journal_paths(directory: Path, node: str, addresses: Sequence[str]) -> list[Path]:
    """Where the flags of each store are remembered: one file for each, named after the store when there are several.

    A node that gets a second store keeps what it remembers of the first, which must stay the first in the list once.

    Raises:
        JournalUnwritable: that memory could not be carried over.
    """
    single = directory / f"{node}.journal"
    if len(addresses) == 1:
        return [single]
    paths = [directory / f"{node}.{sha256_hex(address)[:8]}.journal" for address in addresses]
    if single.exists() and not paths[0].exists():
        try:
            shutil.copyfile(single, paths[0])
        except OSError as error:
            raise JournalUnwritable(
                f"the journal {single} cannot be copied to {paths[0]} ({error.strerror})"
            ) from error
    return paths
