"""The agent's word to the store: tells the store what the node has found, again and again until the store has it.

The gate is closed already when a cause arrives here. Saying it to the cluster may take as long as it takes: a store
that is down, a flag that cannot be read, a cluster that is not initialised all leave the cause waiting, and the gate
closed by it.
"""

from __future__ import annotations

import threading

import structlog

from killswitch.cluster.cluster import Cluster, FreezeNotCommitted, NotInitialised
from killswitch.cluster.records import UnreadableRecord
from killswitch.core.flag import Freeze
from killswitch.stores.port import StoreError
from killswitch_agent.gatekeeper import GateKeeper

log = structlog.get_logger(__name__)

ATTEMPT_MS = 2_000
WAITING_MAX = 64
"""Causes that wait to be told; beyond it a cause only closes this node's gate, and says so."""


class FreezeOutbox:
    """Carries causes and reassertions to the store, on the thread that calls :meth:`flush`."""

    def __init__(self, cluster: Cluster, keeper: GateKeeper) -> None:
        self._cluster = cluster
        self._keeper = keeper
        self._lock = threading.Lock()
        self._waiting: dict[str, Freeze] = {}
        self.wake = threading.Event()

    def raise_freeze(self, freeze: Freeze) -> None:
        """Close this node's gate now, and have the cluster frozen as soon as the store takes it."""
        self._keeper.raise_local(freeze)
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                log.critical("freeze_stays_local", cause=freeze.id, waiting=len(self._waiting))
                return
            self._waiting[freeze.id] = freeze
        self.wake.set()

    @property
    def waiting(self) -> int:
        """Causes that the store does not have yet."""
        with self._lock:
            return len(self._waiting)

    def flush(self) -> bool:
        """Try once to say everything that waits; True when nothing waits any more."""
        self._reassert()
        with self._lock:
            waiting = list(self._waiting.values())
        for freeze in waiting:
            if self._say(freeze):
                with self._lock:
                    self._waiting.pop(freeze.id, None)
        return self.waiting == 0 and self._keeper.reassertion is None

    def _say(self, freeze: Freeze) -> bool:
        try:
            committed = self._cluster.freeze(freeze, timeout_ms=ATTEMPT_MS)
        except (FreezeNotCommitted, NotInitialised, UnreadableRecord, StoreError) as error:
            log.error("freeze_not_told", cause=freeze.id, error=str(error))
            return False
        log.critical("freeze_told", cause=freeze.id, epoch=committed.flag.epoch, ms=round(committed.committed_ms, 1))
        self._keeper.settle_local(freeze.id, committed.flag.epoch)
        return True

    def _reassert(self) -> None:
        due = self._keeper.reassertion
        if due is None:
            return
        try:
            flag = self._cluster.reassert(due.known, due.cause)
        except (UnreadableRecord, StoreError) as error:
            log.error("reassertion_failed", cause=due.cause.id, error=str(error))
            return
        log.critical("store_told_again", cause=due.cause.id, epoch=flag.epoch)
