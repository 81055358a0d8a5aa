"""The store port: the few things that a store must do to carry a kill switch. No word of trading in here.

Keys are non-empty strings, values are bytes of at most :data:`VALUE_MAX_BYTES`. A *version* is an integer that grows
with every write to the store; absence is ``None``. All methods may be called from any thread; every call returns or
raises within the store's request time-out.

The five errors::

    StoreError
    +-- Conflict          an expected version does not hold; nothing was written
    +-- LeaseLost         the lease is definitely gone
    +-- StoreUnavailable  no answer, and it definitely did not happen (every failed read is one)
    +-- OutcomeUnknown    no answer, and it may have happened
    +-- StoreForbidden    the store refuses these credentials, or this request for ever; retrying is pointless
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

VALUE_MAX_BYTES = 256 * 1024


class StoreError(Exception):
    """Base of the five; the message is a sentence with the store's address in it."""


class Conflict(StoreError):
    """An expected version does not hold; nothing was written."""


class LeaseLost(StoreError):
    """The lease is definitely gone, or its key is no longer its own."""


class StoreUnavailable(StoreError):
    """No answer, and the request definitely had no effect."""


class OutcomeUnknown(StoreError):
    """No answer, and the write may or may not have happened. Read, then decide."""


class StoreForbidden(StoreError):
    """The store refuses; trying again will not help."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it stands: ``value`` is ``None`` only in a watch event, where it says that the key was deleted."""

    key: str
    value: bytes | None
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    """What a store promises, shown to the operator. The conformance suite proves each; none switches a test off.

    Attributes:
        linearizable_reads: a read sees every commit that returned before the read began.
        survives_failover: a commit that returned is not forgotten when the store's leader dies.
        atomic_multi_key: a commit writes all its keys or none.
        fenced: a server that is cut off from the others answers nobody, so no read is older than a confirmed commit to
            the server that took its place.
        lease_slack_ms: how long after ``ttl`` a dead holder's key may still be there.
        note: what the operator should know, in a sentence.
    """

    linearizable_reads: bool
    survives_failover: bool
    atomic_multi_key: bool
    lease_slack_ms: int
    fenced: bool = True
    note: str = ""


@runtime_checkable
class Lease(Protocol):
    """A key that is there only as long as its holder keeps it alive."""

    @property
    def key(self) -> str:
        """The leased key."""

    @property
    def version(self) -> int:
        """Version of the leased key; name it in ``commit(expect=...)`` to act only while the lease is held."""

    def keep_alive(self) -> None:
        """Start the time to live anew.

        Raises:
            LeaseLost: definitely gone, or its key was deleted or written over by somebody.
            StoreUnavailable: no answer; the lease may be alive or not.
        """

    def release(self) -> None:
        """Give the lease up: the key is deleted now. Never raises for a lease that is gone already.

        Raises:
            StoreUnavailable: no answer; the key goes when its time to live runs out.
        """


class Watch(Protocol):
    """A running subscription."""

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called (unless called from a callback)."""


OnChange = Callable[[Entry], None]
OnGap = Callable[[], None]


class Store(Protocol):
    """The port itself. See the module docstring for what all methods have in common."""

    @property
    def guarantees(self) -> Guarantees:
        """Declared facts about this store."""

    @property
    def address(self) -> str:
        """Where it is, as a person would type it, without credentials."""

    def read(self, key: str) -> Entry | None:
        """Linearizable read: the newest value, or ``None`` when the key is absent.

        Raises:
            StoreUnavailable: no answer in time.
            StoreForbidden: refused.
        """

    def scan(self, prefix: str) -> list[Entry]:
        """All entries whose key begins with ``prefix``, sorted by key, as of one instant.

        Raises:
            StoreUnavailable: no answer in time.
            StoreForbidden: refused.
        """

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        """Atomically: every expected version holds (``None``: absent), then all is written. Returns the new version.

        A key put here is not leased, even when it was before. A key stands in at most one of ``puts`` and
        ``deletes``; deleting an absent key is no error.

        Raises:
            Conflict: an expectation does not hold; nothing was written.
            StoreUnavailable: it did not happen.
            OutcomeUnknown: it may have happened.
            StoreForbidden: refused, or a value is larger than :data:`VALUE_MAX_BYTES`.
        """

    def hold(self, key: str, value: bytes, ttl_ms: int) -> Lease:
        """Create ``key`` under a lease: it vanishes at most ``ttl_ms`` plus the declared slack after the last
        keep-alive, and never before ``ttl_ms`` has passed while the store is healthy.

        Raises:
            Conflict: the key is there already.
            StoreUnavailable: it did not happen.
            OutcomeUnknown: it may have happened; the key then goes when its time to live runs out.
        """

    def watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> Watch:
        """Call ``on_change`` with the newest state of every key below ``prefix`` that changes, in version order.

        Level-triggered: values in between may be missing, the newest never is. ``on_gap`` is called each time the
        subscription has (re)started, the first time included: what happened before may have been missed, and the
        caller reads again. It reconnects by itself, for ever, with bounded backoff. Callbacks come on one thread,
        one at a time. A callback that raises is logged and does not end the watch.
        """

    def close(self) -> None:
        """End all watches and connections. No thread is left behind. Leases run out by themselves."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
