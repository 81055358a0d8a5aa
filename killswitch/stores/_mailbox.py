"""A watch with a thread and a mailbox of its own, for the stores that produce their events in this process.

The mailbox holds one entry per key, the newest, ordered by version: a slow callback makes values in between go
missing, as the port allows, and memory stays bounded by the number of keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec

import structlog

from killswitch.stores._saying import say
from killswitch.stores.port import Entry, OnChange, OnGap

P = ParamSpec("P")

_log = structlog.get_logger(__name__)


def call_back(prefix: str, callback: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a watcher's callback; what it raises is logged and goes no further, because the watch must go on."""
    try:
        callback(*args, **kwargs)
    except Exception:  # everything: the next event may be the freeze, and it has to arrive
        say(_log.exception, "watch callback raised", prefix=prefix)


class MailboxWatch:
    """A subscription that others post to and a thread of its own delivers from.

    Args:
        prefix: for the thread's name and the log.
        on_change: called with each entry posted.
        on_gap: called for each gap posted, before any entry that is still waiting.
        on_close: called once when the watch ends, so that its owner forgets it.
        before_wait: called on the delivering thread before it waits, without any lock of the mailbox; returns the
            longest time to wait in seconds, or ``None`` for as long as it takes.
    """

    def __init__(
        self,
        prefix: str,
        on_change: OnChange,
        on_gap: OnGap,
        *,
        on_close: Callable[[MailboxWatch], None],
        before_wait: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.prefix = prefix
        self._on_change = on_change
        self._on_gap = on_gap
        self._on_close = on_close
        self._before_wait = before_wait
        self._changed = threading.Condition(threading.Lock())
        self._entries: dict[str, Entry] = {}
        self._gap = False
        self._nudged = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"watch {prefix}", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def post(self, entry: Entry) -> None:
        """Deliver ``entry`` soon, unless a newer one of its key comes first."""
        with self._changed:
            # Taken out and put in again: the order of the dict is the order of the newest versions.
            self._entries.pop(entry.key, None)
            self._entries[entry.key] = entry
            self._changed.notify()

    def post_gap(self) -> None:
        """Deliver ``on_gap`` next."""
        with self._changed:
            self._gap = True
            self._changed.notify()

    def discard(self) -> int:
        """Forget what has not been delivered; returns how many events that were."""
        with self._changed:
            count = len(self._entries) + self._gap
            self._entries.clear()
            self._gap = False
            return count

    def nudge(self) -> None:
        """Make the thread call ``before_wait`` again."""
        with self._changed:
            self._nudged = True
            self._changed.notify()

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called, unless called from a callback."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._on_close(self)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            longest_wait_s = self._before_wait()
            with self._changed:
                if not (self._closing or self._gap or self._entries or self._nudged):
                    self._changed.wait(longest_wait_s)
                if self._closing:
                    return
                self._nudged = False
                gap, self._gap = self._gap, False
                entry = None
                if not gap and self._entries:
                    entry = self._entries.pop(next(iter(self._entries)))
            if gap:
                call_back(self.prefix, self._on_gap)
            elif entry is not None:
                call_back(self.prefix, self._on_change, entry)
