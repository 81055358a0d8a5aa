"""The agent of a node: one session for each store, around one gate, one set of routers and one monitor.

Threads: those of each :class:`StoreSession`, one per router, one for HTTP. The last line of
defence is none of them: the deadline on the page.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from killswitch.cluster.cluster import Cluster, new_freeze_id
from killswitch.core.canonical import sha256_hex
from killswitch.core.flag import Freeze, fitting_freeze
from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import Scope
from killswitch.gate import GateError, GateWriter
from killswitch.http_status import StatusServer
from killswitch.link.messages import Exposure
from killswitch.risk.node_rule import NodeFinding
from killswitch.risk.process.risk_limits_file import JudgementSettings
from killswitch.settings.config import AgentSettings
from killswitch.stores.port import StoreForbidden
from killswitch_agent.flag_lineage import FreezeScopes
from killswitch_agent.gate_per_store import gates_per_store
from killswitch_agent.journal import Journal, JournalUnwritable
from killswitch_agent.link_server import FreezeRequest, LinkEvents, LinkServer
from killswitch_agent.membership import REPORT_UNREADABLE, Identity, NameInUse
from killswitch_agent.metrics import AgentMetrics
from killswitch_agent.router_stops import RouterStops
from killswitch_agent.routers import RouterRegistry, exposure_of, routers_seen
from killswitch_agent.rules.node_monitor import NodeMonitor
from killswitch_agent.rules.node_rules import NodeLimitsFiles, NodeRules
from killswitch_agent.store_session import SessionContext, StoreSession

log = structlog.get_logger(__name__)

SIGNAL_CHECK_S = 0.25
"""The main thread wakes this often: a signal that another thread has taken does not end its wait."""
FIRST_JUDGEMENT_S = 0.02
"""How often the node is judged until it was judged with all that it holds; until then its gate is closed."""
START = "start"
"""Source of the pause that an agent starts with."""
FAULTS_REPORTED = 5
"""Faults of the files of limits in a report; the log and the audit file have all of them."""
MONITOR = "monitor:"
"""Stands before the source of a freeze that the node's own rules asked for."""
LOOP_SILENT_AFTER_S = 5.0
"""A permit loop that has not turned for this long is stuck, and /healthz says so."""


