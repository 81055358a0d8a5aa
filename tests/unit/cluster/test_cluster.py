"""The cluster in its store: what is written, what is refused, and what a certificate collects, under every fault."""

from __future__ import annotations

import dataclasses
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from killswitch.clock import now_ns
from killswitch.cluster.certificates import (
    MEMBERSHIP_EVERY_MS,
    SIGHTS_MAX,
    CertificateCollector,
    NodesUnreadable,
    is_settled,
)
from killswitch.cluster.cluster import (
    AlreadyInitialised,
    Cluster,
    Committed,
    FreezeNotCommitted,
    NotInitialised,
    new_freeze_id,
)
from killswitch.cluster.records import AckRecord, Keys, NodeRecord, ReportRecord, UnreadableRecord
from killswitch.core.certificate import Certificate, KnownNode, Proof
from killswitch.core.flag import MAX_FREEZES, Flag, Freeze, StaleEpoch, UnknownFreeze
from killswitch.core.modes import Mode
from killswitch.core.permit import Timing
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, StoreUnavailable
from tests.support.clock import HandClock
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until
from tests.unit.core.test_core_flag import AT, a_freeze

MS = 1_000_000
TIMEOUT_MS = 1_000


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """A store that misbehaves when told to."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex)) as made:
        yield made


@pytest.fixture
def clock() -> HandClock:
    """Moved by hand."""
    return HandClock()


@pytest.fixture
def cluster(store: FaultyStore, clock: HandClock) -> Cluster:
    """A cluster at epoch 1, on the clock moved by hand."""
    made = Cluster(store, "c", clock=clock, wall_clock=lambda: AT, sleep=clock.sleep)
    made.initialise(actor="operator:ann", reason="set up")
    return made


def freeze_now(cluster: Cluster, freeze: Freeze | None = None) -> Committed:
    """Commit one freeze."""
    committed = cluster.freeze(freeze or a_freeze(), timeout_ms=TIMEOUT_MS)
    if isinstance(cluster.clock, HandClock):
        cluster.clock.time_ns += 1  # no two things happen at one instant
    return committed


def lose_the_reply_and_all_that_follows(store: FaultyStore) -> None:
    """The next commit happens, and nothing is heard of the store after it."""
    store.lose_next_reply()
    real = store.commit

    def lose_and_cut(*args: Any, **named: Any) -> int:
        try:
            return real(*args, **named)
        finally:
            store.cut()

    store.commit = lose_and_cut  # type: ignore[method-assign]


def put(cluster: Cluster, key: str, value: bytes) -> None:
    """Write behind the cluster's back."""
    cluster.store.commit({}, {key: value})


def everything(cluster: Cluster) -> list[Entry]:
    """All that the store holds."""
    return cluster.store.scan("")


def a_node(node: str = "n1", permit_ttl_ms: int = 2_000) -> bytes:
    """A node's lasting record."""
    return NodeRecord(
        node=node, permit_ttl_ms=permit_ttl_ms, build="1", limits_hash="x", address="h", registered_at=AT
    ).to_bytes()


def a_report(node: str = "n1", *, working_orders: int = 2, pnl_usd: float = 0.0, **notional_usd: float) -> bytes:
    """A node's report."""
    body = {
        "node": node, "instance": "i", "report": 1, "at": AT, "mode": "ACTIVE", "epoch": 1, "permit_ms_left": 900,
        "holdings": {
            symbol: {"quantity": usd, "mark_price_usd": 1.0, "notional_usd": usd}
            for symbol, usd in notional_usd.items()
        },
        "gross_usd": 0.0, "net_usd": 0.0, "pnl_usd": pnl_usd, "working_orders": working_orders,
        "working_notional_usd": 0.0, "utilization_pct": None, "last_sequence": None, "routers": [],
    }  # fmt: skip
    return ReportRecord.model_validate(body).to_bytes()


def an_ack(node: str = "n1", epoch: int = 2, freezes: list[str] | None = None, **named: Any) -> bytes:
    """A node's ack; complete and flat unless told otherwise."""
    body = {
        "node": node, "instance": "i", "epoch": epoch, "freezes": ["f1"] if freezes is None else freezes,
        "mode": "FROZEN", "complete": True, "orders_cancelled": 1, "orders_failed": 0, "orders_open": 0,
        "last_sequence": 9, "routers": [], "at": AT, **named,
    }  # fmt: skip
    return AckRecord.model_validate(body).to_bytes()


# -- init ------------------------------------------------------------------------------------------------------------


def test_initialising_twice_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    """RELEASE IS FENCED: a second init never sets a flag back, frozen or not."""
    freeze_now(cluster)
    before = everything(cluster)
    with pytest.raises(AlreadyInitialised, match="cluster 'c' exists already in memory://"):
        cluster.initialise(actor="operator:bob", reason="again")
    assert everything(cluster) == before


def test_initialising_where_only_a_history_is_left_gives_back_a_frozen_flag(cluster: Cluster) -> None:
    """UNKNOWN IS FROZEN: a flag that is gone is made anew from its history, every cause in it, and frozen for that."""
    known = freeze_now(cluster, a_freeze("f1", "venue:bybit")).flag
    cluster.store.commit({}, {}, [cluster.keys.flag])
    flag = cluster.initialise(actor="operator:bob", reason="again")
    assert flag == cluster.read_flag().flag
    assert (flag.epoch, flag.parent) == (known.epoch + 1, known.head)
    assert known.freeze_ids() < flag.freeze_ids()
    assert flag.mode_for({"venue": "kraken"}) is Mode.FROZEN
    assert cluster.verify_history() == []


