"""Carries a stop to the routers and the proof of it to the store.

Runs on a thread of its own: the gate is closed before anything here begins, and a slow router or store delays the
proof, never the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from agents.gatekeeper import GateKeeper, View
from agents.routers import RouterBook, RouterState, answer_of
from killswitch.cluster import Cluster
from killswitch.core.flag import Freeze
from killswitch.core.modes import strictest
from killswitch.link.messages import StopCause
from killswitch.records import AckRecord, RouterAnswer, mode_name
from killswitch.stores.port import StoreError

log = structlog.get_logger(__name__)

PushStop = Callable[[int, Sequence[StopCause]], None]


def to_cause(freeze: Freeze) -> StopCause:
    """Return a freeze as routers hear it."""
    return StopCause(freeze.id, freeze.scope, freeze.mode, freeze.trigger, freeze.reason)


def router_answers(states: Sequence[RouterState], stop_epoch: int | None) -> list[RouterAnswer]:
    """Return how each router answered the stop of ``stop_epoch``; ``None`` when nothing was to stop."""
    epoch = stop_epoch or 0
    answers = []
    for state in states:
        result = state.result if state.result is not None and state.result_epoch >= epoch else None
        answers.append(
            RouterAnswer(
                router=state.router,
                state=state.presence.value,
                working_orders=state.open_orders(epoch) if stop_epoch is not None else state.exposure.working_orders,
                last_sequence=state.last_sequence,
                cancelled=result.cancelled if result is not None and stop_epoch is not None else 0,
                failed=result.failed if result is not None and stop_epoch is not None else 0,
                answered=stop_epoch is None or state.answered(epoch),
            )
        )
    return answers


class Stopper:
    """Pushes stops and resumes to routers and writes acks.

    Args:
        cluster: where acks go.
        node: name of this node.
        instance: which run of the agent.
        keeper: tells what the gate holds.
        book: tells how routers answered.
    """

    def __init__(self, cluster: Cluster, node: str, instance: str, keeper: GateKeeper, book: RouterBook) -> None:
        self._cluster = cluster
        self._node = node
        self._instance = instance
        self._keeper = keeper
        self._book = book
        self._lock = threading.Lock()
        self._flag_ids: frozenset[str] = frozenset()
        self._pushed: tuple[int | None, frozenset[str]] = (None, frozenset())
        self._stop_epoch: int | None = None
        self._written: AckRecord | None = None
        self.wake = threading.Event()

    @property
    def stop_epoch(self) -> int | None:
        """Epoch whose stop the routers must have answered; ``None`` while nothing on this node is to stop."""
        with self._lock:
            return self._stop_epoch

    def current_stop(self) -> tuple[int, Sequence[StopCause]]:
        """What a router that connects now must be told."""
        view = self._keeper.view()
        return view.epoch, [to_cause(cause) for cause in (*view.flag_causes, *view.local_causes)]

    def sync_routers(self, push_stop: PushStop, push_resume: PushStop) -> None:
        """Push what has changed since the last call."""
        view = self._keeper.view()
        flag_ids = frozenset(cause.id for cause in view.flag_causes)
        all_ids = flag_ids | {cause.id for cause in view.local_causes}
        with self._lock:
            if not flag_ids:
                self._stop_epoch = None
            elif flag_ids - self._flag_ids or self._stop_epoch is None:
                self._stop_epoch = view.epoch
            self._flag_ids = flag_ids
            before_epoch, before_ids = self._pushed
            self._pushed = (self._stop_epoch, all_ids)
            grew = bool(all_ids - before_ids) or (bool(all_ids) and self._stop_epoch != before_epoch)
            shrank = bool(before_ids - all_ids)
        causes = [to_cause(cause) for cause in (*view.flag_causes, *view.local_causes)]
        if grew:
            push_stop(view.epoch, causes)
        elif shrank:
            push_resume(view.epoch, causes)

    def write_ack(self) -> bool:
        """Write the ack when it says something new; True when the store has what there is to say."""
        record = self._ack(self._keeper.view())
        if record is None or (self._written is not None and _says_the_same(record, self._written)):
            return True
        try:
            self._cluster.store.commit({}, {self._cluster.keys.under("acks", self._node): record.to_bytes()})
        except StoreError as error:
            log.warning("ack_not_written", epoch=record.epoch, error=str(error))
            return False
        self._written = record
        log.info("acked", epoch=record.epoch, complete=record.complete, open=record.orders_open)
        return True

    def _ack(self, view: View) -> AckRecord | None:
        flag = view.adopted
        if flag is None or view.epoch > flag.epoch:
            # The watch is ahead by the moment that a linearizable read and the journal take. Acks speak of what the
            # node has acted on as a whole; a journal that cannot be written keeps the gate closed and the ack true.
            return None
        states = self._book.states()
        answer = answer_of(states, self.stop_epoch)
        return AckRecord(
            node=self._node,
            instance=self._instance,
            epoch=flag.epoch,
            freezes=sorted(flag.freeze_ids()),
            mode=mode_name(strictest(cause.mode for cause in view.flag_causes)),
            complete=answer.complete,
            orders_cancelled=answer.cancelled,
            orders_failed=answer.failed,
            orders_open=answer.open,
            last_sequence=answer.last_sequence,
            routers=router_answers(states, self.stop_epoch),
            at=self._cluster.wall_clock(),
        )


def _says_the_same(one: AckRecord, other: AckRecord) -> bool:
    return one.model_copy(update={"at": other.at}) == other
