"""What is ZooKeeper's own: sessions that end, data that is gone, chroots, and what other hands do to its znodes."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kazoo.client import KazooClient
from structlog.testing import capture_logs

from killswitch.stores import (
    VALUE_MAX_BYTES,
    Conflict,
    Entry,
    Lease,
    LeaseLost,
    OutcomeUnknown,
    Store,
    StoreForbidden,
    StoreUnavailable,
    open_store,
)
from killswitch.stores.zookeeper.store import ZooKeeperStore
from tests.conformance.forwarder import Forwarder
from tests.conformance.rigs.base import PATIENT_MS
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.warm import commit_in_the_end, hold_in_the_end, wait_until_reading
from tests.conformance.rigs.zookeeper import TICK_MS, ZooKeeperContainerRig, open_zookeeper
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

TTL_MS = 1_000
# For a few calls that are to find the lease alive.
CUT_OFF_TTL_MS = 3_000
# Half of a call's time goes to the address that swallows everything, and a lease has to outlive that.
MOVING_TIMEOUT_MS, MOVING_TTL_MS = 3_000, 5_000
# The longest that the server itself takes beyond the time to live, and what a busy machine may add.
GONE_WITHIN_S = (TTL_MS + 1.5 * TICK_MS) / 1_000 + 2.0


@pytest.fixture(scope="module")
def rig() -> Iterator[ZooKeeperContainerRig]:
    """A server of this file's own, because a test wipes it."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        image = choose_image(client, "zookeeper")
    finally:
        client.close()
    made = ZooKeeperContainerRig(image)
    yield made
    made.close()


@pytest.fixture
def zookeeper(rig: ZooKeeperContainerRig, nothing_left_behind: None) -> ZooKeeperContainerRig:
    """The server; a test that ends it brings it back."""
    return rig


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def by_hand(zookeeper: ZooKeeperContainerRig) -> Iterator[KazooClient]:
    """A client of kazoo's own, as a person with ``zkCli`` has one."""
    client = KazooClient(hosts=zookeeper.server)
    client.start()
    yield client
    client.stop()
    client.close()