@pytest.mark.parametrize("value", [None, b"unreadable"])
def test_initialising_where_only_a_flag_is_left_is_refused(cluster: Cluster, value: bytes | None) -> None:
    """UNKNOWN IS FROZEN: a flag without its history, readable or not, is not set up anew over it."""
    cluster.store.commit({}, {}, [cluster.keys.history(1)])
    if value is not None:
        put(cluster, cluster.keys.flag, value)
    before = everything(cluster)
    with pytest.raises(AlreadyInitialised):
        cluster.initialise(actor="operator:bob", reason="again")
    assert everything(cluster) == before


def test_a_cluster_without_a_flag_says_what_to_do(store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: without a flag nothing can be read, frozen or released, and the sentence says how to begin."""
    empty = Cluster(store, "c")
    for act in (
        empty.read_flag,
        lambda: freeze_now(empty),
        lambda: empty.release(epoch=1, ids=["f1"], actor="a", reason="r"),
        empty.verify_history,
    ):
        with pytest.raises(NotInitialised, match="every gate stays closed until `killswitch --cluster c init`"):
            act()
    assert store.scan("") == []


def test_two_clusters_in_one_store_do_not_touch_each_other(store: FaultyStore) -> None:
    """Clusters are apart: a freeze of one is no freeze of the other, also where one name begins like the other."""
    clusters = [Cluster(store, name, wall_clock=lambda: AT) for name in ("c", "cc")]
    for one in clusters:
        one.initialise(actor="a", reason="r")
    freeze_now(clusters[0])
    assert [one.read_flag().flag.epoch for one in clusters] == [2, 1]
    assert [one.verify_history() for one in clusters] == [[], []]


# -- freeze ----------------------------------------------------------------------------------------------------------


def test_a_freeze_is_in_the_flag_and_in_the_history_at_once(cluster: Cluster, clock: HandClock) -> None:
    """NOTHING IS LOST: flag and entry are one commit, with who, why and the figures."""
    freeze = a_freeze(metadata={"figure": 12.5})
    began_ns = clock.time_ns
    committed = freeze_now(cluster, freeze)
    flag = cluster.read_flag().flag
    assert committed == Committed(flag, changed=True, started_ns=began_ns, returned_ns=began_ns)
    assert flag.freezes == (freeze,)
    versions = {entry.key: entry.version for entry in everything(cluster)}
    assert versions[cluster.keys.flag] == versions[cluster.keys.history(2)]
    assert cluster.history()[-1][1].added[0]["metadata"] == {"figure": 12.5}


def test_the_same_freeze_twice_leaves_one(cluster: Cluster) -> None:
    """ONE VOICE FREEZES: a freeze that is in force already changes nothing, and says so."""
    once = freeze_now(cluster)
    before = everything(cluster)
    again = freeze_now(cluster)
    assert (again.flag, again.changed) == (once.flag, False)
    assert everything(cluster) == before


def test_many_freezes_at_once_all_get_in(store: FaultyStore) -> None:
    """ONE VOICE FREEZES: every voice gets in by trying again on conflict; no cause is lost, and no epoch is skipped."""
    cluster = Cluster(store, "c")
    cluster.initialise(actor="a", reason="r")
    voices, each = 8, 5
    start = threading.Barrier(voices)
    failed: list[BaseException] = []

    def speak(voice: int) -> None:
        try:
            start.wait()
            for number in range(each):
                cluster.freeze(a_freeze(f"v{voice}-{number}", f"node:v{voice}"), timeout_ms=30_000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=speak, args=(voice,)) for voice in range(voices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flag = cluster.read_flag().flag
    assert not failed
    assert flag.freeze_ids() == {f"v{voice}-{number}" for voice in range(voices) for number in range(each)}
    assert flag.epoch == 1 + voices * each
    assert cluster.verify_history() == []


def test_a_freeze_that_meets_a_conflict_tries_again(cluster: Cluster, store: FaultyStore) -> None:
    """ONE VOICE FREEZES: somebody who changes the flag in between costs another attempt, and neither cause is lost."""
    other = Cluster(store, "c", wall_clock=lambda: AT)
    spoilers = iter(range(3))

    def spoil(flag: Flag) -> bool:
        number = next(spoilers, None)
        if number is not None:
            freeze_now(other, a_freeze(f"other{number}"))
        return False

    committed = cluster.freeze(a_freeze("mine"), timeout_ms=TIMEOUT_MS, skip=spoil)
    assert committed.flag.freeze_ids() == {"mine", "other0", "other1", "other2"}
    assert committed.flag.epoch == 5


def test_a_lost_reply_leaves_exactly_one_cause_and_says_that_it_is_in(cluster: Cluster, store: FaultyStore) -> None:
    """ONE VOICE FREEZES: after a lost reply the flag is read; the answer is the truth, and the cause is in once."""
    store.lose_next_reply()
    committed = freeze_now(cluster)
    assert store.failed_calls == 1
    assert committed.changed
    assert [freeze.id for freeze in committed.flag.freezes] == ["f1"]
    assert committed.flag == cluster.read_flag().flag
    assert committed.flag.epoch == 2
    assert [entry.kind for _, entry in cluster.history()] == ["init", "freeze"]


def test_a_lost_reply_beyond_the_limit_leaves_exactly_one_entry(cluster: Cluster, store: FaultyStore) -> None:
    """ONE VOICE FREEZES: the same holds for a cause that was folded into the escalation."""
    for number in range(MAX_FREEZES + 1):
        freeze_now(cluster, a_freeze(f"n{number:02d}"))
    store.lose_next_reply()
    committed = freeze_now(cluster, a_freeze("late"))
    assert store.failed_calls == 1
    assert committed.changed
    assert [entry.added[0]["id"] for _, entry in cluster.history()[1:]].count("late") == 1


def test_a_freeze_that_may_be_in_says_so(cluster: Cluster, store: FaultyStore) -> None:
    """PROOF, NOT HOPE: when the reply was lost and the store is gone, the error says that it may be in force."""
    lose_the_reply_and_all_that_follows(store)
    with pytest.raises(FreezeNotCommitted, match="the freeze may or may not be in force") as refused:
        freeze_now(cluster)
    assert refused.value.may_have_happened
    store.heal()
    assert cluster.read_flag().flag.freeze_ids() == {"f1"}


def test_a_cut_store_says_that_the_freeze_is_not_in_force_within_the_time_out(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """BOUNDED STOP: whoever cannot freeze hears it within the time-out, for that person has to pull another plug."""
    store.cut()
    began_ns = clock.time_ns
    with pytest.raises(FreezeNotCommitted, match="the freeze is NOT in force: memory://") as refused:
        freeze_now(cluster)
    assert not refused.value.may_have_happened
    assert store.failed_calls > 3
    assert TIMEOUT_MS * MS <= clock.time_ns - began_ns <= (TIMEOUT_MS + 1) * MS
    store.heal()
    assert cluster.read_flag().flag.freezes == ()


def test_a_freeze_is_tried_until_the_store_is_back(cluster: Cluster, store: FaultyStore, clock: HandClock) -> None:
    """ONE VOICE FREEZES: a store that comes back within the time-out gets the freeze."""
    store.cut()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept_s) == 4:
            store.heal()

    cluster.pause = sleep
    assert freeze_now(cluster).flag.freeze_ids() == {"f1"}
    assert store.failed_calls == 4


def test_pauses_between_attempts_are_bounded(cluster: Cluster, store: FaultyStore, clock: HandClock) -> None:
    """A limit on everything: no pause is longer than the backoff cap."""
    store.cut()
    with pytest.raises(FreezeNotCommitted):
        cluster.freeze(a_freeze(), timeout_ms=60_000)
    assert max(clock.slept_s) <= cluster.timing.backoff_cap_ms / 1_000


def test_a_fence_that_no_longer_holds_is_a_conflict_and_nothing_is_written(cluster: Cluster) -> None:
    """RELEASE IS FENCED: a leader that was paused and woken up names a version of its key that is gone, and loses."""
    lease = cluster.store.hold(cluster.keys.leader, b"me", 60_000)
    fence: dict[str, int | None] = {lease.key: lease.version}
    lease.release()
    cluster.store.hold(cluster.keys.leader, b"another", 60_000)
    before = everything(cluster)
    with pytest.raises(Conflict, match="is no longer at version"):
        cluster.freeze(a_freeze(), timeout_ms=60_000, fence=fence)
    assert everything(cluster) == before


def test_a_fence_that_holds_lets_the_freeze_in(cluster: Cluster) -> None:
    """A leader whose key stands freezes as anybody does."""
    lease = cluster.store.hold(cluster.keys.leader, b"me", 60_000)
    assert cluster.freeze(a_freeze(), timeout_ms=TIMEOUT_MS, fence={lease.key: lease.version}).changed


def test_a_skipped_freeze_leaves_the_flag_as_it_is(cluster: Cluster) -> None:
    """A rule whose freeze is in force already makes no second one."""
    freeze_now(cluster)
    before = everything(cluster)
    committed = cluster.freeze(a_freeze("f2"), timeout_ms=TIMEOUT_MS, skip=lambda flag: "f1" in flag.freeze_ids())
    assert (committed.changed, committed.flag.freeze_ids()) == (False, {"f1"})
    assert everything(cluster) == before


def test_ids_of_freezes_do_not_repeat() -> None:
    """ONE VOICE FREEZES: two causes never share an id by accident."""
    assert len({new_freeze_id() for _ in range(1_000)}) == 1_000


# -- release ---------------------------------------------------------------------------------------------------------


def test_a_release_of_another_epoch_changes_nothing(cluster: Cluster) -> None:
    """RELEASE IS FENCED: a stale release loses, and hears the epoch that holds."""
    freeze_now(cluster)
    before = everything(cluster)
    for epoch in (1, 3):
        with pytest.raises(StaleEpoch, match=f"names epoch {epoch}, but the current epoch is 2"):
            cluster.release(epoch=epoch, ids=["f1"], actor="a", reason="r")
    with pytest.raises(UnknownFreeze):
        cluster.release(epoch=2, ids=["f9"], actor="a", reason="r")
    assert everything(cluster) == before


def test_a_release_lifts_what_it_names_and_is_in_the_history(cluster: Cluster) -> None:
    """NOTHING IS LOST: the release is an entry with who and why."""
    freeze_now(cluster)
    freeze_now(cluster, a_freeze("f2", "venue:bybit"))
    committed = cluster.release(epoch=3, ids=["f1"], actor="operator:bob", reason="looked")
    assert committed.flag == cluster.read_flag().flag
    assert committed.flag.freeze_ids() == {"f2"}
    _, entry = cluster.history()[-1]
    assert (entry.kind, entry.actor, entry.reason, entry.lifted) == ("release", "operator:bob", "looked", ("f1",))
    assert cluster.verify_history() == []


def test_a_release_whose_reply_was_lost_is_settled_by_the_history(cluster: Cluster, store: FaultyStore) -> None:
    """RELEASE IS FENCED: after a lost reply the entry of the next epoch tells whether it was ours."""
    freeze_now(cluster)
    store.lose_next_reply()
    committed = cluster.release(epoch=2, ids=["f1"], actor="a", reason="r")
    assert store.failed_calls == 1
    assert committed.flag == cluster.read_flag().flag
    assert committed.flag.freezes == ()


def test_a_release_that_may_be_in_says_so(cluster: Cluster, store: FaultyStore) -> None:
    """RELEASE IS FENCED: when the reply was lost and the store is gone, the error says that it may be in force."""
    freeze_now(cluster)
    lose_the_reply_and_all_that_follows(store)
    with pytest.raises(OutcomeUnknown, match="the release may or may not be in force"):
        cluster.release(epoch=2, ids=["f1"], actor="a", reason="r")
    store.heal()
    assert cluster.read_flag().flag.freezes == ()


def test_a_release_that_did_not_happen_is_not_said_to_have(cluster: Cluster, store: FaultyStore) -> None:
    """RELEASE IS FENCED: a time-out after which the next epoch is missing, or somebody else's, stays unknown."""
    freeze_now(cluster)
    other = Cluster(store, "c", wall_clock=lambda: AT)
    real = store.commit

    def time_out(*args: Any, **named: Any) -> int:
        raise OutcomeUnknown("the test")

    def somebody_else(*args: Any, **named: Any) -> int:
        store.commit = real  # type: ignore[method-assign]
        freeze_now(other, a_freeze("f2"))
        raise OutcomeUnknown("the test")

    for fault in (time_out, somebody_else):
        store.commit = fault  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknown):
            cluster.release(epoch=2, ids=["f1"], actor="a", reason="r")
        store.commit = real  # type: ignore[method-assign]
    assert cluster.read_flag().flag.freeze_ids() == {"f1", "f2"}


