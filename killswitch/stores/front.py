"""What all stores do alike, in front of what each does in its own way: they check a request before anything is sent,
give it the words that an error repeats, know which watches are open, and say the same of the same failure.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from killswitch.stores.port import (
    VALUE_MAX_BYTES,
    Conflict,
    Entry,
    Guarantees,
    LeaseLost,
    OnChange,
    OnGap,
    OutcomeUnknown,
    StoreForbidden,
    StoreUnavailable,
    Watch,
)


class OpenWatch(Watch, Protocol):
    """A watch as its store sees it."""

    def start(self) -> None:
        """Begin."""

    def end_soon(self) -> None:
        """Call back no more, and bound what ``close`` may take beyond a callback that is running."""


class StoreFront(ABC):
    """The port, but for what only the store itself can do. Opening one sends nothing; the first call connects.

    Args:
        address: the URL, without credentials.
        guarantees: what is declared.
    """

    def __init__(self, address: str, guarantees: Guarantees) -> None:
        self._address = address
        self._guarantees = guarantees
        self._lock = threading.Lock()
        self._watches: set[OpenWatch] = set()
        self._closed = False

    @property
    def guarantees(self) -> Guarantees:
        """Declared facts about this store."""
        return self._guarantees

    @property
    def address(self) -> str:
        """The URL, without credentials."""
        return self._address

    def read(self, key: str) -> Entry | None:
        """The newest value, or ``None``; raises as the port says."""
        _check_key(key)
        return self._read(key, f"reading {key!r}")

    def scan(self, prefix: str) -> list[Entry]:
        """All entries below ``prefix``, sorted by key; raises as the port says."""
        return self._scan(prefix, f"scanning {prefix!r}")

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        """Write all or nothing; raises as the port says.

        Raises:
            ValueError: an empty key, a key that is both put and deleted, or an expected version that no store gives
                out.
        """
        for key in (*expect, *puts, *deletes):
            _check_key(key)
        for key, version in expect.items():
            # 0 would mean "absent" to one store and "never" to another; absence is None.
            if version is not None and version < 1:
                raise ValueError(f"version {version} was expected of {key!r}; versions begin at 1, and absence is None")
        both = sorted(puts.keys() & set(deletes))
        if both:
            raise ValueError(f"{both[0]!r} is both put and deleted in one commit")
        for key, value in puts.items():
            self._check_value(key, value)
        what = f"a commit to {_named([*puts, *deletes, *expect])}"
        return self._commit(expect, puts, list(dict.fromkeys(deletes)), what)

    def hold(self, key: str, value: bytes, ttl_ms: int) -> LeaseFront:
        """Create ``key`` under a lease; raises as the port says.

        Raises:
            ValueError: an empty key, or a time to live that is not positive.
        """
        _check_key(key)
        self._check_value(key, value)
        if ttl_ms <= 0:
            raise ValueError(f"ttl_ms must be greater than 0, and it is {ttl_ms}")
        return self._hold(key, value, ttl_ms, f"holding {key!r}")

    def watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> Watch:
        """Subscribe, on a thread of the watch's own; as the port says."""
        with self._lock:
            if self._closed:
                raise self._closed_error()
            watch = self._new_watch(prefix, on_change, on_gap)
            watch.start()
            self._watches.add(watch)
        return watch

    def close(self) -> None:
        """End all watches and connections. Leases run out by themselves."""
        with self._lock:
            self._closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.end_soon()
        for watch in watches:
            watch.close()
        self._disconnect()

    @abstractmethod
    def _read(self, key: str, what: str) -> Entry | None:
        """See :meth:`read`. In all of these ``what`` is for errors, such as ``reading '/k'``."""

    @abstractmethod
    def _scan(self, prefix: str, what: str) -> list[Entry]:
        """See :meth:`scan`."""

    @abstractmethod
    def _commit(
        self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], what: str
    ) -> int:
        """See :meth:`commit`; no key stands twice in ``deletes``."""

    @abstractmethod
    def _hold(self, key: str, value: bytes, ttl_ms: int, what: str) -> LeaseFront:
        """See :meth:`hold`."""

    @abstractmethod
    def _new_watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> OpenWatch:
        """A watch that calls :meth:`_forget` when it is closed. Called under the lock, as no closed store is."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close every connection. No watch is left."""

    def _forget(self, watch: OpenWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store at {self._address} has been closed")

    def _check_value(self, key: str, value: bytes) -> None:
        if len(value) > VALUE_MAX_BYTES:
            raise StoreForbidden(
                f"the store at {self._address} takes values of at most {VALUE_MAX_BYTES} bytes, and that of {key!r} "
                f"has {len(value)}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LeaseFront(ABC):
    """A lease, but for what only its store can do.

    Args:
        key: the leased key.
        version: of the key as it was created.
        place: where it is held, for errors.
    """

    def __init__(self, key: str, version: int, place: str) -> None:
        self._key = key
        self._version = version
        self._place = place

    @property
    def key(self) -> str:
        """The leased key."""
        return self._key

    @property
    def version(self) -> int:
        """Version of the leased key as it was created."""
        return self._version

    def keep_alive(self) -> None:
        """Start the time to live anew; raises as the port says."""
        lost = self._keep_alive(f"keeping the lease of {self._key!r} alive")
        if lost:
            raise LeaseLost(f"the lease of {self._key!r} at {self._place} {lost}")

    def release(self) -> None:
        """Delete the key now; a lease that is gone is no error."""
        self._release(f"releasing the lease of {self._key!r}")

    @abstractmethod
    def _keep_alive(self, what: str) -> str:
        """See :meth:`keep_alive`; returns how the lease was lost, ``''`` when it is held."""

    @abstractmethod
    def _release(self, what: str) -> None:
        """See :meth:`release`."""


def conflict(address: str, expect: Mapping[str, int | None], found: Mapping[str, int | None]) -> Conflict:
    """The error for expectations that do not hold, naming each key whose version differs."""
    different = [
        f"{key!r} ({_said(expected)} expected, {_said(found.get(key))} found)"
        for key, expected in sorted(expect.items())
        if found.get(key) != expected
    ]
    return Conflict(f"the store at {address} wrote nothing, because of {', '.join(different)}")


def unknown(sentence: str) -> OutcomeUnknown:
    """The error for a write that was handed over and not answered.

    Args:
        sentence: how that failed.
    """
    return OutcomeUnknown(f"{sentence}; it may have happened, and only a read can tell")


def closed_sentence(address: str, what: str) -> str:
    """What is said of a request to a store that has been closed."""
    return f"the store at {address} has been closed, so {what} cannot be done"


def key_bytes(key: str) -> bytes:
    """The key as stores of bytes have it. Keys of others that are not UTF-8 survive the way there and back."""
    return key.encode("utf-8", "surrogateescape")


def key_text(key: bytes) -> str:
    """The inverse of :func:`key_bytes`."""
    return key.decode("utf-8", "surrogateescape")


def end_of_prefix(first: bytes) -> bytes | None:
    """The smallest key that is greater than all that begin with ``first``; ``None`` where there is none."""
    stem = first.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def _check_key(key: str) -> None:
    if not key:
        raise ValueError("a key must not be empty")


def _named(keys: Iterable[str]) -> str:
    """The keys of a commit for an error: the first, and how many more."""
    distinct = list(dict.fromkeys(keys))
    if not distinct:
        return "no key"
    more = f" and {len(distinct) - 1} more" if len(distinct) > 1 else ""
    return f"{distinct[0]!r}{more}"


def _said(version: int | None) -> str:
    return "absent" if version is None else f"version {version}"
