"""etcd with three members, and what happens when some of them fail, or their database."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pyetcd import etcdrpc
from structlog.testing import capture_logs

from killswitch.stores import Entry, OutcomeUnknown, Store, StoreError, StoreUnavailable
from killswitch.stores.etcd.store import EtcdStore
from tests.conformance.rigs.base import BACKOFF_CAP_MS, wait_until_serving
from tests.conformance.rigs.etcd import open_impatient_etcd
from tests.conformance.rigs.etcd_cluster import (
    ELECTION_TIMEOUT_MS,
    MEMBERS,
    EtcdCluster,
    EtcdMember,
    open_plain_channel,
)
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.warm import commit_in_the_end, hold_in_the_end, wait_until_reading
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 20_000
# What a busy machine may add to a time-out.
LATE_S = 1.0


@pytest.fixture(scope="module")
def image() -> str:
    """The image of etcd."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        return choose_image(client, "etcd")
    finally:
        client.close()


@pytest.fixture(scope="module")
def rig(image: str) -> Iterator[EtcdCluster]:
    """The three members, in place of the one server of the shared suite."""
    made = EtcdCluster(image)
    yield made
    made.close()


@pytest.fixture
def cluster(rig: EtcdCluster, nothing_left_behind: None) -> Iterator[EtcdCluster]:
    """The three members, whole before the test and after it."""
    yield rig
    rig.heal()


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"


def test_the_settings_tell_members_and_leader(cluster: EtcdCluster) -> None:
    """Whichever member is asked: three members, the same leader and term, no alarm, no passwords, and a size."""
    leader = cluster.leader()
    told = []
    for server in cluster.servers:
        with cluster.open(server) as store:
            told.append(store.server_settings())
    assert {settings["leader"] for settings in told} == {told[leader]["member"]}
    assert len({settings["member"] for settings in told}) == MEMBERS
    assert len({settings["raft_term"] for settings in told}) == 1
    for settings in told:
        assert settings["member_count"] == str(MEMBERS)
        assert all(member.name in settings["members"] for member in cluster.members)
        assert settings["alarms"] == "none"
        assert settings["login_required"] == "no"
        assert int(settings["database_bytes"]) > 0


def test_the_settings_of_a_member_without_a_leader_tell_what_it_knows(cluster: EtcdCluster) -> None:
    """What needs no quorum is told, and the rest is said to be unknown, and why."""
    number = cluster.follower()
    cluster.cut_off(number)
    with cluster.open(cluster.servers[number], request_timeout_ms=500) as store:
        told = store.server_settings()
    assert told["leader"] == "none"
    assert told["member_count"] == str(MEMBERS)
    assert told["alarms"].startswith("unknown: etcd at 127.0.0.1")
    assert told["login_required"].startswith("unknown: ")


def test_a_leader_that_was_cut_off_never_answers_with_the_past(cluster: EtcdCluster, at: str) -> None:
    """Once the others have written on, it answers no read, no write and no keep-alive."""
    old = cluster.leader()
    others = cluster.servers_from(old)[1:]
    stop, answers, refused = threading.Event(), list[Entry | None](), list[StoreError]()
    with cluster.open(cluster.servers[old], request_timeout_ms=300) as cut, cluster.open(*others) as whole:
        commit_in_the_end(whole, f"{at}k", b"old")
        lease = hold_in_the_end(cut, f"{at}lease", LEASE_TTL_MS)
        wait_until_reading(cut, f"{at}k")
        newer = threading.Event()

        def read_on() -> None:
            while not stop.is_set():
                after_the_newer = newer.is_set()
                try:
                    entry = cut.read(f"{at}k")
                except StoreUnavailable as error:
                    refused.append(error)
                    continue
                if after_the_newer:
                    answers.append(entry)

        reader = threading.Thread(target=read_on)
        reader.start()
        try:
            cluster.cut_off(old)
            commit_in_the_end(whole, f"{at}k", b"new")
            newer.set()
            seen = len(refused)
            wait_until(lambda: len(refused) > seen + 20, within_s=30.0, what="twenty refused reads")
        finally:
            stop.set()
            reader.join()
        assert cluster.leader() != old
        assert answers == []
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            cut.commit({}, {f"{at}k": b"late"})
        with pytest.raises(StoreUnavailable):
            lease.keep_alive()
        entry = whole.read(f"{at}k")
        assert entry is not None
        assert entry.value == b"new"