def test_a_freeze_that_comes_between_makes_the_release_lose(cluster: Cluster, store: FaultyStore) -> None:
    """RELEASE IS FENCED: a newer freeze voids a release that was decided before it, even between its two calls."""
    freeze_now(cluster)
    other = Cluster(store, "c", wall_clock=lambda: AT)
    real = store.commit

    def freeze_first(*args: Any, **named: Any) -> int:
        store.commit = real  # type: ignore[method-assign]
        freeze_now(other, a_freeze("newer"))
        return real(*args, **named)

    store.commit = freeze_first  # type: ignore[method-assign]
    with pytest.raises(StaleEpoch, match="names epoch 2, but the current epoch is 3"):
        cluster.release(epoch=2, ids=["f1"], actor="a", reason="r")
    assert cluster.read_flag().flag.freeze_ids() == {"f1", "newer"}


# -- flags that cannot be read, and stores that lost theirs ----------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"\x00\xff", b'{"v": 2}', b'{"v":1,"cluster":"c","epoch":5,"mode":"ACTIVE"'])
def test_an_unreadable_flag_is_never_overwritten(cluster: Cluster, value: bytes) -> None:
    """UNKNOWN IS FROZEN: freeze, release, init and reassert all leave a flag alone that they cannot read."""
    known = freeze_now(cluster).flag
    put(cluster, cluster.keys.flag, value)
    before = everything(cluster)
    acts: list[tuple[Callable[[], Any], type[Exception]]] = [
        (lambda: freeze_now(cluster, a_freeze("f2")), UnreadableRecord),
        (lambda: cluster.release(epoch=2, ids=["f1"], actor="a", reason="r"), UnreadableRecord),
        (lambda: cluster.reassert(known, a_freeze("store-lost")), UnreadableRecord),
        (lambda: cluster.initialise(actor="a", reason="r"), AlreadyInitialised),
        (cluster.read_flag, UnreadableRecord),
    ]
    for act, error in acts:
        with pytest.raises(error):
            act()
        assert everything(cluster) == before


