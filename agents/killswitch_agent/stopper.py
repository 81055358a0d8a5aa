"""Carries a stop to the routers and the proof of it to the store.

Runs on a thread of its own: the gate is closed before anything here begins, and a slow router or store delays the
proof, never the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import AckRecord, RouterAnswer, mode_name
from killswitch.core.flag import Freeze, merge
from killswitch.core.modes import strictest
from killswitch.link.messages import StopCause
from killswitch.stores.port import StoreError
from killswitch_agent.gatekeeper import GateKeeper, View
from killswitch_agent.membership import REPORT_UNREADABLE, LeaseFence
from killswitch_agent.routers import RouterRegistry, RouterState, answer_of

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


class RouterStops:
    """What the node's routers are told, over all the stores that can stop them.

    Epochs of several stores are added up, so that the number that a router hears, and answers with, grows with every
    change of any of them; with one store it is the flag's own.
    """

    def __init__(self) -> None:
        self._keepers: list[GateKeeper] = []
        self._lock = threading.Lock()
        self._flag_ids: list[frozenset[str]] = []
        self._stop_epochs: list[int | None] = []
        self._pushed: tuple[tuple[int | None, ...], frozenset[str]] = ((), frozenset())

    def follow(self, keeper: GateKeeper) -> int:
        """Take a store's keeper in; returns its number, for :meth:`stop_epoch`."""
        with self._lock:
            self._keepers.append(keeper)
            self._flag_ids.append(frozenset())
            self._stop_epochs.append(None)
            self._pushed = (tuple(self._stop_epochs), frozenset())
            return len(self._keepers) - 1

    def stop_epoch(self, number: int) -> int | None:
        """Epoch whose stop the routers must have answered for one store; ``None`` while it stops nothing here."""
        with self._lock:
            return self._stop_epochs[number]

    def current_stop(self) -> tuple[int, Sequence[StopCause]]:
        """What a router that connects now must be told."""
        return _told([keeper.view() for keeper in self._keepers])

    def sync(self, push_stop: PushStop, push_resume: PushStop) -> None:
        """Push what has changed since the last call; pushes go out in the order of the changes."""
        with self._lock:
            views = [keeper.view() for keeper in self._keepers]
            epoch, causes = _told(views)
            for number, view in enumerate(views):
                flag_ids = frozenset(cause.id for cause in view.flag_causes)
                if not flag_ids:
                    self._stop_epochs[number] = None
                elif flag_ids - self._flag_ids[number] or self._stop_epochs[number] is None:
                    self._stop_epochs[number] = epoch
                self._flag_ids[number] = flag_ids
            all_ids = frozenset(cause.id for cause in causes)
            before_epochs, before_ids = self._pushed
            self._pushed = (tuple(self._stop_epochs), all_ids)
            grew = bool(all_ids - before_ids) or (bool(all_ids) and self._pushed[0] != before_epochs)
            if grew:
                push_stop(epoch, causes)
            elif before_ids - all_ids:
                push_resume(epoch, causes)


def _told(views: Sequence[View]) -> tuple[int, list[StopCause]]:
    """Return the epoch and the causes that routers hear of, each cause once."""
    causes = merge(*(view.flag_causes for view in views), *(view.local_causes for view in views))
    return sum(view.epoch for view in views), [to_cause(cause) for cause in causes]


class Acknowledger:
    """Writes this node's acks to one store, while the node's place there is this agent's.

    An ack is the word of the node. An agent that waits for the name knows neither the gate nor the routers that it
    would speak of, and one whose lease went may have a successor that speaks now: neither writes.

    Args:
        cluster: where they go.
        node: name of this node.
        instance: which run of the agent.
        keeper: tells what the gate holds for this store.
        stops: tells which stop the routers must have answered.
        book: tells how they answered.
        place: tells which lease the agent holds as the node, ``None`` while it holds none or does not know yet what
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
        book: RouterRegistry,
        place: Callable[[], LeaseFence | None],
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._instance = instance
        self._keeper = keeper
        self._stops = stops
        self._number = stops.follow(keeper)
        self._book = book
        self._place = place
        self._written: tuple[LeaseFence, AckRecord] | None = None
        self.wake = threading.Event()

    def write_ack(self) -> bool:
        """Write the ack when it says something new; True when the store has what there is to say."""
        place = self._place()
        if place is None:
            return False
        # Asked for after the place: the routers of an earlier run are in the book now.
        record = self._ack(self._keeper.view())
        if record is None or self._is_written(place, record):
            return True
        key = self._cluster.keys.under("acks", self._node)
        try:
            self._cluster.store.commit({place.key: place.version}, {key: record.to_bytes()})
        except StoreError as error:
            log.warning("ack_not_written", store=self._cluster.store.address, epoch=record.epoch, error=str(error))
            return False
        self._written = place, record
        log.info(
            "acked",
            store=self._cluster.store.address,
            epoch=record.epoch,
            complete=record.complete,
            open=record.orders_open,
        )
        return True

    def _is_written(self, place: LeaseFence, record: AckRecord) -> bool:
        """Tell whether the store has this; what was written under an earlier lease may have been taken away since."""
        return self._written is not None and self._written[0] == place and _says_the_same(record, self._written[1])

    def _ack(self, view: View) -> AckRecord | None:
        flag = view.adopted
        if flag is None or view.epoch > flag.epoch:
            # The watch is ahead by the moment that a linearizable read and the journal take. Acks speak of what the
            # node has acted on as a whole; a journal that cannot be written keeps the gate closed and the ack true.
            return None
        states = self._book.states()
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
