"""The coordinator: adds up what the cluster holds, freezes by rule, collects the proof. Several run, one leads.

Threads: *election* (keeps or seeks the leader key), *evaluate* (reads, applies the rules, freezes), *certify* (acks
and certificates), one of the store's watch, one for HTTP. Every act carries the election's fence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from killswitch.cluster.cluster import Cluster, FreezeNotCommitted, NotInitialised, new_freeze_id
from killswitch.cluster.records import ClusterViewRecord, UnreadableRecord
from killswitch.cluster.roster import NodeRoster
from killswitch.core.flag import Flag, Freeze, fitting_freeze
from killswitch.core.modes import Mode
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.core.scopes import GLOBAL
from killswitch.http_status import StatusServer
from killswitch.settings.config import CoordinatorSettings
from killswitch.stores.port import Conflict, Entry, StoreError
from killswitch_coordinator.certifier import Certifier
from killswitch_coordinator.election import Election
from killswitch_coordinator.rules import (
    RULE_METADATA,
    Reading,
    RuleState,
    Snapshot,
    drawdown_usd,
    note_tripped,
    observe,
    read_rules,
    recall,
    to_freeze,
)

log = structlog.get_logger(__name__)

FREEZE_TIMEOUT_MS = 2_000
CERTIFY_EVERY_S = 0.05
PERSIST_EVERY_MS = 1_000
SIGNAL_CHECK_S = 0.25
"""The main thread wakes this often: a signal that another thread has taken does not end its wait."""
LOOP_SILENT_AFTER_S = 10.0


@dataclass(slots=True)
class _Leadership:
    """What a leader remembers during one term, by the thread *evaluate* alone."""

    term: int
    state: RuleState
    persisted_ns: int = 0


class Coordinator:
    """One coordinator. :meth:`run` returns when :meth:`stop` was called.

    Args:
        cluster: the cluster in its store.
        settings: rules and ports.
        candidate: name of this coordinator.
        instance: which run of it.
    """

    def __init__(self, cluster: Cluster, settings: CoordinatorSettings, *, candidate: str, instance: str) -> None:
        self._cluster = cluster
        self._settings = settings
        self._candidate = candidate
        self._stopping = threading.Event()
        self._stop_asked = False
        self._turned_ns = cluster.clock()
        self._leadership: _Leadership | None = None
        self._report_changed: dict[str, tuple[int, int]] = {}
        self._lost_before: frozenset[str] | None = None
        self._warned: set[str] = set()
        self._blind = ""
        self._certify_lock = threading.Lock()
        self.election = Election(cluster, candidate, instance)
        self._certifier = Certifier(cluster, self.election, candidate)
        self.registry = CollectorRegistry()
        self._make_metrics()
        self._http = StatusServer(
            settings.http_host, settings.http_port, registry=self.registry, healthy=self.healthy, ready=self.ready
        )

    @property
    def http_port(self) -> int:
        """Port on which the status is served."""
        return self._http.port

    def run(self) -> None:
        """Stand for election and, while leading, act; ends when stopped."""
        loops: tuple[tuple[str, Callable[[], None], float], ...] = (
            ("election", self.election.step, self._cluster.timing.renew_every_ms / 1000),
            ("evaluate", self.evaluate, self._settings.evaluate_every_ms / 1000),
            ("certify", self._certify, CERTIFY_EVERY_S),
        )
        threads = [
            threading.Thread(target=self._loop, args=(work, pause_s), name=name, daemon=True)
            for name, work, pause_s in loops
        ]
        watch = self._cluster.store.watch(self._cluster.keys.flag, self._flag_changed, lambda: None)
        for thread in threads:
            thread.start()
        while not (self._stop_asked or self._stopping.wait(SIGNAL_CHECK_S)):
            pass
        self._stopping.set()
        watch.close()
        for thread in threads:
            thread.join(timeout=5)
        self._certifier.close()
        self.election.resign()
        self._http.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end. Safe in a signal handler."""
        # A plain name and no Event: the handler runs inside the main thread's own wait, whose lock it would wait for.
        self._stop_asked = True

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        """The loop turns; a store that is down is no reason to restart."""
        silent_s = (self._cluster.clock() - self._turned_ns) / 1e9
        return silent_s < LOOP_SILENT_AFTER_S, {"evaluate_loop_silent_s": round(silent_s, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The loop turns; whether this one leads is shown beside it."""
        well, figures = self.healthy()
        if self._blind and self.election.leads:
            well, figures = False, {**figures, "blind": self._blind}
        return well, {**figures, "leads": self.election.leads, "term": self.election.term}

    # -- one evaluation ------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Read the cluster once, apply the rules, freeze where one has tripped. Does nothing unless leading."""
        self._turned_ns = self._cluster.clock()
        if not self.election.leads:
            self._leadership = None
            self._lost_before = None
            return
        flag = self._cluster.read_flag().flag
        leadership = self._lead(flag)
        membership = self._cluster.membership()
        snapshot = self._snapshot(membership)
        readings = read_rules(self._settings.rules, snapshot, leadership.state)
        before = leadership.state
        leadership.state = observe(before, snapshot, readings, flag)
        # Read again: a released drawdown has a new peak, and must not trip by the old one.
        readings = read_rules(self._settings.rules, snapshot, leadership.state)
        for reading in to_freeze(readings, leadership.state):
            self._freeze_by(reading, leadership)
        self._warn(readings)
        self._persist(leadership, snapshot, changed=(before.accepted != leadership.state.accepted))
        self._blind = ""

    def _lead(self, flag: Flag) -> _Leadership:
        """Return the leadership of this term, with what the leader before has left."""
        term = self.election.term
        if self._leadership is None or self._leadership.term != term:
            entry = self._cluster.store.read(self._cluster.keys.view)
            blind = ""
            view: ClusterViewRecord | None = None
            try:
                view = ClusterViewRecord.from_bytes(entry.value, key=entry.key) if entry else None
            except UnreadableRecord as error:
                blind = f"what the leader before measured from is lost: {error}"
            state = recall(flag, view.pnl_peak_usd if view else 0.0, view.accepted if view else {})
            self._leadership = _Leadership(term, state)
            with self._certify_lock:
                self._certifier.start(flag)
            if blind:
                self._freeze_blind(blind)
        return self._leadership

    def _freeze_blind(self, reason: str) -> None:
        """Freeze because the rules cannot be applied: what cannot be judged counts as a breach (UNKNOWN IS FROZEN)."""
        self._blind = reason
        if self._leadership is None:
            return
        detail = {"error": reason}
        reading = Reading("monitor_error", "monitor_error", 1.0, None, 1.0, "rounds", GLOBAL, Mode.FROZEN, detail)
        if reading.key not in self._leadership.state.tripped:
            self._freeze_by(reading, self._leadership, reason=f"the coordinator cannot apply its rules: {reason}")

    def _snapshot(self, membership: NodeRoster) -> Snapshot:
        now = self._cluster.clock()
        for node, version in membership.report_versions.items():
            if self._report_changed.get(node, (None, 0))[0] != version:
                self._report_changed[node] = (version, now)
        ages = {
            node: (now - self._report_changed[node][1]) / NANOSECONDS_PER_MS
            for node in membership.live
            if node in self._report_changed
        }
        return Snapshot(membership.exposure(), self._lost_twice(membership), ages, membership.unreadable_reports())

    def _lost_twice(self, membership: NodeRoster) -> tuple[str, ...]:
        """Nodes without a lease in this round and in the one before; in the first round of a leader all without one.

        The lists are read one after the other, and an agent that starts again gives its lease up and takes it anew: a
        node may be seen without a lease for an instant. A rule must not freeze everybody for that. The first round
        takes all, for what was accepted of the leader before would end with a round in which nobody is lost.
        """
        lost = frozenset(membership.lost())
        confirmed = lost if self._lost_before is None else lost & self._lost_before
        self._lost_before = lost
        return tuple(sorted(confirmed))

    def _freeze_by(self, reading: Reading, leadership: _Leadership, *, reason: str = "") -> None:
        fence = self.election.fence
        if fence is None:
            return
        freeze = fitting_freeze(
            id=new_freeze_id(),
            scope=reading.scope,
            mode=reading.mode,
            trigger=reading.trigger,
            reason=reason or reading.sentence,
            actor=f"coordinator:{self._candidate}",
            at=self._cluster.wall_clock(),
            metadata={
                RULE_METADATA: reading.key,
                "figure": reading.figure,
                "hard": reading.hard,
                "unit": reading.unit,
                "term": leadership.term,
                **reading.detail,
            },
        )
        try:
            committed = self._cluster.freeze(
                freeze, timeout_ms=FREEZE_TIMEOUT_MS, fence=fence, skip=lambda flag: _has_rule(flag, reading.key)
            )
        except (FreezeNotCommitted, NotInitialised, UnreadableRecord, StoreError) as error:
            log.error("rule_could_not_freeze", rule=reading.key, error=str(error))
            return
        in_force = next((cause for cause in committed.flag.freezes if _is_rule(cause, reading.key)), freeze)
        leadership.state = note_tripped(leadership.state, reading.key, in_force.id)
        if in_force.id == freeze.id:
            with self._certify_lock:
                self._certifier.begin(freeze, committed)
            self._frozen.labels(reading.trigger).inc()
            log.critical("frozen_by_rule", rule=reading.key, reason=freeze.reason, epoch=committed.flag.epoch)

    def _warn(self, readings: list[Reading]) -> None:
        over = {reading.key for reading in readings if reading.over_warning}
        for reading in readings:
            level = 2 if reading.over_hard else 1 if reading.over_warning else 0
            self._level.labels(reading.key).set(level)
            self._figure.labels(reading.key).set(reading.figure)
            if reading.key in over and reading.key not in self._warned:
                log.warning("rule_level_reached", rule=reading.key, reason=reading.sentence, level=level)
        self._warned = over

    def _persist(self, leadership: _Leadership, snapshot: Snapshot, *, changed: bool) -> None:
        """Keep for the next leader what the rules measure from."""
        now = self._cluster.clock()
        self._gross.set(snapshot.exposure.gross_usd)
        self._net.set(snapshot.exposure.net_usd)
        self._pnl.set(snapshot.exposure.pnl_usd)
        self._lost.set(len(snapshot.lost_nodes))
        if not changed and now - leadership.persisted_ns < PERSIST_EVERY_MS * NANOSECONDS_PER_MS:
            return
        fence = self.election.fence
        if fence is None:
            return
        record = ClusterViewRecord(
            term=leadership.term,
            at=self._cluster.wall_clock(),
            gross_usd=snapshot.exposure.gross_usd,
            net_usd=snapshot.exposure.net_usd,
            pnl_usd=snapshot.exposure.pnl_usd,
            pnl_peak_usd=leadership.state.pnl_peak_usd,
            drawdown_usd=drawdown_usd(leadership.state, snapshot.exposure),
            lost_nodes=list(snapshot.lost_nodes),
            accepted=dict(leadership.state.accepted),
        )
        self._cluster.store.commit(fence, {self._cluster.keys.view: record.to_bytes()})
        leadership.persisted_ns = now

    # -- certificates, loops, metrics ----------------------------------------------------------------------------

    def _flag_changed(self, entry: Entry) -> None:
        if entry.key != self._cluster.keys.flag or not self.election.leads:
            return
        try:
            flag = self._cluster.parse_flag(entry).flag
        except (NotInitialised, UnreadableRecord) as error:
            log.critical("flag_unusable", error=str(error))
            return
        with self._certify_lock:
            self._certifier.saw(flag)

    def _certify(self) -> None:
        if self.election.leads:
            with self._certify_lock:
                self._certifier.step()

    def _loop(self, work: Callable[[], None], pause_s: float) -> None:
        while not self._stopping.is_set():
            try:
                work()
            except Conflict as error:
                log.error("fenced_off", error=str(error))
            except (StoreError, NotInitialised, UnreadableRecord) as error:
                log.warning("coordinator_cannot_see", error=str(error))
                self._blind = str(error)
                self._failures.labels(type(error).__name__).inc()
            except Exception as error:
                # A leader that cannot evaluate is worse than none: a standby may do better.
                log.exception("coordinator_failed", thread=threading.current_thread().name)
                self._failures.labels("bug").inc()
                self._give_up(error)
            self._stopping.wait(pause_s)

    def _give_up(self, error: Exception) -> None:
        """Freeze for what could not be judged, then let a standby try; neither may fail because of the other."""
        try:
            self._freeze_blind(repr(error))
        finally:
            self.election.resign()

    def _make_metrics(self) -> None:
        registry = self.registry
        leads = Gauge("killswitch_leads", "1 while this coordinator leads.", registry=registry)
        leads.set_function(lambda: float(self.election.leads))
        term = Gauge("killswitch_term", "Newest term of this coordinator.", registry=registry)
        term.set_function(lambda: float(self.election.term))
        self._gross = Gauge("killswitch_cluster_gross_usd", "Gross notional of the cluster.", registry=registry)
        self._net = Gauge("killswitch_cluster_net_usd", "Net notional of the cluster.", registry=registry)
        self._pnl = Gauge("killswitch_cluster_pnl_usd", "Profit and loss of the cluster.", registry=registry)
        self._lost = Gauge("killswitch_nodes_lost", "Registered nodes without a live agent.", registry=registry)
        self._level = Gauge(
            "killswitch_rule_level", "0 below, 1 warning, 2 hard level reached.", ["rule"], registry=registry
        )
        self._figure = Gauge("killswitch_rule_figure", "The figure that a rule looks at.", ["rule"], registry=registry)
        self._frozen = Counter(
            "freeze_triggered_total", "Freezes by the rules of this coordinator.", ["reason"], registry=registry
        )
        self._failures = Counter(
            "killswitch_coordinator_failures_total", "Rounds that failed.", ["kind"], registry=registry
        )


def _is_rule(freeze: Freeze, key: str) -> bool:
    return freeze.metadata.get(RULE_METADATA) == key


def _has_rule(flag: Flag, key: str) -> bool:
    return any(_is_rule(freeze, key) for freeze in flag.freezes)