@pytest.mark.parametrize("fault", ["lost", "regressed"])
def test_a_store_that_lost_its_data_is_told_again(store: FaultyStore, fault: str) -> None:
    """UNKNOWN IS FROZEN: what an agent remembers goes back in, above every epoch, once."""
    old = Cluster(store, "c", wall_clock=lambda: AT)
    old.initialise(actor="a", reason="r")
    known = freeze_now(old, a_freeze("f1")).flag
    keys = [entry.key for entry in store.scan("")]
    store.commit({}, {}, keys)
    found = old.initialise(actor="a", reason="somebody set it up anew") if fault == "regressed" else known
    cause = a_freeze("store-lost-2")
    again = old.reassert(known, cause)
    assert again == old.read_flag().flag
    assert again.freeze_ids() == {"f1", "store-lost-2"}
    assert (again.epoch, again.parent) == (3, found.head)
    before = everything(old)
    assert old.reassert(known, cause) == again
    assert everything(old) == before


def test_a_reassertion_that_meets_somebody_elses_change_is_a_conflict(cluster: Cluster, store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: a flag written in between is not overwritten by what somebody remembers of an older one."""
    known = freeze_now(cluster).flag
    other = Cluster(store, "c", wall_clock=lambda: AT)
    real = store.commit

    def freeze_first(*args: Any, **named: Any) -> int:
        store.commit = real  # type: ignore[method-assign]
        freeze_now(other, a_freeze("newer"))
        return real(*args, **named)

    store.commit = freeze_first  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        cluster.reassert(known, a_freeze("store-lost"))
    assert cluster.read_flag().flag.freeze_ids() == {"f1", "newer"}


def test_a_reassertion_that_is_overtaken_by_an_init_is_a_conflict(cluster: Cluster, store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: a flag that appears after the store was found empty is not overwritten unread."""
    known = freeze_now(cluster).flag
    store.commit({}, {}, [entry.key for entry in everything(cluster)])
    other = Cluster(store, "c", wall_clock=lambda: AT)
    real = store.read

    def init_after(key: str) -> Entry | None:
        store.read = real  # type: ignore[method-assign]
        found = real(key)
        other.initialise(actor="operator:bob", reason="the store was empty")
        return found

    store.read = init_after  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        cluster.reassert(known, a_freeze("store-lost"))
    assert cluster.read_flag().flag.epoch == 1


# -- history ---------------------------------------------------------------------------------------------------------


def _with_four_epochs(cluster: Cluster) -> None:
    for number in (1, 2, 3):
        freeze_now(cluster, a_freeze(f"f{number}"))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.sampled_from(["actor", "at", "reason", "kind", "previous_hash", "cluster"]))
