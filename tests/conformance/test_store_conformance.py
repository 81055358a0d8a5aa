"""What every store keeps of its contract (``killswitch/stores/port.py``): reads, commits and leases.

Watches are in ``test_store_watches.py``; broken servers and networks, and the list of what is skipped for which store,
in ``test_store_faults.py``. Nothing is skipped here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from killswitch.stores import (
    VALUE_MAX_BYTES,
    Conflict,
    Entry,
    Lease,
    LeaseLost,
    Store,
    StoreForbidden,
)
from tests.conformance.rigs.base import Rig
from tests.conformance.rigs.observer import Observer
from tests.support.waiting import wait_until

LEASE_TTL_MS = 1_000
# For the test to be scheduled on a busy machine; no part of what the store promises.
NOTICE_S = 1.0
RACERS = 6
KEEPS_WHAT_IT_ACKNOWLEDGED = {"embedded", "etcd", "zookeeper"}


def version_of(store: Store, key: str) -> int | None:
    """The version that a commit has to expect."""
    entry = store.read(key)
    return None if entry is None else entry.version


def test_guarantees_are_declared_and_what_may_be_forgotten_is_said(store: Store, rig: Rig) -> None:
    """Every store reads linearizably and commits atomically; what it forgets and how late a lease ends it says."""
    declared = store.guarantees
    assert declared.linearizable_reads
    assert declared.atomic_multi_key
    assert declared.survives_failover == (rig.kind.split()[0] in KEEPS_WHAT_IT_ACKNOWLEDGED)
    assert 0 < declared.lease_slack_ms <= 3_000
    assert store.address.startswith(rig.kind.split()[0] + "://")


def test_an_absent_key_reads_as_none(store: Store, at: str) -> None:
    """Reading what was never written is no error."""
    assert store.read(f"{at}absent") is None
    assert store.scan(at) == []


def test_a_read_returns_the_value_and_the_version_of_its_commit(store: Store, at: str) -> None:
    """The version that a commit returns is the one that a read and a scan show."""
    version = store.commit({f"{at}k": None}, {f"{at}k": b"one"})
    assert store.read(f"{at}k") == Entry(f"{at}k", b"one", version)
    assert store.scan(at) == [Entry(f"{at}k", b"one", version)]


def test_a_scan_is_sorted_by_key_and_exact_about_its_prefix(store: Store, at: str) -> None:
    """Neighbours of a prefix in the order of keys are not below it."""
    inside = [f"{at}p/", f"{at}p/A", f"{at}p/a", f"{at}p/a/b", f"{at}p/b", f"{at}p/~", f"{at}p/é", f"{at}p/😀"]
    outside = [f"{at}p", f"{at}p.", f"{at}p0", f"{at}pp/", f"{at}q", f"{at}o/p/"]
    store.commit({}, dict.fromkeys([*reversed(inside), *outside], b"v"))
    assert [entry.key for entry in store.scan(f"{at}p/")] == inside
    everything = [entry.key for entry in store.scan("")]
    assert everything == sorted(everything)
    assert {*inside, *outside} <= set(everything)


def test_a_scan_is_as_of_one_instant(store: Store, other: Store, at: str) -> None:
    """Two keys that are always written together are never seen apart."""
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            other.commit({}, {f"{at}a": b"%d" % count, f"{at}z": b"%d" % count})

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen: set[tuple[bytes | None, ...]] = set()

        def scan() -> bool:
            seen.add(tuple(entry.value for entry in store.scan(at)))
            return len(seen) > 20

        try:
            wait_until(scan, within_s=30.0, what="scans between the writes")
        finally:
            stop.set()
        writing.result()
    assert all(len(set(values)) <= 1 for values in seen)


def test_versions_grow_through_creation_update_deletion_and_creation_again(store: Store, at: str) -> None:
    """A key that comes back never has a version that it had before."""
    key = f"{at}k"
    created = store.commit({key: None}, {key: b"1"})
    updated = store.commit({key: created}, {key: b"2"})
    deleted = store.commit({key: updated}, {}, [key])
    assert store.read(key) is None
    again = store.commit({key: None}, {key: b"1"})
    assert created < updated < deleted < again
    with pytest.raises(Conflict):
        store.commit({key: created}, {key: b"stale"})


def test_deleting_what_is_absent_is_no_error(store: Store, at: str) -> None:
    """A deletion says what shall be, not what was."""
    store.commit({}, {f"{at}k": b"v"}, [f"{at}absent"])
    store.commit({f"{at}absent": None}, {}, [f"{at}absent", f"{at}k", f"{at}k"])
    assert store.scan(at) == []


@pytest.mark.parametrize("wrong", ["absent though there", "old version", "version though absent"])
def test_a_conflict_writes_nothing_and_names_the_key(store: Store, at: str, wrong: str) -> None:
    """One expectation that does not hold undoes all puts and deletes, and holding ones are not accused."""
    fine, stale = f"{at}fine", f"{at}stale"
    first = store.commit({}, {fine: b"1", stale: b"1", f"{at}victim": b"1"})
    second = store.commit({stale: first}, {stale: b"2"})
    expected: int | None = {"absent though there": None, "old version": first, "version though absent": second}[wrong]
    if wrong == "version though absent":
        store.commit({}, {}, [stale])
    before = store.scan(at)
    with pytest.raises(Conflict, match="stale") as caught:
        store.commit({fine: first, stale: expected}, {fine: b"3", f"{at}new": b"3"}, [f"{at}victim"])
    assert store.scan(at) == before
    assert "fine" not in str(caught.value)


def test_all_puts_and_deletes_of_a_commit_have_one_version(store: Store, at: str) -> None:
    """A commit of several keys is one event in the life of the store."""
    store.commit({}, {f"{at}gone": b"v"})
    version = store.commit({}, {f"{at}a": b"1", f"{at}b": b"2"}, [f"{at}gone"])
    assert [(entry.key, entry.version) for entry in store.scan(at)] == [(f"{at}a", version), (f"{at}b", version)]


def test_a_commit_may_expect_without_writing(store: Store, at: str) -> None:
    """Expectations alone are checked, and change nothing."""
    version = store.commit({}, {f"{at}k": b"v"})
    store.commit({f"{at}k": version}, {})
    with pytest.raises(Conflict):
        store.commit({f"{at}k": version + 1}, {})
    assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)


def test_requests_that_make_no_sense_are_refused_before_anything_happens(store: Store, at: str) -> None:
    """Every store refuses the same mistakes of its caller in the same way."""
    with pytest.raises(ValueError, match="empty"):
        store.read("")
    with pytest.raises(ValueError, match="both put and deleted"):
        store.commit({}, {f"{at}k": b"v"}, [f"{at}k"])
    with pytest.raises(ValueError, match="versions begin at 1"):
        store.commit({f"{at}k": 0}, {f"{at}k": b"v"})
    with pytest.raises(ValueError, match="ttl_ms"):
        store.hold(f"{at}k", b"v", 0)
    assert store.scan(at) == []


def test_no_update_is_lost_when_many_write_at_once(open_client: Callable[[], Store], at: str) -> None:
    """A counter raised by compare-and-set from many threads and clients counts every success, and each version once."""
    rounds = 8
    clients = [open_client(), open_client()]
    clients[0].commit({}, {f"{at}n": b"0"})

    def count_up(racer: int) -> list[int]:
        mine = clients[racer % len(clients)]
        won: list[int] = []
        while len(won) < rounds:
            entry = mine.read(f"{at}n")
            assert entry is not None
            assert entry.value is not None
            try:
                won.append(mine.commit({f"{at}n": entry.version}, {f"{at}n": b"%d" % (int(entry.value) + 1)}))
            except Conflict:
                continue
        return won

    with ThreadPoolExecutor(RACERS) as pool:
        versions = [version for won in pool.map(count_up, range(RACERS)) for version in won]
    final = clients[0].read(f"{at}n")
    assert final is not None
    assert final.value == b"%d" % (RACERS * rounds)
    assert len(set(versions)) == RACERS * rounds


def test_exactly_one_of_many_creates_a_key(store: Store, at: str) -> None:
    """Of all that expect a key to be absent at once one wins, and its value is there."""
    barrier = threading.Barrier(RACERS)

    def create(racer: int, key: str) -> bytes | None:
        value = b"%d" % racer
        barrier.wait()
        try:
            store.commit({key: None}, {key: value})
        except Conflict:
            return None
        return value

    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(10):
            key = f"{at}{number}"
            winners = [value for value in pool.map(create, range(RACERS), [key] * RACERS) if value is not None]
            entry = store.read(key)
            assert entry is not None
            assert winners == [entry.value]


def test_a_read_sees_every_commit_that_returned_before_it_began(store: Store, other: Store, at: str) -> None:
    """Reads are linearizable across clients: never a value older than one that somebody was told is written."""
    for number in range(50):
        writer, reader = (store, other) if number % 2 else (other, store)
        version = writer.commit({}, {f"{at}k": b"%d" % number})
        assert reader.read(f"{at}k") == Entry(f"{at}k", b"%d" % number, version)


@pytest.mark.parametrize("size", [0, 1, VALUE_MAX_BYTES])
def test_values_up_to_the_limit_come_back_as_they_were(store: Store, at: str, size: int) -> None:
    """Any bytes are a value, the empty one included, up to 256 KiB."""
    value = bytes(number % 256 for number in range(size))
    store.commit({}, {f"{at}k": value})
    entry = store.read(f"{at}k")
    assert entry is not None
    assert entry.value == value


def test_a_value_over_the_limit_is_refused_and_nothing_written(store: Store, at: str) -> None:
    """One byte over 256 KiB is StoreForbidden for a commit and a hold, whatever else they write."""
    too_large = b"x" * (VALUE_MAX_BYTES + 1)
    with pytest.raises(StoreForbidden, match="at most 262144 bytes"):
        store.commit({}, {f"{at}small": b"v", f"{at}large": too_large})
    with pytest.raises(StoreForbidden, match="at most 262144 bytes"):
        store.hold(f"{at}large", too_large, LEASE_TTL_MS)
    assert store.scan(at) == []


@pytest.mark.parametrize(
    "name", ["a b", "käse/日本/😀", "\0", "a\0b", "..//../", "%2F", "\n", "\U0010ffff", "k" * 1024, "\\'\"{}[]*?"]
)
def test_any_text_is_a_key(store: Store, at: str, name: str) -> None:
    """Keys have no characters of special meaning."""
    key = at + name
    version = store.commit({key: None}, {key: b"v"})
    assert store.read(key) == Entry(key, b"v", version)
    assert [entry.key for entry in store.scan(key)] == [key]
    store.commit({key: version}, {}, [key])
    assert store.read(key) is None


def test_a_held_key_is_there_and_cannot_be_held_again(store: Store, other: Store, at: str) -> None:
    """The second to hold a key gets Conflict, and the first is not disturbed; its version fences commits."""
    lease = store.hold(f"{at}leader", b"first", 10_000)
    with pytest.raises(Conflict, match="leader"):
        other.hold(f"{at}leader", b"second", 10_000)
    assert other.read(f"{at}leader") == Entry(f"{at}leader", b"first", lease.version)
    assert lease.key == f"{at}leader"
    other.commit({lease.key: lease.version}, {f"{at}deed": b"of the leader"})
    lease.release()
    with pytest.raises(Conflict):
        other.commit({lease.key: lease.version}, {f"{at}deed": b"of one deposed"})


def test_a_released_lease_takes_its_key_along_at_once(store: Store, other: Store, at: str, observer: Observer) -> None:
    """After release the key is gone, watchers hear it, keep-alive says LeaseLost, and releasing again is no error."""
    lease = store.hold(f"{at}k", b"v", 60_000)
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    lease.release()
    assert other.read(f"{at}k") is None
    assert observer.wait_for(f"{at}k", None).version > lease.version
    with pytest.raises(LeaseLost):
        lease.keep_alive()
    lease.release()
    store.hold(f"{at}k", b"next", 60_000).release()


def hold_for(store: Store, prefix: str, for_s: float) -> tuple[Lease, float]:
    """Hold a key and keep it alive for a while; returns the lease and when (``time.monotonic``) it was last sent for.

    A machine that stands still for longer than the time to live ends a lease by right. Another is then begun, under
    another key, twice.
    """
    sent_s = [time.monotonic()]

    def kept_for_long(lease: Lease, until_s: float) -> bool:
        sent_s.append(time.monotonic())
        lease.keep_alive()
        return time.monotonic() > until_s

    for attempt in range(3):
        sent_s.append(time.monotonic())
        lease = store.hold(f"{prefix}{attempt}", b"v", LEASE_TTL_MS)
        until_s = time.monotonic() + for_s
        try:
            wait_until(partial(kept_for_long, lease, until_s), within_s=60.0, what="the end of keeping alive")
        except LeaseLost:
            since_the_one_before_s = time.monotonic() - sent_s[-2]
            assert since_the_one_before_s > LEASE_TTL_MS / 1_000, "a lease that was kept alive was lost"
        else:
            return lease, sent_s[-1]
    raise AssertionError("this machine stood still for a whole time to live, three times")


def test_a_dead_holders_key_goes_within_ttl_and_slack_and_not_before_ttl(
    store: Store, other: Store, at: str, observer: Observer
) -> None:
    """Kept alive it stays; then another client sees it go, by watch and by read, in the declared time."""
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    lease, sent_s = hold_for(store, f"{at}live", 3 * LEASE_TTL_MS / 1_000)
    answered_s = time.monotonic()
    wait_until(
        lambda: any(entry.key == lease.key and entry.value == b"v" for entry in observer.changes), what="its key"
    )
    # Asked of the store and not of the watch's memory: it is still there after three times its time to live.
    assert other.read(lease.key) is not None or time.monotonic() - sent_s > LEASE_TTL_MS / 1_000
    bound_s = (LEASE_TTL_MS + store.guarantees.lease_slack_ms) / 1_000
    observer.wait_for(lease.key, None, within_s=bound_s + NOTICE_S)
    gone_s = time.monotonic()
    assert gone_s - sent_s >= LEASE_TTL_MS / 1_000
    assert gone_s - answered_s <= bound_s + NOTICE_S
    assert other.read(lease.key) is None
    with pytest.raises(LeaseLost):
        lease.keep_alive()
    store.hold(lease.key, b"next", LEASE_TTL_MS).release()


def test_a_key_put_again_without_the_lease_outlives_it(store: Store, at: str) -> None:
    """A commit over a leased key makes it lasting, so the end of the lease does not delete it."""
    lease = store.hold(f"{at}k", b"leased", 60_000)
    version = store.commit({f"{at}k": lease.version}, {f"{at}k": b"lasting"})
    lease.release()
    assert store.read(f"{at}k") == Entry(f"{at}k", b"lasting", version)


@pytest.mark.parametrize("taken_away", ["written over", "deleted", "created again"])
def test_a_lease_whose_key_somebody_else_took_away_is_lost(
    store: Store, other: Store, at: str, taken_away: str
) -> None:
    """Keeping alive says so, because a holder that has no key any more is no holder."""
    lease = store.hold(f"{at}k", b"mine", 60_000)
    lease.keep_alive()
    if taken_away == "written over":
        other.commit({f"{at}k": lease.version}, {f"{at}k": b"theirs"})
    else:
        other.commit({}, {}, [f"{at}k"])
    if taken_away == "created again":
        other.hold(f"{at}k", b"theirs", 60_000)
    with pytest.raises(LeaseLost):
        lease.keep_alive()
    lease.release()
    assert (other.read(f"{at}k") is None) == (taken_away == "deleted")
