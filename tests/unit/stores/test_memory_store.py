"""The memory store beyond the conformance suite: its clock, and what stores of one name share."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest

from killswitch.stores import Entry, LeaseLost
from killswitch.stores.memory import MemoryStore
from tests.support.clock import HandClock
from tests.support.waiting import wait_until

MS = 1_000_000


@pytest.fixture
def clock() -> HandClock:
    """At 0."""
    return HandClock(0)


@pytest.fixture
def store(clock: HandClock) -> Iterator[MemoryStore]:
    """A store of its own name, on the clock moved by hand."""
    with MemoryStore(uuid.uuid4().hex, now_ns=clock) as made:
        yield made


def test_a_lease_ends_exactly_at_its_deadline(store: MemoryStore, clock: HandClock) -> None:
    """A nanosecond before the key is there, at the deadline it is not, without any thread having run."""
    lease = store.hold("k", b"v", 1_000)
    clock.time_ns = 1_000 * MS - 1
    assert store.read("k") is not None
    clock.time_ns += 1
    assert store.read("k") is None
    with pytest.raises(LeaseLost):
        lease.keep_alive()


def test_keep_alive_counts_from_now(store: MemoryStore, clock: HandClock) -> None:
    """The new deadline is a whole time to live after the keep-alive."""
    lease = store.hold("k", b"v", 1_000)
    clock.time_ns = 900 * MS
    lease.keep_alive()
    clock.time_ns = 1_899 * MS
    assert store.read("k") is not None
    clock.time_ns = 1_900 * MS
    assert store.scan("") == []


def test_expiry_reaches_watchers_although_nobody_calls_the_store(store: MemoryStore, clock: HandClock) -> None:
    """Moving the clock is enough for the watch to report the deletion."""
    gap = threading.Event()
    said: list[Entry] = []
    store.watch("", said.append, gap.set)
    assert gap.wait(5.0)
    lease = store.hold("k", b"v", 1_000)
    clock.time_ns = 1_000 * MS
    wait_until(lambda: said[-1:] == [Entry("k", None, lease.version + 1)], what="the deletion by expiry")


def test_expiry_is_a_write_of_its_own_version(store: MemoryStore, clock: HandClock) -> None:
    """The version after an expiry is greater than before, so no two states of the store share one."""
    lease = store.hold("k", b"v", 1)
    clock.time_ns = MS
    assert store.commit({"k": None}, {"k": b"w"}) == lease.version + 2


def test_a_name_keeps_its_data_after_its_stores_are_closed() -> None:
    """Closing a store is not deleting its data; another name has other data."""
    name = uuid.uuid4().hex
    with MemoryStore(name) as first:
        version = first.commit({}, {"k": b"v"})
    with MemoryStore(name) as second, MemoryStore(name + "x") as stranger:
        assert second.read("k") == Entry("k", b"v", version)
        assert stranger.read("k") is None


def test_one_name_has_one_clock(store: MemoryStore, clock: HandClock) -> None:
    """Two clocks for the same leases would contradict each other, and are refused."""
    name = store.address.removeprefix("memory://")
    with pytest.raises(ValueError, match="another clock"):
        MemoryStore(name)
    MemoryStore(name, now_ns=clock).close()


def test_values_are_copied() -> None:
    """Who changes a buffer after writing it does not change the store."""
    with MemoryStore(uuid.uuid4().hex) as store:
        buffer = bytearray(b"v")
        store.commit({}, {"k": buffer})  # type: ignore[dict-item]
        buffer[0] = 0
        entry = store.read("k")
        assert entry is not None
        assert entry.value == b"v"