def test_a_leader_that_was_paused_while_others_wrote_wakes_up_without_the_past(cluster: EtcdCluster, at: str) -> None:
    """Reads that were waiting for it when it goes on get the newest value, or none at all."""
    old = cluster.leader()
    others = cluster.servers_from(old)[1:]
    with cluster.open(cluster.servers[old], request_timeout_ms=10_000) as asleep, cluster.open(*others) as awake:
        asleep.commit({}, {f"{at}k": b"old"})
        cluster.members[old].pause()
        newest = commit_in_the_end(awake, f"{at}k", b"new")
        assert cluster.leader() != old
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(asleep.read, f"{at}k") for _ in range(8)]
            assert not any(read.done() for read in waiting)
            cluster.members[old].resume()
            outcomes = [read.exception() or read.result() for read in waiting]
        for outcome in outcomes:
            assert isinstance(outcome, StoreUnavailable) or outcome == Entry(f"{at}k", b"new", newest)


def test_a_watch_through_a_member_without_a_leader_moves(cluster: EtcdCluster, at: str, observer: Observer) -> None:
    """The member still answers for itself, so silence would not show it. It must end the stream, and the watch move."""
    number = cluster.follower()
    first, *others = cluster.servers_from(number)
    with cluster.open(first, *others) as watching, cluster.open(*others) as writer:
        watching.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        observer.hears(writer, f"{at}k", b"before")
        gaps = observer.gaps
        cluster.cut_off(number)
        cut_s = time.monotonic()
        commit_in_the_end(writer, f"{at}k", b"behind the cut")
        # etcd looks three times an election time-out apart, then ends the stream; 300 ms is the longest pause.
        observer.wait_for_gap(after=gaps, within_s=5 * ELECTION_TIMEOUT_MS / 1_000 + LATE_S)
        assert time.monotonic() - cut_s < 5 * ELECTION_TIMEOUT_MS / 1_000 + LATE_S
        entry = watching.read(f"{at}k")
        assert entry is not None
        assert entry.value == b"behind the cut"
        observer.hears(writer, f"{at}k", b"after")
        assert cluster.status(number).leader == 0


