"""ZooKeeper with three members, and what happens when some of them fail."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from killswitch.stores import Entry, OutcomeUnknown, Store, StoreError, StoreUnavailable
from tests.conformance.rigs.base import PATIENT_MS
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.zookeeper_ensemble import MEMBERS, ZooKeeperEnsemble
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 8_000
GOES_ON_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def rig() -> Iterator[ZooKeeperEnsemble]:
    """The three members, in place of the one server of the shared suite."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        image = choose_image(client, "zookeeper")
    finally:
        client.close()
    made = ZooKeeperEnsemble(image)
    yield made
    made.close()


@pytest.fixture
def ensemble(rig: ZooKeeperEnsemble, nothing_left_behind: None) -> Iterator[ZooKeeperEnsemble]:
    """The three members, whole before the test and after it."""
    yield rig
    rig.heal()


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"


def commit_at_last(store: Store, key: str, value: bytes) -> int:
    """Commit, as often as it takes; a value that is the same again does no harm."""

    def committed() -> int | None:
        with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
            return store.commit({}, {key: value})
        return None

    version = wait_until(committed, within_s=GOES_ON_WITHIN_S, what=f"a commit to {key}")
    assert version is not None
    return version


def test_a_killed_leader_costs_nothing_that_was_acknowledged(
    ensemble: ZooKeeperEnsemble, at: str, observer: Observer
) -> None:
    """Commits go on with the other two, each acknowledged one is there, and the watch hears of the newest."""
    leader = ensemble.leader()
    acknowledged: list[tuple[str, int]] = []
    enough, killed = threading.Event(), threading.Event()

    def write(store: Store) -> None:
        after = 0
        while after < 20:
            key = f"{at}{len(acknowledged):05}"
            acknowledged.append((key, commit_at_last(store, key, b"v")))
            after += killed.is_set()
            if len(acknowledged) >= 50:
                enough.set()

    # The store that writes and the watch are with the leader when it dies.
    with ensemble.open(*ensemble.servers_from(leader)) as store, ThreadPoolExecutor(1) as pool:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        writing = pool.submit(write, store)
        assert enough.wait(GOES_ON_WITHIN_S)
        ensemble.members[leader].kill()
        killed.set()
        writing.result(timeout=2 * GOES_ON_WITHIN_S)
        kept = {entry.key for entry in store.scan(at)}
        assert {key for key, _ in acknowledged} <= kept
        versions = [version for _, version in acknowledged]
        assert versions == sorted(versions)
        observer.wait_for_gap(after=1)
        observer.hears(store, f"{at}after", b"v", within_s=GOES_ON_WITHIN_S)


def test_a_paused_member_costs_its_clients_no_call(ensemble: ZooKeeperEnsemble, at: str, observer: Observer) -> None:
    """Reads go to another member within the call's own time, and the watch moves and says gap."""
    follower = (ensemble.leader() + 1) % MEMBERS
    with (
        ensemble.open(*ensemble.servers_from(follower), request_timeout_ms=4_000) as store,
        ensemble.open(ensemble.servers[(follower + 1) % MEMBERS]) as other,
    ):
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        version = store.commit({}, {f"{at}k": b"v"})
        with capture_logs() as logs:
            ensemble.members[follower].pause()
            assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
            assert store.commit({f"{at}k": version}, {f"{at}k": b"w"}) > version
            observer.wait_for_gap(after=1)
        assert any(line["event"] == "watch silent" for line in logs)
        observer.hears(other, f"{at}after", b"v", within_s=GOES_ON_WITHIN_S)


def test_a_leader_that_slept_never_answers_with_what_it_knew(ensemble: ZooKeeperEnsemble, at: str) -> None:
    """It was deposed meanwhile and a freeze was committed; its own clients are not told the state of before.

    ZooKeeper's ``sync`` is answered by such a leader until it notices, so a read that stands on it is stale here.
    """
    for attempt in range(3):
        wake_a_deposed_leader(ensemble, f"{at}{attempt}/")
        ensemble.heal()


def wake_a_deposed_leader(ensemble: ZooKeeperEnsemble, at: str) -> None:
    """Put the leader to sleep, commit through the others, and look at what it answers when it wakes."""
    key, leader = f"{at}flag", ensemble.leader()
    others = [server for number, server in enumerate(ensemble.servers) if number != leader]
    with (
        ensemble.open(ensemble.servers[leader], request_timeout_ms=PATIENT_MS) as asleep,
        ensemble.open(*others) as awake,
        ThreadPoolExecutor(2) as pool,
    ):
        before = commit_at_last(asleep, key, b"active")
        assert asleep.read(key) == Entry(key, b"active", before)
        ensemble.members[leader].pause()
        frozen = Entry(key, b"frozen", commit_at_last(awake, key, b"frozen"))
        # On their way when the leader wakes up, so they are the first that it looks at.
        reading, scanning = pool.submit(asleep.read, key), pool.submit(asleep.scan, at)
        wait_until(lambda: reading.running() and scanning.running(), what="requests on their way")
        ensemble.members[leader].resume()
        with contextlib.suppress(StoreUnavailable):
            assert reading.result() == frozen
        with contextlib.suppress(StoreUnavailable):
            assert scanning.result() == [frozen]
        wait_until(
            lambda: read_or_none(asleep, key) == frozen, within_s=GOES_ON_WITHIN_S, what="the newest from who slept"
        )


def test_a_lease_that_is_kept_alive_outlives_the_leader(ensemble: ZooKeeperEnsemble, at: str) -> None:
    """While nobody leads, keeping alive may be unavailable, never lost; with a new leader the key is still there."""
    leader = ensemble.leader()
    with ensemble.open(*ensemble.servers_from(leader)) as store:
        lease = store.hold(f"{at}k", b"v", LEASE_TTL_MS)
        ensemble.members[leader].kill()
        failures = 0

        def kept() -> bool:
            nonlocal failures
            try:
                lease.keep_alive()
            except StoreUnavailable:
                failures += 1
                return False
            return True

        wait_until(kept, within_s=GOES_ON_WITHIN_S, what="a keep-alive through another member")
        entry = wait_until(lambda: read_or_none(store, f"{at}k"), what="a read through another member")
        assert entry == Entry(f"{at}k", b"v", lease.version)
        lease.release()
        assert store.read(f"{at}k") is None


def read_or_none(store: Store, key: str) -> Entry | None:
    """A read that may fail."""
    with contextlib.suppress(StoreError):
        return store.read(key)
    return None


def test_a_member_that_is_cut_off_answers_nothing_and_its_watches_move(
    ensemble: ZooKeeperEnsemble, at: str, observer: Observer
) -> None:
    """Its clients reach it, and are told nothing rather than what it knew; a watch does not stay with it."""
    cut = (ensemble.leader() + 1) % MEMBERS
    with (
        ensemble.open(ensemble.servers[cut]) as stranded,
        ensemble.open(*ensemble.servers_from(cut)) as store,
        ensemble.open(ensemble.servers[(cut + 1) % MEMBERS]) as other,
    ):
        before = commit_at_last(other, f"{at}k", b"before")
        assert stranded.read(f"{at}k") == Entry(f"{at}k", b"before", before)
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        ensemble.cut_off(cut)
        commit_at_last(other, f"{at}k", b"after")
        with pytest.raises(StoreUnavailable):
            stranded.read(f"{at}k")
        with pytest.raises(StoreUnavailable):
            stranded.scan(at)
        observer.wait_for_gap(after=1)
        observer.hears(other, f"{at}k", b"last", within_s=GOES_ON_WITHIN_S)
