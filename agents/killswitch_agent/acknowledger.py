"""Carries the proof of a stop to one store: the node's ack.

Runs on a thread of its own: a slow store delays the proof, never the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import AckRecord, RouterAnswer, mode_name
from killswitch.core.modes import strictest
from killswitch.stores.port import StoreError
from killswitch_agent.gatekeeper import GateKeeper, View
from killswitch_agent.membership import REPORT_UNREADABLE, LeaseFence
from killswitch_agent.router_stops import RouterStops
from killswitch_agent.routers import RouterRegistry, RouterState, answer_of

log = structlog.get_logger(__name__)


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


class Acknowledger:
    """Writes this node's acks to one store, while this agent holds the node's lease there.

    An ack is the word of the node. An agent that waits for the name knows neither the gate nor the routers that it
    would speak of, and one whose lease went may have a successor that speaks now: neither writes.

    Args:
        cluster: where they go.
        node: name of this node.
        instance: which run of the agent.
        keeper: tells what the gate holds for this store.
        stops: tells which stop the routers must have answered.
        routers: tells how they answered.
        fence: tells which lease the agent holds as the node, ``None`` while it holds none or does not know yet what
            routers an earlier run had.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        node: str,
        instance: str,
        keeper: GateKeeper,
        stops: RouterStops,
        routers: RouterRegistry,
        fence: Callable[[], LeaseFence | None],
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._instance = instance
        self._keeper = keeper
        self._stops = stops
        self._number = stops.follow(keeper)
        self._routers = routers
        self._fence = fence
        self._written: tuple[LeaseFence, AckRecord] | None = None
        self.wake = threading.Event()

    def write_ack(self) -> bool:
        """Write the ack when it says something new; True when the store has what there is to say."""
        fence = self._fence()
        if fence is None:
            return False
        # Asked for after the fence: the routers of an earlier run are known now.
        record = self._ack(self._keeper.view())
        if record is None or self._is_written(fence, record):
            return True
        key = self._cluster.keys.under("acks", self._node)
        try:
            self._cluster.store.commit({fence.key: fence.version}, {key: record.to_bytes()})
        except StoreError as error:
            log.warning("ack_not_written", store=self._cluster.store.address, epoch=record.epoch, error=str(error))
            return False
        self._written = fence, record
        log.info(
            "acked",
            store=self._cluster.store.address,
            epoch=record.epoch,
            complete=record.complete,
            open=record.orders_open,
        )
        return True

    def _is_written(self, fence: LeaseFence, record: AckRecord) -> bool:
        """Tell whether the store has this; what was written under an earlier lease may have been taken away since."""
        return self._written is not None and self._written[0] == fence and _says_the_same(record, self._written[1])

    def _ack(self, view: View) -> AckRecord | None:
        flag = view.adopted
        if flag is None or view.epoch > flag.epoch:
            # The watch is ahead by the moment that a linearizable read and the journal take. Acks speak of what the
            # node has acted on as a whole; a journal that cannot be written keeps the gate closed and the ack true.
            return None
        states = self._routers.states()
        stop_epoch = self._stops.stop_epoch(self._number)
        answer = answer_of(states, stop_epoch)
        return AckRecord(
            node=self._node,
            instance=self._instance,
            epoch=flag.epoch,
            freezes=sorted(flag.freeze_ids()),
            mode=mode_name(strictest(cause.mode for cause in view.flag_causes)),
            complete=answer.complete and not self._holds_what_is_unknown(view),
            orders_cancelled=answer.cancelled,
            orders_failed=answer.failed,
            orders_open=answer.open,
            last_sequence=answer.last_sequence,
            routers=router_answers(states, stop_epoch),
            at=self._cluster.wall_clock(),
        )

    def _holds_what_is_unknown(self, view: View) -> bool:
        """Tell whether the node is frozen because nobody can read what it held: no answer of its routers makes it flat.

        The release of that freeze is a person's word that they have looked.
        """
        causes = (*view.flag_causes, *view.local_causes)
        return any(cause.trigger == REPORT_UNREADABLE and cause.actor == f"agent:{self._node}" for cause in causes)


def _says_the_same(one: AckRecord, other: AckRecord) -> bool:
    return one.model_copy(update={"at": other.at}) == other