def test_a_history_entry_edited_in_the_store_is_found(epoch: int, field: str) -> None:
    """NOTHING IS LOST: an edit with the store's own tools is found by its epoch."""
    with MemoryStore(uuid.uuid4().hex) as store:
        cluster = Cluster(store, "c", wall_clock=lambda: AT)
        cluster.initialise(actor="a", reason="r")
        _with_four_epochs(cluster)
        entry = store.read(cluster.keys.history(epoch))
        assert entry is not None
        body = json.loads(entry.value or b"")
        body[field] = "release" if field == "kind" else "forged"
        put(cluster, entry.key, json.dumps(body).encode())
        assert (epoch, "changed") in {(fault.epoch, fault.kind) for fault in cluster.verify_history()}


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_history_entry_deleted_in_the_store_is_found(cluster: Cluster, epoch: int) -> None:
    """NOTHING IS LOST: the first, a middle and the last entry are missed."""
    _with_four_epochs(cluster)
    cluster.store.commit({}, {}, [cluster.keys.history(epoch)])
    assert (epoch, "missing") in {(fault.epoch, fault.kind) for fault in cluster.verify_history()}


def test_two_history_entries_swapped_in_the_store_are_found(cluster: Cluster) -> None:
    """NOTHING IS LOST: contents under each other's keys are found."""
    _with_four_epochs(cluster)
    values = {epoch: cluster.store.read(cluster.keys.history(epoch)) for epoch in (2, 3)}
    for epoch, other in ((2, 3), (3, 2)):
        entry = values[other]
        assert entry is not None
        put(cluster, cluster.keys.history(epoch), entry.value or b"")
    assert {(2, "reordered"), (3, "reordered")} <= {(f.epoch, f.kind) for f in cluster.verify_history()}


def test_a_flag_set_back_in_the_store_is_found(cluster: Cluster) -> None:
    """NOTHING IS LOST: putting an older flag back is found, and stays found after a freeze on top of it."""
    _with_four_epochs(cluster)
    old = cluster.store.read(cluster.keys.flag)
    assert old is not None
    freeze_now(cluster, a_freeze("f4"))
    put(cluster, cluster.keys.flag, old.value or b"")
    assert [(fault.epoch, fault.kind) for fault in cluster.verify_history()] == [(4, "head")]
    freeze_now(cluster, a_freeze("f5"))
    assert cluster.verify_history() != []


def test_a_cause_taken_out_of_the_flag_by_hand_is_found(cluster: Cluster) -> None:
    """NOTHING IS LOST: a freeze removed with the store's own tools is found."""
    freeze_now(cluster)
    entry = cluster.store.read(cluster.keys.flag)
    assert entry is not None
    body = json.loads(entry.value or b"")
    for edit in ({"freezes": [], "mode": "ACTIVE"}, {"parent": "0" * 64}, {"head": "0" * 64}):
        put(cluster, cluster.keys.flag, json.dumps({**body, **edit}).encode())
        assert [(fault.epoch, fault.kind) for fault in cluster.verify_history()] == [(2, "head")]


@pytest.mark.parametrize("name", ["x", "", "00000000001", "0000000000001", "1", "\u0660" * 11 + "\u0661", "-1"])
def test_a_strange_key_in_the_history_is_told(cluster: Cluster, name: str) -> None:
    """NOTHING IS LOST: a second entry for an epoch, smuggled in under another spelling of its number, is refused."""
    entry = cluster.store.read(cluster.keys.history(1))
    assert entry is not None
    put(cluster, cluster.keys.under("history", name), entry.value or b"")
    with pytest.raises(UnreadableRecord, match="is not the key of a history entry"):
        cluster.verify_history()


def test_a_history_entry_that_cannot_be_read_is_told_by_its_key(cluster: Cluster) -> None:
    """NOTHING IS LOST: a cut entry is no missing entry; the error names the key."""
    put(cluster, cluster.keys.history(1), b'{"v":1')
    with pytest.raises(UnreadableRecord, match=r"key /killswitch/c/history/000000000001 cannot be read"):
        cluster.verify_history()


def test_a_change_made_while_verifying_is_no_fault(cluster: Cluster, store: FaultyStore) -> None:
    """NOTHING IS LOST: the flag is read before and after the entries, and all again when it changed."""
    other = Cluster(store, "c", wall_clock=lambda: AT)
    numbers = iter(range(3))
    real = store.scan

    def scan(prefix: str) -> list[Entry]:
        found = real(prefix)
        number = next(numbers, None)
        if number is not None:
            freeze_now(other, a_freeze(f"g{number}"))
        return found

    store.scan = scan  # type: ignore[method-assign]
    assert cluster.verify_history() == []
    store.scan = lambda prefix: (freeze_now(other, a_freeze(new_freeze_id())), real(prefix))[1]  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="the flag changed during each of 20 readings"):
        cluster.verify_history()


def test_keys_sort_in_the_order_of_time() -> None:
    """Keys of the history sort as their epochs do, and are where the design says."""
    keys = Keys("c")
    epochs = [1, 2, 9, 10, 99, 100, 10**11]
    assert sorted(keys.history(epoch) for epoch in epochs) == [keys.history(epoch) for epoch in epochs]
    assert keys.history(7) == "/killswitch/c/history/000000000007"
    assert (keys.flag, keys.leader, keys.under("acks", "n1")) == (
        "/killswitch/c/flag",
        "/killswitch/c/leader",
        "/killswitch/c/acks/n1",
    )