class Agent:
    """One node's agent. :meth:`run` returns when :meth:`stop` was called or the node's name was taken.

    Args:
        clusters: the cluster in each of its stores, at least one. A freeze in any of them freezes.
        settings: paths, ports, limits.
        identity: who this agent is.
        limits: what its node is judged by.

    Raises:
        GateOwned: another agent of this node runs on this machine.
        JournalDamaged, JournalUnwritable, LinkUnavailable, GateUnavailable: said in one sentence; the gate is closed.
    """

    def __init__(
        self, clusters: Sequence[Cluster], settings: AgentSettings, identity: Identity, limits: NodeLimitsFiles
    ) -> None:
        self._clusters = tuple(clusters)
        first = self._clusters[0]
        self._identity = identity
        self._wall_clock = first.wall_clock
        self._timing = first.timing
        self._stopping = threading.Event()
        self._stop_asked = False
        self._raised: dict[tuple[str, Mode], str] = {}
        self._paused: dict[str, str] = {}
        self._reload_asked = False
        self._judge_now = threading.Event()
        self._raised_lock = threading.Lock()
        self.name_taken: NameInUse | None = None
        self.failure: str | None = None
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._clock = first.clock
        self.routers = RouterRegistry(first.clock)
        self.stops = RouterStops()
        self._scopes = FreezeScopes(settings.freeze_scope, identity.node)
        self._gate = GateWriter(settings.gate, cluster=first.name, node=identity.node)
        try:
            self.limits = NodeRules(limits, identity.node, state_dir=Path(settings.state_dir), clock=first.clock,
                                    wall_clock=first.wall_clock, registry=self.registry)  # fmt: skip
            self.monitor = NodeMonitor(
                self.limits.rules,
                node=identity.node,
                settings=limits.limits.judgement,
                actions=self,
                clock=first.clock,
                registry=self.registry,
            )
            self.limits.on_change = self._limits_changed
            self.sessions = self._open_sessions(settings)
            self.metrics = AgentMetrics(self.registry, [session.keeper for session in self.sessions], self.routers)
            self._link = LinkServer(
                Path(settings.link),
                node=identity.node,
                cluster=first.name,
                routers=self.routers,
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
        node = SessionContext(
            identity=self._identity,
            settings=settings,
            routers=self.routers,
            stops=self.stops,
            stopping=self._stopping,
            utilization_pct=self._utilization_pct,
            risk=self._risk_summary,
            limits_hash=lambda: self.limits.content_hash,
            report_unreadable=self._freeze_for_what_is_unknown,
            sync_routers=lambda: self.stops.sync(self._link.push_stop, self._link.push_resume),
            after_ack=self._release_monitor_if_lifted,
        )
        paths = journal_paths(Path(settings.state_dir), self._identity.node, [c.store.address for c in self._clusters])
        pages = gates_per_store(self._gate, len(self._clusters))
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
        threads += [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("judgement", self._judgement_loop), ("limits", self._limits_loop))
        ]
        watches = [session.watch() for session in self.sessions]
        # UNKNOWN IS FROZEN: what the node's rules say is not known before they were asked once about all it holds.
        self.pause(START, NodeFinding(trigger="not_judged", level="pause", reason="the node has not been judged yet"))
        try:
            for thread in threads:
                thread.start()
            while not (self._stop_asked or self._stopping.wait(SIGNAL_CHECK_S)):
                self.monitor.watch()
                if self._reload_asked:
                    self._reload_asked = False
                    self.limits.look_soon()
            self._stopping.set()
        finally:
            self._gate.close()
            self._stopping.set()
            for session in self.sessions:
                session.wake()
            self._judge_now.set()
            self.limits.look_soon()
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

    def reload(self) -> None:
        """Ask for the files of limits to be read now. Safe in a signal handler."""
        self._reload_asked = True  # a plain name, as in stop()

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
        del router, exposure  # the registry has them; the monitor judges the node as a whole
        for session in self.sessions:
            session.report_soon()
        self._judge_now.set()

    def _router_answered(self, router: str) -> None:
        del router
        for session in self.sessions:
            session.routers_changed()

    def _router_wants_freeze(self, request: FreezeRequest) -> None:
        try:
            scope = Scope.parse(request.scope) if request.scope else self._scopes.scope_for(None)
        except ValueError:
            scope = self._scopes.scope_for(None)
        finding = NodeFinding(trigger=request.trigger, level="freeze", reason=request.reason, figures=request.metadata)
        self._raise_once(f"{request.source}:{request.trigger}", scope, finding)

    def _freeze_for_what_is_unknown(self, why: str) -> None:
        """Freeze this node until a person has looked: what it held before an earlier run ended cannot be read."""
        scope = Scope.parse(f"node:{self._identity.node}")
        self._raise_once(REPORT_UNREADABLE, scope, NodeFinding(trigger=REPORT_UNREADABLE, level="freeze", reason=why))

    def _raise_once(self, source: str, scope: Scope, finding: NodeFinding) -> None:
        """Freeze for one source, unless its freeze is in force."""
        with self._raised_lock:
            raised = self._raised.get((source, Mode.FROZEN))
            if raised is None or not self._holds(raised):
                self._raise(source, Mode.FROZEN, scope, finding)

    # -- judging the node ----------------------------------------------------------------------------------------

    def _judgement_loop(self) -> None:
        judged = False
        while not self._stopping.is_set():
            self._judge_now.wait(self.limits.judge_every_s if judged else FIRST_JUDGEMENT_S)
            self._judge_now.clear()
            if self._stopping.is_set():
                return
            # An earlier run's routers are known once every store has been asked for them.
            all_known = all(session.membership.has_joined for session in self.sessions)
            states = self.routers.states()
            before = self.monitor.findings()
            self.monitor.observe(exposure_of(states), routers_seen(states, self._clock()))
            if [(one.source, one.finding.level) for one in before] != [
                (one.source, one.finding.level) for one in self.monitor.findings()
            ]:
                for session in self.sessions:
                    session.report_soon()
            if all_known and not judged:
                judged = True
                self.resume(START)

    def _limits_loop(self) -> None:
        self.limits.follow(self._stopping)

    def _limits_changed(self, settings: JudgementSettings) -> None:
        self.monitor.set_guard(settings)
        self._judge_now.set()

    def _utilization_pct(self) -> float | None:
        return self.limits.utilization_pct(exposure_of(self.routers.states()).gross_usd)

    def _risk_summary(self) -> dict[str, Any]:
        faults = list(self.limits.faults()[:FAULTS_REPORTED])
        return {"limits_hash": self.limits.content_hash, "limits_faults": faults, **self.monitor.summary()}

    def freeze(self, source: str, mode: Mode, finding: NodeFinding) -> None:
        """Have the cluster frozen for a finding of the node, unless its freeze is in force."""
        key = (f"{MONITOR}{source}", mode)
        with self._raised_lock:
            raised = self._raised.get(key)
            if raised is None:
                self._raise(key[0], mode, self._scopes.scope_for(finding.symbol), finding)
            # One that is not held any more was released; the next judgement knows it, and decides.

    def pause(self, source: str, finding: NodeFinding) -> None:
        """Close this node's gate for as long as the finding is made; the cluster is not told."""
        with self._raised_lock:
            if source in self._paused:
                return
            pause = self._freeze_of(source, Mode.FROZEN, Scope.parse(f"node:{self._identity.node}"), finding)
            self._paused[source] = pause.id
            for session in self.sessions:
                session.keeper.raise_local(pause)

    def resume(self, source: str) -> None:
        """Take a pause back."""
        with self._raised_lock:
            pause_id = self._paused.pop(source, None)
            if pause_id is None:
                return
            for session in self.sessions:
                session.keeper.lift_local(pause_id)

    def _raise(self, source: str, mode: Mode, scope: Scope, finding: NodeFinding) -> None:
        """Freeze for one source. The lock is held."""
        freeze = self._freeze_of(source, mode, scope, finding)
        self._raised[(source, mode)] = freeze.id
        for session in self.sessions:
            session.outbox.raise_freeze(freeze)
        self.metrics.freezes_raised.labels(freeze.trigger).inc()

    def _freeze_of(self, source: str, mode: Mode, scope: Scope, finding: NodeFinding) -> Freeze:
        figures = dict(finding.figures)
        if finding.value is not None or finding.limit is not None:
            figures = {"value": finding.value, "limit": finding.limit, **figures}
        return fitting_freeze(
            id=new_freeze_id(),
            scope=scope,
            mode=mode,
            trigger=finding.trigger,
            reason=finding.reason,
            actor=f"agent:{self._identity.node}",
            at=self._wall_clock(),
            metadata={**figures, "source": source},
        )

    def _release_monitor_if_lifted(self) -> None:
        with self._raised_lock:
            lifted = [key for key, freeze_id in self._raised.items() if not self._holds(freeze_id)]
            for key in lifted:
                del self._raised[key]
        sources = [source.removeprefix(MONITOR) for source, _ in lifted if source.startswith(MONITOR)]
        if sources:
            self.monitor.released(sources)

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