CALLS: dict[str, Callable[[EtcdStore, str], object]] = {
    "read": lambda store, at: store.read(f"{at}k"),
    "scan": lambda store, at: store.scan(at),
    "commit": lambda store, at: store.commit({}, {f"{at}new": b"v"}),
    "hold": lambda store, at: store.hold(f"{at}held", b"v", LEASE_TTL_MS),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_moves_on_from_a_paused_member_within_its_time(cluster: EtcdCluster, at: str, call: str) -> None:
    """A client that has not talked to it before gets its answer from the next member; writes, too, were never sent."""
    paused, budget_ms = cluster.follower(), 2_000
    cluster.members[paused].pause()
    with cluster.open(*cluster.servers_from(paused), request_timeout_ms=budget_ms) as store:
        started_s = time.monotonic()
        CALLS[call](store, at)
        took_s = time.monotonic() - started_s
    # The paused one was tried: so long does an attempt to connect last.
    assert BACKOFF_CAP_MS / 1_000 * 0.9 < took_s < budget_ms / 1_000 + LATE_S


@pytest.mark.parametrize("call", ["read", "scan"])
def test_a_read_moves_on_from_a_member_that_pauses_under_it(cluster: EtcdCluster, at: str, call: str) -> None:
    """The connection is up and silent: half of the time is for it, the rest for the others."""
    paused, budget_ms = cluster.follower(), 2_000
    with cluster.open(*cluster.servers_from(paused), request_timeout_ms=budget_ms) as store:
        store.commit({}, {f"{at}k": b"v"})
        cluster.members[paused].pause()
        started_s = time.monotonic()
        assert CALLS[call](store, at)
        took_s = time.monotonic() - started_s
    assert budget_ms / 1_000 / 2 * 0.9 < took_s < budget_ms / 1_000 + LATE_S


def test_what_was_sent_to_a_member_that_then_pauses_ends_in_time(cluster: EtcdCluster, at: str) -> None:
    """A lease outlives its member; a commit over a proven link is unknown; the next one goes to the next member."""
    paused, budget_ms = cluster.follower(), 1_500
    with cluster.open(*cluster.servers_from(paused), request_timeout_ms=budget_ms) as store:
        lease = store.hold(f"{at}lease", b"v", LEASE_TTL_MS)
        cluster.members[paused].pause()
        started_s = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            store.commit({}, {f"{at}k": b"v"})
        assert time.monotonic() - started_s < budget_ms / 1_000 + LATE_S
        assert store.commit({}, {f"{at}next": b"v"}) > lease.version
        lease.keep_alive()
        lease.release()
        assert store.read(f"{at}lease") is None


def test_a_killed_leader_loses_nothing_that_was_acknowledged_and_keeps_nothing_that_was_denied(
    cluster: EtcdCluster, at: str, observer: Observer
) -> None:
    """Writers see the switch as a few errors. OK is there, StoreUnavailable is not, whatever OutcomeUnknown is."""
    written: dict[str, list[str]] = {"ok": [], "denied": [], "unknown": []}
    leader = cluster.leader()
    with cluster.open(*cluster.servers_from(leader), request_timeout_ms=500) as store, ThreadPoolExecutor(1) as killer:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        lease = hold_in_the_end(store, f"{at}lease", LEASE_TTL_MS)
        for number in range(20):
            write(store, f"{at}before/{number:05}", written)
        # From aside, because Docker takes its time, and by then the others may have a leader again.
        kill = killer.submit(cluster.members[leader].kill)
        numbers = itertools.count()
        wait_until(
            lambda: write(store, f"{at}during/{next(numbers):05}", written) and kill.done(),
            within_s=60.0,
            what="a commit after the kill",
        )
        kill.result()
        for number in range(20):
            write(store, f"{at}after/{number:05}", written)
        assert cluster.leader() != leader
        assert written["denied"] + written["unknown"], "the kill was not noticed by anybody"
        there = {entry.key for entry in store.scan(at)}
        assert set(written["ok"]) <= there
        assert not there & set(written["denied"])
        lease.keep_alive()
        observer.hears(store, f"{at}last", b"v")


def write(store: Store, key: str, written: dict[str, list[str]]) -> bool:
    """Create a key and note what came of it; returns whether it worked."""
    try:
        store.commit({key: None}, {key: b"v"})
    except StoreUnavailable:
        written["denied"].append(key)
    except OutcomeUnknown:
        written["unknown"].append(key)
    else:
        written["ok"].append(key)
    return key in written["ok"]


def test_without_a_quorum_nothing_succeeds(cluster: EtcdCluster, at: str) -> None:
    """Two of three are dead: every call fails in time, and what was denied is not there when they are back."""
    survivor = cluster.leader()
    with cluster.open(*cluster.servers_from(survivor), request_timeout_ms=500) as store:
        lease = hold_in_the_end(store, f"{at}lease", LEASE_TTL_MS)
        commit_in_the_end(store, f"{at}k", b"before")
        for number in range(MEMBERS):
            if number != survivor:
                cluster.members[number].kill()
        denied = []
        for number in range(20):
            key = f"{at}{number}"
            started_s = time.monotonic()
            try:
                store.commit({key: None}, {key: b"v"})
                raise AssertionError("a commit succeeded without a quorum")
            except StoreUnavailable:
                denied.append(key)
            except OutcomeUnknown:
                pass
            with pytest.raises(StoreUnavailable):
                store.read(f"{at}k")
            assert time.monotonic() - started_s < 2 * (0.5 + LATE_S)
        with pytest.raises(StoreUnavailable):
            store.scan(at)
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            store.hold(f"{at}held", b"v", LEASE_TTL_MS)
        with pytest.raises(StoreUnavailable):
            lease.keep_alive()
        assert denied, "nothing was denied for certain, although the survivor knows that it is alone"
        cluster.heal()
        there = {entry.key for entry in store.scan(at)}
        assert f"{at}k" in there
        assert not there & set(denied)


def test_a_watcher_left_behind_by_a_compaction_is_told_of_the_gap_and_gets_the_newest(
    cluster: EtcdCluster, at: str, observer: Observer
) -> None:
    """Its callback holds up the stream until the server's buffers are full, and what it has yet to get is compacted."""
    held_up, go_on = threading.Event(), threading.Event()

    def slow(entry: Entry) -> None:
        observer.on_change(entry)
        held_up.set()
        go_on.wait(120.0)

    big = b"x" * 100_000
    with capture_logs() as log, cluster.open(cluster.servers[0]) as watching, cluster.open() as writer:
        watching.watch(at, slow, observer.on_gap)
        observer.wait_for_gap()
        try:
            writer.commit({}, {f"{at}k": b"first"})
            assert held_up.wait(20.0)
            for _ in range(600):
                version = commit_in_the_end(writer, f"{at}k", big)
            with open_plain_channel(cluster.servers[0]) as channel:
                etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=version, physical=True), timeout=30)
        finally:
            go_on.set()
        observer.wait_for_gap(after=1, within_s=30.0)
        interrupted = [line["why"] for line in log if line["event"] == "watch interrupted"]
        assert any("has compacted what this watch had still to send" in why for why in interrupted)
        entry = watching.read(f"{at}k")
        assert entry is not None
        assert entry.version == version
        observer.hears(writer, f"{at}k", b"newest")
        seen = [entry.version for entry in observer.changes]
        assert seen == sorted(set(seen))
        assert len(seen) < 602