# -- membership ------------------------------------------------------------------------------------------------------


def test_membership_counts_every_node_ever_registered(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a lost node is still known, and what it held last is still counted."""
    for node in ("n1", "n2"):
        put(cluster, cluster.keys.under("nodes", node), a_node(node))
        put(cluster, cluster.keys.under("reports", node), a_report(node, BTC=100.0, pnl_usd=-5.0))
    put(cluster, cluster.keys.under("live", "n1"), b"unreadable")
    membership = cluster.membership()
    assert membership.lost() == ("n2",)
    assert sorted(membership.known(), key=lambda known: known.node) == [
        KnownNode("n1", 2_000, 2),
        KnownNode("n2", 2_000, 2),
    ]
    exposure = membership.exposure()
    assert (exposure.gross_usd, exposure.pnl_usd, exposure.counted_lost) == (200.0, -10.0, ("n2",))


def test_membership_with_unreadable_records_leaves_nobody_out(cluster: Cluster) -> None:
    """UNKNOWN IS FROZEN: a node whose record cannot be read is known with an unknown permit; its report is told."""
    put(cluster, cluster.keys.under("nodes", "n1"), b'{"v": 2}')
    put(cluster, cluster.keys.under("reports", "n1"), b"\xff")
    membership = cluster.membership()
    assert membership.known() == [KnownNode("n1", None, None)]
    assert membership.unreadable_reports() == ("n1",)
    assert membership.reports == {}


@pytest.mark.parametrize("family", ["nodes", "reports", "acks"])
def test_a_record_that_speaks_of_another_node_counts_for_neither(cluster: Cluster, family: str) -> None:
    """PROOF, NOT HOPE: what stands under n1's key and says n2 is unreadable, so that n1 cannot vanish behind n2."""
    made = {"nodes": a_node, "reports": a_report, "acks": an_ack}[family]
    put(cluster, cluster.keys.under(family, "n1"), made("n2"))
    membership = cluster.membership()
    assert membership.known() == ([KnownNode("n1", None, None)] if family == "nodes" else [])
    assert membership.unreadable_reports() == (("n1",) if family == "reports" else ())
    assert cluster.acks() == {}


def test_nobody_leads_an_empty_cluster(cluster: Cluster) -> None:
    """The leader is who holds the key; an unreadable one is told."""
    assert cluster.leader() is None
    put(cluster, cluster.keys.leader, b"{}")
    with pytest.raises(UnreadableRecord, match="key /killswitch/c/leader cannot be read"):
        cluster.leader()


# -- collecting the proof --------------------------------------------------------------------------------------------

F1 = frozenset({"f1"})


def certificate_of(collector: CertificateCollector, committed: Committed) -> Certificate:
    """The certificate as it is now."""
    certificate = collector.current(committed, F1)
    assert certificate is not None
    return certificate


def states(certificate: Certificate) -> dict[str, str]:
    """What is known of each node."""
    return {line.node: line.state.value for line in certificate.nodes}


def register(cluster: Cluster, *nodes: str, permit_ttl_ms: int = 2_000) -> None:
    """Put nodes into the cluster's books."""
    for node in nodes:
        put(cluster, cluster.keys.under("nodes", node), a_node(node, permit_ttl_ms))


def ack(cluster: Cluster, node: str = "n1", **named: Any) -> None:
    """Let a node say something."""
    put(cluster, cluster.keys.under("acks", node), an_ack(node, **named))


def test_acks_are_seen_through_the_watch(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: each ack arrives by itself and proves its node; the other one stays unproven."""
    register(cluster, "n1", "n2")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN", "n2": "UNPROVEN"}
        ack(cluster, "n1")
        wait_until(lambda: states(certificate_of(collector, committed))["n1"] == "ACKED", what="the ack of n1")
        assert states(certificate_of(collector, committed))["n2"] == "UNPROVEN"
        ack(cluster, "n2")
        certificate = wait_until(
            lambda: (now := certificate_of(collector, committed)).stopped and now, what="the ack of n2"
        )
        assert certificate.flat


def test_acks_from_before_the_collector_are_read(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: what was said before the watch began is read after its gap."""
    register(cluster, "n1")
    committed = freeze_now(cluster)
    ack(cluster)
    with CertificateCollector(cluster) as collector:
        wait_until(lambda: certificate_of(collector, committed).stopped, what="the ack from before")


def test_acks_missed_in_a_cut_are_read_when_it_heals(cluster: Cluster, store: FaultyStore) -> None:
    """PROOF, NOT HOPE: a watch that was cut off reads again what it missed."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        assert not certificate_of(collector, committed).stopped
        store.silence_watches()
        before = store.swallowed_events
        ack(cluster)
        wait_until(lambda: store.swallowed_events > before, what="the event to be swallowed")
        assert not certificate_of(collector, committed).stopped
        store.heal()
        wait_until(lambda: certificate_of(collector, committed).stopped, what="the ack to be read again")


def test_the_time_of_the_first_sight_is_kept(cluster: Cluster, clock: HandClock) -> None:
    """PROOF, NOT HOPE: the gate was closed when the node first said so; later acks only add to the cancelling."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        clock.time_ns += 30 * MS
        ack(cluster, complete=False, orders_open=2)
        wait_until(lambda: certificate_of(collector, committed).stopped, what="the first ack")
        clock.time_ns += 400 * MS
        ack(cluster)
        certificate = wait_until(lambda: (now := certificate_of(collector, committed)).flat and now, what="flat")
        assert certificate.stopped_after_ms == pytest.approx(30.0, abs=0.01)
        assert certificate.elapsed_ms == pytest.approx(430.0, abs=0.01)


def test_first_sights_are_limited(cluster: Cluster) -> None:
    """A limit on everything: a node that says ever new things does not fill the memory."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        for number in range(SIGHTS_MAX + 5):
            collector._take(Entry("/killswitch/c/acks/n1", an_ack(freezes=["f1", f"x{number}"]), number), number)
        assert len(collector._first_sight_ns["n1"]) == SIGHTS_MAX
        assert certificate_of(collector, committed).stopped


def test_an_ack_that_was_missed_while_the_store_did_not_answer_is_read_later(
    cluster: Cluster, store: FaultyStore
) -> None:
    """PROOF, NOT HOPE: an ack is written once, so one that came during a gap must be asked for until it is read."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        store.silence_watches()
        store.commit({}, {"/killswitch/c/acks/n1": an_ack()})
        scan = store.scan
        failed: list[str] = []

        def fail_once(prefix: str) -> list[Entry]:
            if prefix.endswith("acks/") and not failed:
                failed.append(prefix)
                raise StoreUnavailable("not now")
            return scan(prefix)

        store.scan = fail_once  # type: ignore[method-assign]
        collector._on_gap()
        assert failed
        assert certificate_of(collector, committed).stopped


def test_acks_are_read_with_the_nodes_when_the_watch_tells_nothing(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: a watch that looks for another server is late; a node that acked is not called silent for it."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN"}
        store.silence_watches()
        before = store.swallowed_events
        ack(cluster)
        wait_until(lambda: store.swallowed_events > before, what="the event to be swallowed")
        clock.time_ns += MEMBERSHIP_EVERY_MS * MS
        assert states(certificate_of(collector, committed)) == {"n1": "ACKED"}


def test_an_ack_that_was_read_earlier_does_not_hide_the_one_that_the_watch_told(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: while all acks are read the watch may tell a newer one; the older answer does not replace it."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        ack(cluster, complete=False, orders_open=2)
        wait_until(lambda: "n1" in collector._acks, what="the first ack")
        scan = store.scan

        def overtaken(prefix: str) -> list[Entry]:
            answer = scan(prefix)
            if prefix.endswith("acks/"):
                clock.time_ns += MS
                ack(cluster)
                wait_until(lambda: collector._acks["n1"][0].complete, what="the watch to tell the newer one")
            return answer

        store.scan = overtaken  # type: ignore[method-assign]
        assert certificate_of(collector, committed).flat


@pytest.mark.parametrize("value", [b"", b"\xff", b'{"v": 2}', an_ack("n2"), an_ack("n1", freezes=[]), an_ack(epoch=1)])
def test_an_ack_that_is_none_proves_nothing(cluster: Cluster, value: bytes) -> None:
    """PROOF, NOT HOPE: unreadable acks, another node's under this key, older ones and empty ones prove nothing."""
    register(cluster, "n1", "n2")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        put(cluster, cluster.keys.under("acks", "n1"), value)
        ack(cluster, "n3")  # the watch keeps the order: once this one is seen the other was, too
        wait_until(lambda: "n3" in collector._acks, what="the last ack")
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN", "n2": "UNPROVEN"}


def test_a_node_registered_late_is_in_the_certificate(cluster: Cluster, clock: HandClock) -> None:
    """PROOF, NOT HOPE: the list of nodes is read again while waiting, and a new one must prove itself as well."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        clock.time_ns += 1
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN"}
        register(cluster, "n2")
        clock.time_ns += MEMBERSHIP_EVERY_MS * MS
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN", "n2": "UNPROVEN"}


def test_a_list_of_nodes_from_before_the_commit_is_not_used(cluster: Cluster, clock: HandClock) -> None:
    """PROOF, NOT HOPE: a node registered just before the commit may hold a permit, so the list is read after it."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        earlier = freeze_now(cluster)
        clock.time_ns += 1
        assert states(certificate_of(collector, earlier)) == {"n1": "UNPROVEN"}
        register(cluster, "n2")
        clock.time_ns += 1
        committed = freeze_now(cluster, a_freeze("f2"))
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN", "n2": "UNPROVEN"}


def test_an_older_list_of_nodes_is_no_certificate_either(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: with the store cut right after the commit, a list from before it certifies nothing."""
    with CertificateCollector(cluster) as collector:
        assert certificate_of(collector, freeze_now(cluster)).stopped
        register(cluster, "n1")
        clock.time_ns += 1
        committed = freeze_now(cluster, a_freeze("f2"))
        store.cut()
        assert collector.current(committed, F1) is None
        store.heal()
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN"}


def test_a_store_cut_in_the_middle_keeps_the_list_of_nodes(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: nodes do not vanish from a certificate because the store does not answer."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        clock.time_ns += 1
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN"}
        store.cut()
        failed = store.failed_calls
        clock.time_ns += 2_099 * MS
        assert states(certificate_of(collector, committed)) == {"n1": "UNPROVEN"}
        assert store.failed_calls > failed
        clock.time_ns += MS
        assert states(certificate_of(collector, committed)) == {"n1": "PERMIT_EXPIRED"}


def test_without_a_list_of_nodes_there_is_no_certificate(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: not knowing who is there is not the same as nobody being there."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        store.cut()
        assert collector.current(committed, F1) is None
        clock.time_ns += 10_000 * MS
        with pytest.raises(NodesUnreadable, match=r"the freeze is in force, but the nodes .* could not be read from"):
            collector.wait(committed, F1, timeout_ms=TIMEOUT_MS)


def test_a_store_that_is_gone_is_told_of_once_and_not_at_every_look(
    cluster: Cluster, store: FaultyStore, clock: HandClock
) -> None:
    """PROOF, NOT HOPE: whoever waits for the proof can read what is missing; a second outage is told of again."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector, capture_logs() as logged:
        committed = freeze_now(cluster)
        for outage in (1, 2):
            store.cut()
            failed = store.failed_calls
            for _ in range(20):
                clock.time_ns += MEMBERSHIP_EVERY_MS * MS
                collector.current(committed, F1)
            assert store.failed_calls >= failed + 20
            assert [line["event"] for line in logged].count("certificate_nodes_unreadable") == outage
            store.heal()
            clock.time_ns += MEMBERSHIP_EVERY_MS * MS
            assert collector.current(committed, F1) is not None


def test_a_silent_node_is_proven_stopped_when_its_permit_has_run_out(cluster: Cluster, clock: HandClock) -> None:
    """BOUNDED STOP: 2000 ms * 1.05 after the commit returned, and not a moment before, the silent node has stopped."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        clock.time_ns += 7
        committed = freeze_now(cluster)
        clock.time_ns = committed.returned_ns + 2_100 * MS - 1
        assert not certificate_of(collector, committed).stopped
        clock.time_ns += 1
        certificate = certificate_of(collector, committed)
        assert certificate.stopped
        assert not certificate.flat
        assert is_settled(certificate)
        assert certificate.nodes[0].gated_ms == 2_100.0


def test_waiting_ends_when_the_certificate_is_settled(store: FaultyStore) -> None:
    """PROOF, NOT HOPE: waiting returns as soon as every node is flat or stopped by its permit, on the real clock."""
    cluster = Cluster(store, "c")
    cluster.initialise(actor="a", reason="r")
    register(cluster, "n1", "n2", permit_ttl_ms=1_000)
    seen: list[Certificate] = []
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        ack(cluster, "n1", epoch=committed.flag.epoch)
        certificate = collector.wait(committed, F1, timeout_ms=30_000, on_progress=seen.append)
    assert states(certificate) == {"n1": "ACKED", "n2": "PERMIT_EXPIRED"}
    assert 1_050.0 <= certificate.elapsed_ms < 30_000
    assert (now_ns() - committed.returned_ns) / MS >= 1_050.0
    assert seen[-1] == certificate
    assert not seen[0].stopped


def test_waiting_ends_when_the_time_is_up(store: FaultyStore) -> None:
    """PROOF, NOT HOPE: when the time is up the last certificate is returned as it is, unproven."""
    cluster = Cluster(store, "c")
    cluster.initialise(actor="a", reason="r")
    register(cluster, "n1", permit_ttl_ms=600_000)
    with CertificateCollector(cluster) as collector:
        certificate = collector.wait(freeze_now(cluster), F1, timeout_ms=60)
    assert states(certificate) == {"n1": "UNPROVEN"}
    assert certificate.elapsed_ms >= 60.0


def test_a_certificate_is_settled_only_when_waiting_cannot_prove_more(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a node that acked and still cancels is waited for."""
    register(cluster, "n1")
    with CertificateCollector(cluster) as collector:
        committed = freeze_now(cluster)
        ack(cluster, complete=False)
        certificate = wait_until(lambda: (now := certificate_of(collector, committed)).stopped and now, what="the ack")
        assert not is_settled(certificate)
        line = dataclasses.replace(certificate.nodes[0], state=Proof.PERMIT_EXPIRED)
        assert is_settled(dataclasses.replace(certificate, nodes=(line,)))


def test_one_voice_freezes_a_flag_that_was_set_back_by_hand(request: pytest.FixtureRequest) -> None:
    """ONE VOICE FREEZES: a flag behind its own history is frozen all the same, and the history says what happened."""
    with MemoryStore(request.node.nodeid) as store:
        cluster = Cluster(store, "c")
        cluster.initialise(actor="operator:test", reason="test")
        old = store.read(cluster.keys.flag)
        assert old is not None
        assert old.value is not None
        for number in range(3):
            cluster.freeze(a_freeze(f"f{number}"), timeout_ms=1_000)
        store.commit({}, {cluster.keys.flag: old.value})
        committed = cluster.freeze(a_freeze("now"), timeout_ms=2_000)
        assert committed.flag.epoch == 5
        assert cluster.read_flag().flag.freeze_ids() == {"now"}
        assert cluster.verify_history() != []


def test_a_certificate_of_a_freeze_that_was_released_says_so(request: pytest.FixtureRequest) -> None:
    """PROOF, NOT HOPE: once the flag shows the release, a silent node is unproven, however long one waits."""
    timing = Timing(
        request_timeout_ms=10, renew_every_ms=20, permit_ttl_ms=60, lease_ttl_ms=500, leader_deadline_ms=100,
        backoff_cap_ms=20,
    )  # fmt: skip
    with MemoryStore(request.node.nodeid) as store:
        cluster = Cluster(store, "c", timing=timing)
        cluster.initialise(actor="operator:test", reason="test")
        record = NodeRecord(
            node="n1", permit_ttl_ms=60, build="b", limits_hash="h", address="a", registered_at="t"
        )  # fmt: skip
        store.commit({}, {cluster.keys.under("nodes", "n1"): record.to_bytes()})
        with CertificateCollector(cluster) as collector:
            committed = cluster.freeze(a_freeze("f1"), timeout_ms=1_000)
            cluster.release(epoch=2, ids=["f1"], actor="operator:test", reason="test")
            certificate = collector.wait(committed, frozenset({"f1"}), timeout_ms=300)
        assert not certificate.stopped
        assert "lifted" in certificate.nodes[0].note
