"""A store in the memory of this process, for tests and simulation. It keeps the whole contract, but nothing longer
than the process lives.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from killswitch import clock
from killswitch.stores.front import LeaseFront, OpenWatch, StoreFront, conflict
from killswitch.stores.port import Entry, Guarantees, OnChange, OnGap
from killswitch.stores.timing import NANOSECONDS_PER_MS, NANOSECONDS_PER_S
from killswitch.stores.watching import MailboxWatch

LEASE_SLACK_MS = 250
# With a clock that a test moves by hand, real time says nothing about when a lease runs out: look this often.
EXPIRY_LOOK_EVERY_S = 0.02

GUARANTEES = Guarantees(
    linearizable_reads=True,
    survives_failover=False,
    atomic_multi_key=True,
    lease_slack_ms=LEASE_SLACK_MS,
    note="The memory of one process: no other process sees it, and it is gone when the process ends.",
)


@dataclass(slots=True)
class _Cell:
    value: bytes
    version: int
    lease_id: int | None


@dataclass(slots=True)
class _LeaseState:
    key: str
    ttl_ns: int
    deadline_ns: int


class _Data:
    """What the stores of one name share. Every method holds the lock, and removes what has expired first."""

    def __init__(self, now_ns: clock.NowNs) -> None:
        self.now_ns = now_ns
        self._lock = threading.Lock()
        self._cells: dict[str, _Cell] = {}
        self._leases: dict[int, _LeaseState] = {}
        self._watches: list[MailboxWatch] = []
        # Like etcd's, so that a commit that writes nothing returns a version that may be expected, too.
        self._version = 1
        self._last_lease_id = 0

    def read(self, key: str) -> Entry | None:
        with self._lock:
            self._expire()
            cell = self._cells.get(key)
            return Entry(key, cell.value, cell.version) if cell else None

    def scan(self, prefix: str) -> list[Entry]:
        with self._lock:
            self._expire()
            found = sorted((key, cell) for key, cell in self._cells.items() if key.startswith(prefix))
            return [Entry(key, cell.value, cell.version) for key, cell in found]

    def commit(
        self, address: str, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str]
    ) -> int:
        with self._lock:
            self._expire()
            self._check_expected(address, expect)
            present = [key for key in deletes if key in self._cells]
            if puts or present:
                self._version += 1
            for key, value in puts.items():
                self._put(key, bytes(value), lease_id=None)
            for key in present:
                self._delete(key)
            return self._version

    def hold(self, address: str, key: str, value: bytes, ttl_ms: int) -> tuple[int, int]:
        """Returns the lease's id and the key's version."""
        with self._lock:
            self._expire()
            self._check_expected(address, {key: None})
            self._version += 1
            self._last_lease_id += 1
            ttl_ns = ttl_ms * NANOSECONDS_PER_MS
            self._leases[self._last_lease_id] = _LeaseState(key, ttl_ns, self.now_ns() + ttl_ns)
            self._put(key, bytes(value), lease_id=self._last_lease_id)
            for watch in self._watches:
                # Their threads report expiry, and this lease may be the first to run out.
                watch.nudge()
            return self._last_lease_id, self._version

    def keep_alive(self, lease_id: int) -> bool:
        """False when the lease is gone, or the key is no longer its own."""
        with self._lock:
            self._expire()
            lease = self._leases.get(lease_id)
            cell = self._cells.get(lease.key) if lease else None
            if lease is None or cell is None or cell.lease_id != lease_id:
                return False
            lease.deadline_ns = self.now_ns() + lease.ttl_ns
            return True

    def release(self, lease_id: int) -> None:
        with self._lock:
            self._expire()
            self._end_lease(lease_id)

    def subscribe(self, watch: MailboxWatch) -> None:
        with self._lock:
            self._watches.append(watch)
            watch.post_gap()

    def unsubscribe(self, watch: OpenWatch) -> None:
        with self._lock:
            self._watches = [kept for kept in self._watches if kept is not watch]

    def expire_and_tell(self) -> float | None:
        """Remove what has expired; returns the longest time in seconds after which to look again."""
        with self._lock:
            self._expire()
            if not self._leases:
                return None
            first_ns = min(lease.deadline_ns for lease in self._leases.values())
            return min(max(0, first_ns - self.now_ns()) / NANOSECONDS_PER_S, EXPIRY_LOOK_EVERY_S)

    def _expire(self) -> None:
        if not self._leases:
            return
        now_ns = self.now_ns()
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.deadline_ns <= now_ns]:
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        cell = self._cells.get(lease.key) if lease else None
        # A key that was put again without the lease is no longer the lease's to delete.
        if lease and cell and cell.lease_id == lease_id:
            self._version += 1
            self._delete(lease.key)

    def _check_expected(self, address: str, expect: Mapping[str, int | None]) -> None:
        found = {key: cell.version if (cell := self._cells.get(key)) else None for key in expect}
        if found != dict(expect):
            raise conflict(address, expect, found)

    def _put(self, key: str, value: bytes, *, lease_id: int | None) -> None:
        self._cells[key] = _Cell(value, self._version, lease_id)
        self._tell(Entry(key, value, self._version))

    def _delete(self, key: str) -> None:
        del self._cells[key]
        self._tell(Entry(key, None, self._version))

    def _tell(self, entry: Entry) -> None:
        # Under the lock, so that every mailbox receives versions in order.
        for watch in self._watches:
            if entry.key.startswith(watch.prefix):
                watch.post(entry)


_data_by_name: dict[str, _Data] = {}
_data_by_name_lock = threading.Lock()


class MemoryLease(LeaseFront):
    """A lease of :class:`MemoryStore`."""

    def __init__(self, store: MemoryStore, key: str, lease_id: int, version: int) -> None:
        super().__init__(key, version, store.address)
        self._store = store
        self._lease_id = lease_id

    def _keep_alive(self, what: str) -> str:
        del what
        return "" if self._store.open_data().keep_alive(self._lease_id) else "has run out"

    def _release(self, what: str) -> None:
        del what
        self._store.open_data().release(self._lease_id)


class MemoryStore(StoreFront):
    """The port in this process's memory. Stores of the same name share their data as long as the process lives.

    Args:
        name: which data; the empty name is one like any other.
        now_ns: clock on which leases run out. All stores of one name must be given the same.

    Raises:
        ValueError: the name is in use with another clock.
    """

    def __init__(self, name: str = "", *, now_ns: clock.NowNs = clock.now_ns) -> None:
        with _data_by_name_lock:
            self._data = _data_by_name.setdefault(name, _Data(now_ns))
        if self._data.now_ns is not now_ns:
            raise ValueError(f"memory://{name} is in use with another clock; pass the same one, or use another name")
        super().__init__(f"memory://{name}", GUARANTEES)

    def open_data(self) -> _Data:
        """The shared data; raises :class:`StoreUnavailable` when this store has been closed."""
        if self._closed:
            raise self._closed_error()
        return self._data

    def _read(self, key: str, what: str) -> Entry | None:
        del what
        return self.open_data().read(key)

    def _scan(self, prefix: str, what: str) -> list[Entry]:
        del what
        return self.open_data().scan(prefix)

    def _commit(
        self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], what: str
    ) -> int:
        del what
        return self.open_data().commit(self._address, expect, puts, deletes)

    def _hold(self, key: str, value: bytes, ttl_ms: int, what: str) -> MemoryLease:
        del what
        lease_id, version = self.open_data().hold(self._address, key, value, ttl_ms)
        return MemoryLease(self, key, lease_id, version)

    def _new_watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> MailboxWatch:
        watch = MailboxWatch(prefix, on_change, on_gap, on_close=self._forget, before_wait=self._data.expire_and_tell)
        self._data.subscribe(watch)
        return watch

    def _disconnect(self) -> None:
        """The data stays, for the others of its name."""

    def _forget(self, watch: OpenWatch) -> None:
        self._data.unsubscribe(watch)
        super()._forget(watch)