@pytest.fixture
def small(image: str, nothing_left_behind: None) -> Iterator[EtcdMember]:
    """A server whose database may not grow beyond 2 MiB."""
    made = EtcdMember(image, f"--quota-backend-bytes={2 * 1024 * 1024}")
    try:
        wait_until_serving(lambda: open_impatient_etcd(made.server, request_timeout_ms=1_000), made.server)
        yield made
    finally:
        made.close()


def make_room(server: str) -> None:
    """Do what the error says: delete, compact, defragment, disarm."""
    with open_plain_channel(server) as channel:
        deleted = etcdrpc.KVStub(channel).DeleteRange(etcdrpc.DeleteRangeRequest(key=b"filling"), timeout=5)
        revision = deleted.header.revision
        etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=revision, physical=True), timeout=30)
        maintenance = etcdrpc.MaintenanceStub(channel)
        maintenance.Defragment(etcdrpc.DefragmentRequest(), timeout=30)
        for alarm in maintenance.Alarm(etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET), timeout=5).alarms:
            disarm: Any = etcdrpc.AlarmRequest(
                action=etcdrpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
            )
            maintenance.Alarm(disarm, timeout=5)


def fill(store: Store) -> None:
    """Write more than there is room for."""
    for _ in range(200):
        store.commit({}, {"filling": b"x" * 100_000})


def test_a_full_database_refuses_writes_with_what_to_do_and_serves_everything_else(
    small: EtcdMember, observer: Observer
) -> None:
    """Not forbidden, because it passes; not done where a read shows so, else unknown. Doing what it says helps."""
    with open_impatient_etcd(small.server, request_timeout_ms=5_000, alive_every_ms=500) as store:
        flag = store.commit({}, {"flag": b"v"})
        lease = store.hold("live", b"v", LEASE_TTL_MS)
        store.watch("flag", observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        with pytest.raises(OutcomeUnknown, match="out of space"):
            fill(store)
        assert store.server_settings()["alarms"].startswith("NOSPACE at ")
        with pytest.raises(StoreUnavailable, match=r"takes no writes.*compact it.*alarm disarm.*it was not done"):
            store.commit({"flag": flag}, {"flag": b"frozen"})
        with pytest.raises(OutcomeUnknown, match=r"out of space.*only a read can tell"):
            store.commit({}, {"other": b"v"})
        with pytest.raises(StoreUnavailable, match="out of space"):
            store.hold("held", b"v", LEASE_TTL_MS)
        assert store.read("flag") == Entry("flag", b"v", flag)
        assert store.read("other") is None
        assert store.read("held") is None
        lease.keep_alive()
        make_room(small.server)
        assert store.commit({"flag": flag}, {"flag": b"frozen"}) > flag
        # The server answered nobody while it made room, and the watch may just be changing over for it.
        observer.hears(store, "flag", b"frozen again")
        assert store.server_settings()["alarms"] == "none"
