"""Who leads: never two that may act, and never one for longer than its own clock allows."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
from killswitch_coordinator.election import Election

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import UnreadableRecord
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import Conflict
from tests.support.faulty_store import FaultyStore
from tests.unit.cluster.test_cluster import MS, HandClock
from tests.unit.core.test_core_flag import AT, a_freeze


@pytest.fixture
def clock() -> HandClock:
    """Moved by hand; the store's leases run on it, too."""
    return HandClock()


@pytest.fixture
def store(clock: HandClock) -> Iterator[FaultyStore]:
    """A store that misbehaves when told to; a delayed call moves the clock."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex, now_ns=clock), sleep=clock.sleep) as made:
        yield made


@pytest.fixture
def cluster(store: FaultyStore, clock: HandClock) -> Cluster:
    """Leader deadline 4 s, lease 6 s."""
    made = Cluster(store, "c", clock=clock, wall_clock=lambda: AT, sleep=clock.sleep)
    made.initialise(actor="a", reason="r")
    return made


@pytest.fixture
def first(cluster: Cluster) -> Election:
    """A candidate that leads in term 1."""
    made = Election(cluster, "c1", "i1")
    made.step()
    assert made.leads
    return made


@pytest.fixture
def second(cluster: Cluster) -> Election:
    """A candidate that has not stood yet."""
    return Election(cluster, "c2", "i2")


def test_the_first_candidate_leads_in_term_one(cluster: Cluster, first: Election, second: Election) -> None:
    """One leads: the key says who, in which term, and a second candidate does not."""
    second.step()
    leader = cluster.leader()
    assert leader is not None
    assert (leader.id, leader.instance, leader.term) == ("c1", "i1", 1)
    assert (first.leads, first.term, second.leads, second.term, second.fence) == (True, 1, False, 0, None)


def test_leading_ends_by_itself_before_anybody_else_can_lead(
    clock: HandClock, first: Election, second: Election
) -> None:
    """Never two that may act: a leader that hears nothing stops at its deadline, with no code running, and only later
    the lease runs out and the standby gets the key.
    """
    began_ns = clock.time_ns
    clock.time_ns = began_ns + 4_000 * MS - 1
    assert first.leads
    clock.time_ns += 1
    assert not first.leads
    assert first.fence is None
    for waited_ms in (4_000, 5_000, 5_999):
        clock.time_ns = began_ns + waited_ms * MS
        second.step()
        assert not second.leads
    clock.time_ns = began_ns + 6_000 * MS
    second.step()
    assert second.leads
    assert not first.leads


def test_keeping_alive_keeps_leading(clock: HandClock, first: Election, second: Election) -> None:
    """A leader that keeps its lease alive leads on, in the same term, for longer than any lease."""
    for _ in range(30):
        clock.time_ns += 500 * MS
        first.step()
        second.step()
    assert (first.leads, first.term, second.leads) == (True, 1, False)


def test_the_deadline_counts_from_before_the_keep_alive(store: FaultyStore, clock: HandClock, first: Election) -> None:
    """Never two that may act: a keep-alive that took a second does not lengthen the leadership by that second."""
    store.delay(1_000)
    sent_ns = clock.time_ns
    first.step()
    assert clock.time_ns >= sent_ns + 1_000 * MS
    clock.time_ns = sent_ns + 4_000 * MS - 1
    assert first.leads
    clock.time_ns += 1
    assert not first.leads


def test_the_deadline_of_a_new_leader_counts_from_before_it_took_the_key(
    store: FaultyStore, clock: HandClock, second: Election
) -> None:
    """Never two that may act: the time in which the key was taken is part of the first leadership."""
    store.delay(1_000)
    began_ns = clock.time_ns
    second.step()  # reads the leader, reads the term, takes the key, writes the term: a second each
    assert clock.time_ns == began_ns + 4_000 * MS
    clock.time_ns = began_ns + 2_000 * MS + 4_000 * MS - 1
    assert second.leads
    clock.time_ns += 1
    assert not second.leads


def test_a_paused_leader_is_refused_by_the_store(
    cluster: Cluster, clock: HandClock, first: Election, second: Election
) -> None:
    """Never two that may act: what a leader had decided before it was paused is refused once another leads."""
    fence = first.fence
    assert fence is not None
    clock.time_ns += 6_000 * MS
    second.step()
    assert second.leads
    before = cluster.store.scan("")
    with pytest.raises(Conflict):
        cluster.freeze(a_freeze(), timeout_ms=1_000, fence=fence)
    with pytest.raises(Conflict):
        cluster.store.commit(fence, {cluster.keys.view: b"stale"})
    assert cluster.store.scan("") == before
    assert cluster.freeze(a_freeze(), timeout_ms=1_000, fence=second.fence).changed


def test_the_fence_of_a_leader_between_leases_is_refused(cluster: Cluster, clock: HandClock, first: Election) -> None:
    """Never two that may act: when the key is gone and nobody leads, an old fence does not hold either."""
    fence = first.fence
    clock.time_ns += 6_000 * MS
    assert cluster.leader() is None
    with pytest.raises(Conflict):
        cluster.freeze(a_freeze(), timeout_ms=1_000, fence=fence)


def test_the_term_grows_by_one_with_each_leadership(
    cluster: Cluster, clock: HandClock, first: Election, second: Election
) -> None:
    """Each leadership has a term of its own, one above the last, whoever leads."""
    terms = [first.term]
    for candidate in (second, first, first, second):
        clock.time_ns += 6_000 * MS
        for _ in range(2):  # once to find the old lease gone, once to stand
            candidate.step()
        terms.append(candidate.term)
        leader = cluster.leader()
        assert leader is not None
        assert (candidate.leads, leader.term) == (True, candidate.term)
    assert terms == [1, 2, 3, 4, 5]


def test_a_standby_takes_over_when_the_leader_resigns(cluster: Cluster, first: Election, second: Election) -> None:
    """A leader that goes says so, and the standby need not wait for the lease."""
    first.resign()
    assert not first.leads
    assert first.fence is None
    assert cluster.leader() is None
    second.step()
    assert (second.leads, second.term) == (True, 2)


def test_resigning_without_a_store_ends_leading_at_once(store: FaultyStore, first: Election) -> None:
    """Never two that may act: whether or not the store hears of it, who resigned does not lead."""
    store.cut()
    first.resign()
    assert not first.leads
    assert store.failed_calls == 1
    first.resign()


def test_a_lost_lease_ends_leading_at_once(clock: HandClock, first: Election) -> None:
    """Never two that may act: a lease that died early ends the leadership, long before its deadline."""
    lease = first._lease
    assert lease is not None
    lease.release()
    clock.time_ns += MS
    first.step()
    assert not first.leads
    assert first.fence is None
    first.step()
    assert (first.leads, first.term) == (True, 2)


@pytest.mark.parametrize("fault", ["deleted", "replaced"])
def test_a_key_that_is_no_longer_its_own_ends_leading_at_once(cluster: Cluster, first: Election, fault: str) -> None:
    """Never two that may act: a store that lost the key, while the lease lives on, ends the leadership."""
    key = cluster.keys.leader
    cluster.store.commit({}, {key: b"another"} if fault == "replaced" else {}, [key] if fault == "deleted" else [])
    first.step()
    assert not first.leads
    assert first.fence is None


def test_a_cut_store_ends_leading_by_the_deadline(store: FaultyStore, clock: HandClock, first: Election) -> None:
    """Never two that may act: failing keep-alives do not lengthen a leadership; it ends at its deadline."""
    began_ns = clock.time_ns
    store.cut()
    while clock.time_ns < began_ns + 3_500 * MS:
        clock.time_ns += 500 * MS
        first.step()
        assert first.leads
    assert store.failed_calls == 7
    clock.time_ns = began_ns + 4_000 * MS
    assert not first.leads


def test_a_leader_whose_lease_is_still_there_leads_on_when_the_store_is_back(
    store: FaultyStore, clock: HandClock, first: Election
) -> None:
    """A cut shorter than the lease costs no term: the key was its own all the time."""
    store.cut()
    clock.time_ns += 5_000 * MS
    first.step()
    assert not first.leads
    store.heal()
    first.step()
    assert (first.leads, first.term) == (True, 1)


def test_a_leader_whose_lease_ran_out_stands_again(store: FaultyStore, clock: HandClock, first: Election) -> None:
    """A cut longer than the lease costs the term."""
    store.cut()
    clock.time_ns += 6_000 * MS
    first.step()
    store.heal()
    first.step()
    assert not first.leads
    first.step()
    assert (first.leads, first.term) == (True, 2)


def test_a_lost_reply_to_taking_the_key_makes_no_leader(
    cluster: Cluster, store: FaultyStore, clock: HandClock, second: Election
) -> None:
    """Never two that may act: who does not know that it holds the key does not lead; the key goes with its lease."""
    store.lose_next_reply()
    second.step()
    assert store.failed_calls == 1
    assert not second.leads
    assert cluster.leader() is not None
    second.step()
    assert not second.leads
    clock.time_ns += 6_000 * MS
    second.step()
    assert (second.leads, second.term) == (True, 1)


def test_a_lost_reply_to_the_term_makes_no_leader(cluster: Cluster, store: FaultyStore, second: Election) -> None:
    """Never two that may act: without a known term there is no leadership; the key is given back at once."""
    real = store.hold

    def lose_the_next(key: str, value: bytes, ttl_ms: int) -> object:
        lease = real(key, value, ttl_ms)
        store.lose_next_reply()
        return lease

    store.hold = lose_the_next  # type: ignore[assignment]
    second.step()
    store.hold = real  # type: ignore[method-assign]
    assert store.failed_calls == 1
    assert not second.leads
    assert cluster.leader() is None
    second.step()
    assert (second.leads, second.term) == (True, 2)


def test_an_unreadable_term_makes_no_leader(cluster: Cluster, second: Election) -> None:
    """UNKNOWN IS FROZEN: without knowing the last term nobody leads, and nothing is overwritten."""
    cluster.store.commit({}, {cluster.keys.term: b"seven"})
    with pytest.raises(UnreadableRecord, match="key /killswitch/c/term cannot be read"):
        second.step()
    assert not second.leads
    assert cluster.leader() is None
    entry = cluster.store.read(cluster.keys.term)
    assert entry is not None
    assert entry.value == b"seven"


def test_of_many_that_stand_at_once_one_leads(cluster: Cluster) -> None:
    """Never two that may act: candidates that find no leader at the same moment end up with one."""
    candidates = [Election(cluster, f"c{number}", f"i{number}") for number in range(8)]
    start = threading.Barrier(len(candidates))

    def stand(candidate: Election) -> None:
        start.wait()
        candidate.step()

    threads = [threading.Thread(target=stand, args=(candidate,)) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leading = [candidate for candidate in candidates if candidate.leads]
    assert len(leading) == 1
    leader = cluster.leader()
    assert leader is not None
    assert leader.id == leading[0]._candidate
