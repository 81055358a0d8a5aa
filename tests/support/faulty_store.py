"""A store that misbehaves when told to, around one that does not: for tests of whoever uses a store.

::

    store = FaultyStore(MemoryStore("t"))
    store.cut()                 # every call raises StoreUnavailable, watches hear nothing
    store.heal()                # works again, and every watch gets on_gap
    store.lose_next_reply()     # the next commit or hold happens, and raises OutcomeUnknown
    store.time_out()            # reads raise StoreUnavailable, writes OutcomeUnknown; nothing happens
    store.silence_watches()     # calls work, watches hear nothing and are not told
    store.delay(50)             # every call takes 50 ms longer
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from killswitch.stores.port import (
    Entry,
    Guarantees,
    Lease,
    OnChange,
    OnGap,
    OutcomeUnknown,
    Store,
    StoreUnavailable,
    Watch,
)
from killswitch.stores.watching import MailboxWatch

MILLISECONDS_PER_S = 1_000


class FaultyStore:
    """The port, with faults on demand. Owns ``inner``: closing this closes that.

    A test reads :attr:`failed_calls` and :attr:`swallowed_events` to see that the fault has happened before it judges
    the outcome.

    Args:
        inner: the store that does the work.
        sleep: waits for a number of seconds; only used after :meth:`delay`.
    """

    def __init__(self, inner: Store, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._inner = inner
        self._sleep = sleep
        self._lock = threading.Lock()
        self._watches: set[FaultyWatch] = set()
        self._cut = False
        self._timing_out = False
        self._silent = False
        self._lose_reply = False
        self._delay_ms = 0
        self._failed_calls = 0
        self._swallowed_events = 0

    def cut(self) -> None:
        """From now on every call raises :class:`StoreUnavailable` without effect, and watch events are swallowed."""
        with self._lock:
            self._cut = True
            self._swallow_pending()

    def time_out(self) -> None:
        """From now on reads raise :class:`StoreUnavailable` and writes :class:`OutcomeUnknown`; neither happens."""
        with self._lock:
            self._timing_out = True

    def silence_watches(self) -> None:
        """From now on watch events are swallowed, while calls work: a connection that hangs."""
        with self._lock:
            self._silent = True
            self._swallow_pending()

    def lose_next_reply(self) -> None:
        """The next commit or hold that the store accepts happens, and raises :class:`OutcomeUnknown` all the same."""
        with self._lock:
            self._lose_reply = True

    def delay(self, delay_ms: int) -> None:
        """From now on every call takes ``delay_ms`` longer."""
        with self._lock:
            self._delay_ms = delay_ms

    def heal(self) -> None:
        """End every fault. Each watch gets ``on_gap``, as after a reconnect."""
        with self._lock:
            self._cut = self._timing_out = self._silent = self._lose_reply = False
            self._delay_ms = 0
            for watch in self._watches:
                watch.mailbox.post_gap()

    @property
    def failed_calls(self) -> int:
        """How many calls have been made to fail."""
        with self._lock:
            return self._failed_calls

    @property
    def swallowed_events(self) -> int:
        """How many watch events have been swallowed."""
        with self._lock:
            return self._swallowed_events

    @property
    def guarantees(self) -> Guarantees:
        """Those of the inner store."""
        return self._inner.guarantees

    @property
    def address(self) -> str:
        """That of the inner store."""
        return self._inner.address

    def read(self, key: str) -> Entry | None:
        """As the port says, when no fault is on."""
        self.admit(f"reading {key!r}", writes=False)
        return self._inner.read(key)

    def scan(self, prefix: str) -> list[Entry]:
        """As the port says, when no fault is on."""
        self.admit(f"scanning {prefix!r}", writes=False)
        return self._inner.scan(prefix)

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        """As the port says, when no fault is on."""
        self.admit("a commit", writes=True)
        version = self._inner.commit(expect, puts, deletes)
        self._maybe_lose_reply("a commit")
        return version

    def hold(self, key: str, value: bytes, ttl_ms: int) -> FaultyLease:
        """As the port says, when no fault is on. The lease suffers from the same faults."""
        self.admit(f"holding {key!r}", writes=True)
        lease = self._inner.hold(key, value, ttl_ms)
        self._maybe_lose_reply(f"holding {key!r}")
        return FaultyLease(self, lease)

    def watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> FaultyWatch:
        """As the port says. A watch made during a cut gets its first ``on_gap`` when that heals."""
        watch = FaultyWatch(self, prefix, on_change, on_gap)
        with self._lock:
            self._watches.add(watch)
        watch.start(self._inner)
        return watch

    def close(self) -> None:
        """End all watches, and close the inner store."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._inner.close()

    def admit(self, what: str, *, writes: bool) -> None:
        """Let a call through or make it fail, after the delay that was set."""
        with self._lock:
            delay_ms = self._delay_ms
            cut, timing_out = self._cut, self._timing_out
            if cut or timing_out:
                self._failed_calls += 1
        if delay_ms:
            self._sleep(delay_ms / MILLISECONDS_PER_S)
        if cut:
            raise StoreUnavailable(f"the store at {self.address} is cut off by the test, so {what} did not happen")
        if timing_out and writes:
            raise OutcomeUnknown(f"the store at {self.address} did not answer {what} in time, because of the test")
        if timing_out:
            raise StoreUnavailable(f"the store at {self.address} did not answer {what} in time, because of the test")

    def pass_on(self, deliver: Callable[[], None]) -> None:
        """Deliver a watch event, or swallow it."""
        with self._lock:
            if self._cut or self._silent:
                self._swallowed_events += 1
                return
            # Under the lock: after cut() has returned nothing is delivered any more that came before.
            deliver()

    def forget(self, watch: FaultyWatch) -> None:
        """Drop a watch that ended."""
        with self._lock:
            self._watches.discard(watch)

    def _maybe_lose_reply(self, what: str) -> None:
        with self._lock:
            lose, self._lose_reply = self._lose_reply, False
            self._failed_calls += lose
        if lose:
            raise OutcomeUnknown(f"the reply of the store at {self.address} to {what} was lost by the test")

    def _swallow_pending(self) -> None:
        self._swallowed_events += sum(watch.mailbox.discard() for watch in self._watches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FaultyLease:
    """A lease whose keep-alive and release suffer from the store's faults."""

    def __init__(self, store: FaultyStore, inner: Lease) -> None:
        self._store = store
        self._inner = inner

    @property
    def key(self) -> str:
        """The leased key."""
        return self._inner.key

    @property
    def version(self) -> int:
        """Version of the leased key as it was created."""
        return self._inner.version

    def keep_alive(self) -> None:
        """As the port says, when no fault is on; a time-out is :class:`StoreUnavailable` here."""
        self._store.admit(f"keeping {self.key!r} alive", writes=False)
        self._inner.keep_alive()

    def release(self) -> None:
        """As the port says, when no fault is on; a time-out is :class:`StoreUnavailable` here."""
        self._store.admit(f"releasing {self.key!r}", writes=False)
        self._inner.release()


class FaultyWatch:
    """A watch between the inner store's and the caller's callbacks, with a thread of its own for the latter.

    The thread is there because ``heal`` has to call ``on_gap`` and the port promises that all callbacks come on one.
    """

    def __init__(self, store: FaultyStore, prefix: str, on_change: OnChange, on_gap: OnGap) -> None:
        self._store = store
        self.mailbox = MailboxWatch(prefix, on_change, on_gap, on_close=lambda _: store.forget(self))
        self._inner: Watch | None = None

    def start(self, inner: Store) -> None:
        """Subscribe to ``inner`` and begin to deliver."""
        self.mailbox.start()
        self._inner = inner.watch(self.mailbox.prefix, self._changed, self._gapped)

    def close(self) -> None:
        """End it, as the port says."""
        if self._inner is not None:
            self._inner.close()
        self.mailbox.close()

    def _changed(self, entry: Entry) -> None:
        self._store.pass_on(lambda: self.mailbox.post(entry))

    def _gapped(self) -> None:
        self._store.pass_on(self.mailbox.post_gap)
