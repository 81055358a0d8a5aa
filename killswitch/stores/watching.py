"""Watches: what calls back, on one thread each, and what makes that thread go on whatever happens.

:class:`MailboxWatch` is for events that are produced in this process. :class:`ServerWatch` is for those that come from
a server: it subscribes, and when that ends it subscribes again, for ever. What a callback or a subscription raises is
logged and goes no further, and a log that cannot be written is lost: without the thread of a watch no freeze would be
heard of until the permit runs out.
"""

from __future__ import annotations

import itertools
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import structlog

from killswitch import clock
from killswitch.safe_log import say
from killswitch.stores.port import Entry, OnChange, OnGap
from killswitch.stores.timing import MILLISECONDS_PER_S, NANOSECONDS_PER_MS, backoff_ms

P = ParamSpec("P")

SILENCE_LIMIT_INTERVALS = 3

_log = structlog.get_logger(__name__)


def call_back(prefix: str, callback: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a watcher's callback; what it raises is logged and goes no further, because the watch must go on."""
    try:
        callback(*args, **kwargs)
    except Exception:  # everything: the next event may be the freeze, and it has to arrive
        say("exception", "watch callback raised", by=_log, prefix=prefix)


class MailboxWatch:
    """A subscription that others post to and a thread of its own delivers from.

    The mailbox holds one entry per key, the newest, ordered by version: a slow callback makes values in between go
    missing, as the port allows, and memory stays bounded by the number of keys.

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

    def end_soon(self) -> None:
        """Call back no more, but for a callback that is running."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called, unless called from a callback."""
        self.end_soon()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """How a watch connects, and how long it waits for a sign of life.

    Attributes:
        servers: tried in turn, at least one.
        request_timeout_ms: time that connecting, logging in and subscribing may take.
        backoff_cap_ms: longest pause between two attempts.
        alive_every_ms: how often a sign of life is asked for; three times that without one is silence.
        now_ns: clock of all of it.
        chance: random numbers from 0 to 1.
    """

    servers: Sequence[str]
    request_timeout_ms: int
    backoff_cap_ms: int
    alive_every_ms: int
    now_ns: clock.NowNs = clock.now_ns
    chance: Callable[[], float] = random.random

    @property
    def silence_limit_ms(self) -> int:
        """After so long without a sign of life a server is left: silence is never health."""
        return self.alive_every_ms * SILENCE_LIMIT_INTERVALS


S = TypeVar("S", bound=WatchSettings)


class ServerWatch(ABC, Generic[S]):
    """A running subscription to a store that has servers, but for how that one subscribes.

    Args:
        settings: of the store.
        prefix: for the thread's name and the log.
        on_change: called with each entry told.
        on_gap: called for each gap told.
        on_close: called once when the watch ends, so that its owner forgets it.
    """

    def __init__(
        self,
        settings: S,
        prefix: str,
        on_change: OnChange,
        on_gap: OnGap,
        *,
        on_close: Callable[[Any], None],
    ) -> None:
        self._prefix = prefix
        self._settings = settings
        self._on_change = on_change
        self._on_gap = on_gap
        self._on_close = on_close
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"watch {prefix}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end_soon(self) -> None:
        """Call back no more, and bound what :meth:`close` may take beyond a callback that is running."""
        with self._lock:
            self._stop.set()
            self._interrupt()

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called, unless called from a callback."""
        self.end_soon()
        self._on_close(self)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @abstractmethod
    def _subscribe(self, server: str) -> str:
        """Watch through one server until that ends; returns why it did. May raise anything."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Make :meth:`_subscribe` return soon. Called under the lock, from any thread."""

    def _tell_gap(self) -> None:
        """Say that something may have been missed, unless the watch has been closed."""
        if not self._stop.is_set():
            call_back(self._prefix, self._on_gap)

    def _tell(self, entries: Iterable[Entry]) -> None:
        """Say what has changed, one after the other, until the watch is closed."""
        for entry in entries:
            if self._stop.is_set():
                return
            call_back(self._prefix, self._on_change, entry)

    def _say_silent(self, **about: object) -> None:
        """Log that a server that had answered fell silent, unless it was told to."""
        if not self._stop.is_set():
            say("warning", "watch silent", by=_log, prefix=self._prefix, **about)

    def _run(self) -> None:
        subscribe_for_ever(
            self._subscribe,
            servers=self._settings.servers,
            stop=self._stop,
            prefix=self._prefix,
            backoff_cap_ms=self._settings.backoff_cap_ms,
            now_ns=self._settings.now_ns,
            chance=self._settings.chance,
        )


def subscribe_for_ever(
    subscribe: Callable[[str], str],
    *,
    servers: Sequence[str],
    stop: threading.Event,
    prefix: str,
    backoff_cap_ms: float,
    now_ns: clock.NowNs,
    chance: Callable[[], float],
) -> None:
    """Run ``subscribe`` again and again until ``stop`` is set, through one server after the other.

    Args:
        subscribe: watches through one server until that ends, and returns why it did.
        servers: tried in turn, at least one.
        stop: looked at after each subscription and during each pause.
        prefix: for the log.
        backoff_cap_ms: longest pause between two attempts.
        now_ns: clock that tells how long a subscription lasted.
        chance: random numbers from 0 to 1.
    """
    failures_in_a_row = 0
    for server in itertools.cycle(servers):
        started_ns = now_ns()
        try:
            why = subscribe(server)
        except Exception as error:  # everything: the next event may be the freeze, and it has to arrive
            say("exception", "watch failed", by=_log, prefix=prefix, address=server)
            why = f"a fault of ours: {error!r}"
        if stop.is_set():
            return
        lasted_ms = (now_ns() - started_ns) / NANOSECONDS_PER_MS
        # A server that accepts and drops at once must not be asked without end, so short lives count as failures.
        failures_in_a_row = 0 if lasted_ms > backoff_cap_ms else failures_in_a_row + 1
        pause_ms = backoff_ms(max(0, failures_in_a_row - 1), cap_ms=backoff_cap_ms, chance=chance())
        # Said once at the level that wakes people; a server that stays away does not fill the log.
        level = "warning" if failures_in_a_row <= 1 else "debug"
        about = {"prefix": prefix, "address": server, "why": why, "reconnect_in_ms": round(pause_ms)}
        say(level, "watch interrupted", by=_log, **about)
        if stop.wait(pause_ms / MILLISECONDS_PER_S):
            return
