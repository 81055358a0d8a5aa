"""What every store keeps of its contract about watches, and about closing. Nothing is skipped here."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from killswitch.stores import Entry, Store, StoreUnavailable
from tests.conformance.rigs.base import Rig
from tests.conformance.rigs.observer import Observer
from tests.support.waiting import wait_until


def test_the_first_thing_a_watch_says_is_gap(store: Store, at: str, observer: Observer) -> None:
    """Whoever subscribes is told to read first, once, and nothing of before is repeated."""
    store.commit({}, {f"{at}before": b"v"})
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    store.commit({}, {f"{at}after": b"v"})
    observer.wait_for(f"{at}after", b"v")
    assert [said and said.key for said in observer.said] == [None, f"{at}after"]


def test_the_newest_value_arrives_and_versions_are_in_order(
    store: Store, other: Store, at: str, observer: Observer
) -> None:
    """Through a burst each key ends at its newest value, and no version comes before an older one."""
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    for number in range(200):
        store.commit({}, {f"{at}{number % 7}": b"%d" % number})
    final = store.scan(at)
    for entry in final:
        observer.wait_for_entry(entry)
    versions = [entry.version for entry in observer.changes]
    assert versions == sorted(versions)
    assert len(observer.threads) == 1


def test_a_slow_watcher_still_gets_the_newest_values_in_order(store: Store, at: str, observer: Observer) -> None:
    """A callback that takes its time may miss values in between, never the last, and never sees versions go back."""
    admitted = threading.Event()

    def slow(entry: Entry) -> None:
        admitted.wait(30.0)
        observer.on_change(entry)

    store.watch(at, slow, observer.on_gap)
    observer.wait_for_gap()
    for number in range(100):
        store.commit({}, {f"{at}{number % 3 % 2}": b"%d" % number})
    admitted.set()
    for entry in store.scan(at):
        observer.wait_for_entry(entry)
    versions = [entry.version for entry in observer.changes]
    assert versions == sorted(versions)


def test_a_watch_reports_deletions_and_keeps_to_its_prefix(
    store: Store, other: Store, at: str, observer: Observer
) -> None:
    """A deleted key comes as value None with a newer version; keys beside the prefix never come."""
    other.watch(f"{at}p/", observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    created = store.commit({}, {f"{at}p/k": b"v", f"{at}p": b"v", f"{at}p0": b"v", f"{at}pp/": b"v"})
    deleted = store.commit({}, {}, [f"{at}p/k", f"{at}p", f"{at}p0", f"{at}pp/"])
    assert observer.wait_for(f"{at}p/k", None) == Entry(f"{at}p/k", None, deleted)
    assert {entry.key for entry in observer.changes} == {f"{at}p/k"}
    assert deleted > created


def test_a_callback_that_raises_does_not_end_the_watch(store: Store, at: str, observer: Observer) -> None:
    """What on_gap and on_change raise is logged, and the next change arrives."""

    def bad_gap() -> None:
        observer.on_gap()
        raise RuntimeError("a fault of the watcher's own")

    def bad_change(entry: Entry) -> None:
        observer.on_change(entry)
        raise RuntimeError("a fault of the watcher's own")

    store.watch(at, bad_change, bad_gap)
    observer.wait_for_gap()
    for number in range(3):
        store.commit({}, {f"{at}k": b"%d" % number})
        observer.wait_for(f"{at}k", b"%d" % number)


def test_a_closed_watch_is_silent_and_leaves_no_thread(store: Store, at: str, observer: Observer) -> None:
    """After close returns no callback comes, no thread of it is left, and closing again is no error."""
    store.read(at)
    before = set(threading.enumerate())
    control = Observer()
    with_control = store.watch(at, control.on_change, control.on_gap)
    watch = store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    control.wait_for_gap()
    watch.close()
    watch.close()
    store.commit({}, {f"{at}k": b"v"})
    control.wait_for(f"{at}k", b"v")
    assert observer.changes == []
    with_control.close()
    wait_until(lambda: set(threading.enumerate()) <= before, within_s=5.0, what="the end of the watches' threads")


def test_close_waits_for_the_callback_that_is_running(store: Store, at: str) -> None:
    """Close does not return while a callback runs, however long that takes."""
    entered, closed, left = threading.Event(), threading.Event(), threading.Event()
    close_returned_first: list[bool] = []

    def linger() -> None:
        entered.set()
        # Would end at once if close returned meanwhile.
        close_returned_first.append(closed.wait(0.5))
        left.set()

    watch = store.watch(at, lambda _: None, linger)
    assert entered.wait(20.0)
    watch.close()
    closed.set()
    assert left.wait(20.0)
    assert close_returned_first == [False]


def test_a_watch_may_be_closed_from_its_own_callback(store: Store, at: str, observer: Observer) -> None:
    """Closing from within neither deadlocks nor lets another callback through."""
    closed = threading.Event()

    def close_it(entry: Entry) -> None:
        observer.on_change(entry)
        watch.close()
        closed.set()

    watch = store.watch(at, close_it, observer.on_gap)
    observer.wait_for_gap()
    store.commit({}, {f"{at}a": b"v", f"{at}b": b"v"})
    assert closed.wait(20.0)
    store.commit({}, {f"{at}c": b"v"})
    watch.close()
    assert len(observer.changes) == 1


def test_a_closed_store_ends_its_watches_and_refuses_everything(rig: Rig, at: str, observer: Observer) -> None:
    """After close every call raises StoreUnavailable, and nothing runs on; others of the same data are not touched."""
    before = set(threading.enumerate())
    with rig.open() as survivor, rig.open() as store:
        lease = store.hold(f"{at}held", b"v", 60_000)
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        store.close()
        survivor.commit({}, {f"{at}k": b"v"})
        calls: list[Callable[[], object]] = [
            lambda: store.read(f"{at}k"),
            lambda: store.scan(at),
            lambda: store.commit({}, {f"{at}k": b"w"}),
            lambda: store.hold(f"{at}other", b"v", 1_000),
            lambda: store.watch(at, observer.on_change, observer.on_gap),
            lease.keep_alive,
            lease.release,
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="closed"):
                call()
        survivor.commit({f"{at}held": lease.version}, {}, [f"{at}held"])
    assert observer.changes == []
    wait_until(lambda: set(threading.enumerate()) <= before, within_s=5.0, what="the end of the store's threads")