def test_a_lease_whose_holder_was_cut_off_too_long_is_lost(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """The session ends on the server; when the holder is back it is told for sure, and the key can be held again."""
    with Forwarder(zookeeper.server) as network, zookeeper.open() as store, open_zookeeper(network.server) as cut_off:
        lease = hold_in_the_end(cut_off, f"{at}k", CUT_OFF_TTL_MS)
        wait_until(lambda: keeps(lease), within_s=CUT_OFF_TTL_MS / 1_000, what="a lease that is kept alive")
        network.swallow_everything()
        with pytest.raises(StoreUnavailable):
            lease.keep_alive()
        gone_within_s = GONE_WITHIN_S + (CUT_OFF_TTL_MS - TTL_MS) / 1_000
        wait_until(lambda: store.read(lease.key) is None, within_s=gone_within_s, what="the end of the lease")
        network.swallow_requests.clear()
        network.swallow_replies.clear()

        def told() -> bool:
            try:
                assert not keeps(lease), "a lease that has ended was kept alive"
            except LeaseLost:
                return True
            return False

        wait_until(told, what="the holder being told")
        lease.release()
        store.hold(lease.key, b"next", TTL_MS).release()


def keeps(lease: Lease) -> bool:
    """Whether a keep-alive gets through now."""
    with contextlib.suppress(StoreUnavailable):
        lease.keep_alive()
        return True
    return False


def test_a_lease_lives_on_through_another_server_address(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """The session is taken over by a new connection, and its time counts from there."""
    with (
        Forwarder(zookeeper.server) as network,
        zookeeper.open() as store,
        open_zookeeper(network.server, zookeeper.server, request_timeout_ms=MOVING_TIMEOUT_MS) as moving,
    ):
        lease = moving.hold(f"{at}k", b"v", MOVING_TTL_MS)
        network.swallow_everything()
        until_s = time.monotonic() + 3 * MOVING_TTL_MS / 1_000

        def kept_for_long() -> bool:
            # One call or another may find no time on a busy machine; what counts is that the lease lives.
            keeps(lease)
            return time.monotonic() > until_s

        wait_until(kept_for_long, within_s=30.0, what="three times the time to live")
        assert network.swallowed_bytes > 0
        assert store.read(f"{at}k") == Entry(f"{at}k", b"v", lease.version)
        lease.release()
        assert store.read(f"{at}k") is None


def test_nothing_that_was_given_up_arrives_later(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """Writes while a network swallows everything, for longer than kazoo takes to notice, are truly gone afterwards."""
    with Forwarder(zookeeper.server) as network, zookeeper.open() as store, open_zookeeper(network.server) as hasty:
        store.commit({}, {f"{at}before": b"v"})
        wait_until_reading(hasty, f"{at}before")
        network.swallow_everything()
        with pytest.raises(OutcomeUnknown):
            hasty.commit({}, {f"{at}0": b"v"})
        until_s = time.monotonic() + 8.0
        count = 0

        def wrote_for_long() -> bool:
            nonlocal count
            count += 1
            with pytest.raises(StoreUnavailable):
                hasty.commit({}, {f"{at}{count}": b"v"})
            return time.monotonic() > until_s

        wait_until(wrote_for_long, what="a while of writing into the void")
        network.swallow_requests.clear()
        network.swallow_replies.clear()
        commit_in_the_end(hasty, f"{at}after", b"v")
        assert {entry.key for entry in store.scan(at)} == {f"{at}before", f"{at}after"}


def test_a_server_that_lost_its_data_is_found_empty_and_believes_no_old_version(
    zookeeper: ZooKeeperContainerRig, at: str, observer: Observer
) -> None:
    """Reads say absent, the watch says gap, leases are lost, and expectations of before conflict.

    That the new znode has the same data version as the old one had must not be enough.
    """
    with zookeeper.open() as store, zookeeper.open() as other:
        for value in (b"1", b"2", b"3"):
            old = store.commit({}, {f"{at}flag": value})
        lease = store.hold(f"{at}leader", b"me", 60_000)
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        zookeeper.wipe()
        zookeeper.revive()
        zookeeper.wait_until_serving()
        assert store.scan(at) == []
        observer.wait_for_gap(after=1)
        with pytest.raises(LeaseLost):
            lease.keep_alive()
        for value in (b"4", b"5", b"6"):
            new = other.commit({}, {f"{at}flag": value})
        assert new != old
        # Nothing was read since: all that this client remembers of the key is from before.
        with pytest.raises(Conflict):
            store.commit({f"{at}flag": old}, {f"{at}flag": b"stale"})
        observer.wait_for(f"{at}flag", b"6")
        assert store.read(f"{at}flag") == Entry(f"{at}flag", b"6", new)
        assert store.read(f"{at}leader") is None


def test_a_chroot_keeps_two_clusters_apart(
    zookeeper: ZooKeeperContainerRig, at: str, by_hand: KazooClient, observer: Observer
) -> None:
    """It is made when it is missing, and neither sees the keys of the other."""
    name = uuid.uuid4().hex
    urls = [f"zookeeper://{zookeeper.server}/{name}/{which}" for which in ("one", "two")]
    with open_store(urls[0], request_timeout_ms=PATIENT_MS) as one, open_store(urls[1]) as two:
        assert one.address == urls[0]
        two.watch("", observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        version = one.commit({f"{at}k": None, "relative": None}, {f"{at}k": b"one", "relative": b"one"})
        assert two.read(f"{at}k") is None
        two.commit({f"{at}k": None, "relative": None}, {f"{at}k": b"two", "relative": b"two"})
        observer.wait_for("relative", b"two")
        assert {entry.value for entry in observer.changes} == {b"two"}
        assert one.scan("") == [Entry(f"{at}k", b"one", version), Entry("relative", b"one", version)]
        assert by_hand.get(f"/{name}/one{at}k")[0] == b"one"


def test_what_a_person_wrote_by_hand_is_read_and_not_overwritten(
    zookeeper: ZooKeeperContainerRig, at: str, by_hand: KazooClient
) -> None:
    """A flag that was put back with zkCli counts; empty znodes are directories, and no keys."""
    with zookeeper.open() as store:
        by_hand.create(f"{at}flag", b'{"v": 1}', makepath=True)
        by_hand.create(f"{at}empty", b"")
        with pytest.raises(Conflict):
            store.commit({f"{at}flag": None}, {f"{at}flag": b"mine"})
        entry = store.read(f"{at}flag")
        assert entry is not None
        assert entry.value == b'{"v": 1}'
        assert store.scan(at) == [entry]
        by_hand.set(f"{at}flag", b"%odd")
        assert store.commit({f"{at}empty": None}, {f"{at}empty": b""}) > entry.version
        assert {entry.key: entry.value for entry in store.scan(at)} == {f"{at}flag": b"%odd", f"{at}empty": b""}
        with pytest.raises(Conflict):
            store.commit({f"{at}flag": entry.version}, {f"{at}flag": b"stale"})


def test_znodes_that_are_removed_by_hand_are_gone_and_may_come_back(
    zookeeper: ZooKeeperContainerRig, at: str, by_hand: KazooClient, observer: Observer
) -> None:
    """The watch tells of both, for a key and for the directory that its prefix is in."""
    with zookeeper.open() as store:
        store.commit({}, {f"{at}a/k": b"v", f"{at}b": b"v"})
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        by_hand.delete(at.rstrip("/"), recursive=True)
        gone = [observer.wait_for(f"{at}a/k", None), observer.wait_for(f"{at}b", None)]
        assert store.scan(at) == []
        # What this client remembers of the znodes is wrong now.
        back = store.commit({}, {f"{at}a/k": b"back"})
        assert observer.wait_for(f"{at}a/k", b"back") == Entry(f"{at}a/k", b"back", back)
        assert back > max(entry.version for entry in gone)
        assert observer.gaps == 1


def test_a_lease_that_was_written_over_unseen_is_in_nobodys_way(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """The writer knew of no lease, and left its znode; the value counts, and the key can be held at once."""
    with zookeeper.open() as holder, zookeeper.open() as writer:
        old = holder.hold(f"{at}k", b"old", 60_000)
        put = writer.commit({}, {f"{at}k": b"lasting"})
        assert holder.read(f"{at}k") == Entry(f"{at}k", b"lasting", put)
        assert holder.scan(at) == [Entry(f"{at}k", b"lasting", put)]
        writer.commit({}, {}, [f"{at}k"])
        assert holder.read(f"{at}k") is None
        new = writer.hold(f"{at}k", b"new", 60_000)
        with pytest.raises(LeaseLost):
            old.keep_alive()
        old.release()
        assert holder.read(f"{at}k") == Entry(f"{at}k", b"new", new.version)
        new.keep_alive()


def test_a_lease_whose_znode_was_removed_by_hand_is_lost(
    zookeeper: ZooKeeperContainerRig, at: str, by_hand: KazooClient, observer: Observer
) -> None:
    """Its session lives, and holds nothing any more: readers, watchers and the holder all hear that."""
    with zookeeper.open() as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        lease = store.hold(f"{at}k", b"v", 60_000)
        observer.wait_for(f"{at}k", b"v")
        by_hand.delete(f"{at}k/%lease")
        assert store.read(f"{at}k") is None
        assert observer.wait_for(f"{at}k", None).version > lease.version
        with pytest.raises(Conflict):
            store.commit({f"{at}k": lease.version}, {f"{at}deed": b"of one deposed"})
        with pytest.raises(LeaseLost):
            lease.keep_alive()
        store.hold(f"{at}k", b"next", 60_000).release()


def test_a_commit_that_zookeeper_would_not_answer_is_refused(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """Three of the largest values go through; with four the server would drop the connection."""
    largest = b"x" * VALUE_MAX_BYTES
    with zookeeper.open() as store:
        store.commit({}, {f"{at}{number}": largest for number in range(3)})
        with pytest.raises(StoreForbidden, match="write fewer keys at once"):
            store.commit({}, {f"{at}{number}": largest for number in range(4)})
        assert len(store.scan(at)) == 3


def test_a_time_to_live_that_the_server_would_cut_is_refused(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """The sentence says which setting; nothing is held."""
    with zookeeper.open() as store:
        with pytest.raises(StoreForbidden, match=r"longer than 120000 ms.*maxSessionTimeout"):
            store.hold(f"{at}k", b"v", 120_001)
        assert store.read(f"{at}k") is None


def test_a_shorter_session_than_the_server_has_is_a_longer_lease(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """Two ticks are the least; that is within the slack here, and the lease does not end before."""
    with zookeeper.open() as store:
        started_s = time.monotonic()
        store.hold(f"{at}k", b"v", 100)
        wait_until(lambda: store.read(f"{at}k") is None, within_s=GONE_WITHIN_S, what="the end of the lease")
        assert time.monotonic() - started_s >= 2 * TICK_MS / 1_000


def test_a_watch_keeps_order_and_misses_nothing_in_a_deep_tree(
    zookeeper: ZooKeeperContainerRig, at: str, observer: Observer
) -> None:
    """Puts, deletions, leases and new directories from several clients: versions grow, and the end is the truth."""
    with zookeeper.open() as watching, zookeeper.open() as one, zookeeper.open() as two:
        watching.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()

        def write(store: Store, name: str) -> None:
            for number in range(60):
                deep = "/".join(["d"] * (number % 4))
                store.commit({}, {f"{at}{name}/{deep}/k": b"%d" % number, f"{at}both{number % 3}": name.encode()})
                if number % 5 == 0:
                    store.commit({}, {}, [f"{at}{name}/{deep}/k"])
                if number % 10 == 0:
                    store.hold(f"{at}{name}/held", b"v", 10_000).release()

        with ThreadPoolExecutor(2) as pool:
            for writing in [pool.submit(write, one, "one"), pool.submit(write, two, "two")]:
                writing.result()
        final = {entry.key: entry for entry in one.scan(at)}
        for entry in final.values():
            observer.wait_for_entry(entry)
        told = {entry.key: observer.newest(entry.key) for entry in observer.changes}
        assert {key for key, entry in told.items() if entry is not None and entry.value is not None} == set(final)
        versions = [entry.version for entry in observer.changes]
        assert versions == sorted(versions)
        assert observer.gaps == 1


@pytest.mark.parametrize("prefix", ["", "rel", "rel/a", "/test/{at}/b", "/"])
def test_a_watch_and_a_scan_agree_on_any_prefix(
    zookeeper: ZooKeeperContainerRig, observer: Observer, prefix: str
) -> None:
    """The empty one, one within a name, one without a leading slash, one below what is not there yet."""
    name = uuid.uuid4().hex
    prefix = prefix.format(at=name)
    keys = [f"/test/{name}/a", f"/test/{name}/b", f"/test/{name}/b/c", f"/test/{name}/bc", f"rel/a{name}", f"rel{name}"]
    with open_zookeeper(zookeeper.server, request_timeout_ms=PATIENT_MS, chroot=f"/{name}") as store:
        store.watch(prefix, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        version = store.commit({}, dict.fromkeys(keys, b"v"))
        below = sorted(key for key in keys if key.startswith(prefix))
        assert below
        assert [entry.key for entry in store.scan(prefix)] == below
        for key in below:
            assert observer.wait_for(key, b"v").version == version
        assert sorted(entry.key for entry in observer.changes) == below


def test_a_process_that_can_open_nothing_more_is_unavailable_until_it_can(
    zookeeper: ZooKeeperContainerRig, at: str, observer: Observer
) -> None:
    """Calls say so, and a watch goes on trying."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_zookeeper(zookeeper.server, request_timeout_ms=PATIENT_MS) as store, capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))
        try:
            with pytest.raises(StoreUnavailable, match="no connection can be made here"):
                store.commit({}, {f"{at}k": b"v"})
            store.watch(at, observer.on_change, observer.on_gap)
            wait_until(
                lambda: sum(line["event"] == "watch interrupted" for line in logs) >= 2, what="two failed attempts"
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        observer.wait_for_gap()
        store.commit({}, {f"{at}k": b"v"})
        observer.wait_for(f"{at}k", b"v")


def test_a_store_tells_what_serves_it(zookeeper: ZooKeeperContainerRig) -> None:
    """Version and settings, for a person."""
    with zookeeper.open() as store:
        assert isinstance(store, ZooKeeperStore)
        assert store.server_version().startswith("3.")
        settings = store.server_settings()
        assert settings["server"] == zookeeper.server
        assert settings["mode"] == "standalone"
        assert settings["read_only"] == "false"
        assert int(settings["session_timeout_ms"]) == 10_000


def test_kazoo_leaves_one_thread_for_each_connection(zookeeper: ZooKeeperContainerRig, at: str) -> None:
    """One for the store, one for a lease, two for a watch: what hundreds of agents' threads are reckoned by."""
    before = set(threading.enumerate())
    with zookeeper.open() as store:
        store.read(f"{at}k")
        assert len(set(threading.enumerate()) - before) == 1
        store.hold(f"{at}k", b"v", 10_000)
        assert len(set(threading.enumerate()) - before) == 2
        store.watch(at, lambda _: None, lambda: None)
        wait_until(lambda: len(set(threading.enumerate()) - before) == 4, what="the threads of a watch")
