"""What the routers of a node are told to stop, over all the stores that can stop them.

The gate is closed before anything here begins: a slow router delays the proof, never the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from killswitch.core.flag import Freeze, merge
from killswitch.link.messages import StopCause
from killswitch_agent.gatekeeper import GateKeeper, View

PushStop = Callable[[int, Sequence[StopCause]], None]


def to_cause(freeze: Freeze) -> StopCause:
    """Return a freeze as routers hear it."""
    return StopCause(freeze.id, freeze.scope, freeze.mode, freeze.trigger, freeze.reason)


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
