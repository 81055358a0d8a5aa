"""What only Redis does to a store: it forgets everything, evicts, is shared with others, and becomes a replica.

Sentinel is in ``test_redis_sentinel.py``, users and certificates are in ``test_redis_access.py``; what every store has
to do is in the other files of this folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from structlog.testing import capture_logs

from killswitch.stores import Conflict, Entry, LeaseLost, OutcomeUnknown, Store, StoreForbidden, StoreUnavailable
from killswitch.stores.redis.scripts import TOMBSTONES_MAX
from killswitch.stores.redis.store import RedisStore
from tests.conformance.forwarder import Forwarder
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.redis import RedisContainerRig, image_of_redis, open_impatient_redis
from tests.conformance.rigs.warm import reads
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 1_000
# For the test to be scheduled on a busy machine; no part of what the store promises.
NOTICE_S = 1.0
OTHER_KEYS = 100_000


@pytest.fixture(scope="module")
def rig() -> Iterator[RedisContainerRig]:
    """A server of this file's own, because what is done to it here others would notice."""
    made = RedisContainerRig(image_of_redis())
    yield made
    made.close()


@pytest.fixture
def admin(rig: RedisContainerRig) -> Iterator[redis.Redis]:
    """Somebody else's client of the same server."""
    host, _, port = rig.server.partition(":")
    with redis.Redis(host=host, port=int(port)) as client:
        yield client


def test_after_a_flushall_everything_is_absent_versions_grow_on_and_watches_say_gap(
    store: Store, other: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """UNKNOWN IS FROZEN: a store that lost its data is noticed, although new data came before anybody looked."""
    lease = store.hold(f"{at}held", b"v", 60_000)
    before = store.commit({}, {f"{at}flag": b"active"})
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    for again in ("first", "second"):
        gaps_before = observer.gaps
        admin.flushall()
        assert store.read(f"{at}flag") is None
        assert store.scan(at) == []
        with pytest.raises(LeaseLost):
            lease.keep_alive()
        with pytest.raises(Conflict):
            store.commit({f"{at}flag": before}, {f"{at}flag": b"stale"})
        after = store.commit({f"{at}flag": None}, {f"{at}flag": again.encode()})
        assert after > before
        observer.wait_for_gap(after=gaps_before)
        before = after
    gaps_before = observer.gaps
    admin.flushall()
    # Without any message the watch finds out by itself.
    observer.wait_for_gap(after=gaps_before)


def test_a_watch_that_saw_an_empty_store_says_gap_when_what_came_then_is_lost_too(
    rig: RedisContainerRig, store: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """UNKNOWN IS FROZEN: somebody may have read what was there between two looks of the watch."""
    with rig.open_with(path="/0") as speechless:
        speechless._calls.channel = "killswitch:lost"
        speechless.commit({}, {f"{at}flag": b"frozen"})
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        gaps_before = observer.gaps
        admin.flushall()
        observer.wait_for_gap(after=gaps_before)
        gaps_before = observer.gaps
        # No message tells of the two, so that they fall between two looks.
        speechless.commit({}, {f"{at}flag": b"active"})
        admin.flushall()
        observer.wait_for_gap(after=gaps_before)
        # The first change in an empty store is no loss.
        speechless.commit({}, {f"{at}flag": b"said again"})
        observer.wait_for(f"{at}flag", b"said again")


def test_a_clock_that_goes_back_takes_no_version_back(store: Store, admin: redis.Redis, at: str) -> None:
    """Versions are the time only while that is later than the last one; then they count."""
    ahead = store.commit({}, {f"{at}k": b"1"}) + 3_600_000_000
    admin.hset("killswitch:meta", "version", str(ahead))
    assert [store.commit({}, {f"{at}k": b"v"}) for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]
    admin.flushall()


def test_the_loss_of_a_single_key_is_an_error_and_not_an_absence(store: Store, admin: redis.Redis, at: str) -> None:
    """UNKNOWN IS FROZEN: what was evicted, or deleted by hand, is neither read as absent nor left out of a scan."""
    store.commit({}, {f"{at}flag": b"frozen", f"{at}nodes/1": b"v"})
    admin.delete(f"killswitch:key:{at}flag")
    calls: list[Callable[[], object]] = [
        lambda: store.read(f"{at}flag"),
        lambda: store.scan(at),
        lambda: store.commit({f"{at}flag": None}, {f"{at}flag": b"a new cluster"}),
        lambda: store.hold(f"{at}flag", b"v", 1_000),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"flag' has been removed.*maxmemory-policy"):
            call()
    store.commit({}, {f"{at}flag": b"said again"})
    assert [entry.value for entry in store.scan(at)] == [b"said again", b"v"]


def test_the_loss_of_the_index_is_an_error_and_not_an_empty_scan(store: Store, admin: redis.Redis, at: str) -> None:
    """A certificate over no nodes would prove that all have stopped."""
    store.commit({}, {f"{at}nodes/1": b"v"})
    admin.delete("killswitch:index")
    with pytest.raises(StoreUnavailable, match=r"killswitch:index' has been removed"):
        store.scan(at)
    store.commit({}, {f"{at}nodes/2": b"v"})
    with pytest.raises(StoreUnavailable, match=r"killswitch:index' has been removed"):
        store.scan(at)
    admin.flushall()
    assert store.scan(at) == []


def test_what_others_keep_under_our_names_is_refused_before_anything_is_written(
    store: Store, admin: redis.Redis, at: str
) -> None:
    """Redis undoes nothing, so a key of a wrong type must be found before the first write."""
    admin.set(f"killswitch:key:{at}taken", "a string")
    with pytest.raises(StoreForbidden, match="something else is kept"):
        store.commit({}, {f"{at}a": b"v", f"{at}taken": b"v"})
    with pytest.raises(StoreForbidden, match="something else is kept"):
        store.commit({}, {f"{at}a": b"v"}, [f"{at}taken"])
    admin.delete(f"killswitch:key:{at}taken")
    assert store.scan(at) == []


@pytest.mark.parametrize("table", ["index", "changes", "deleted", "leased"])
def test_a_table_that_is_not_ours_stops_every_write_before_it_begins(
    store: Store, admin: redis.Redis, at: str, table: str
) -> None:
    """Nothing is written when the bookkeeping could not be."""
    lease = store.hold(f"{at}held", b"v", 60_000)
    version = store.commit({}, {f"{at}k": b"v"})
    admin.delete(f"killswitch:{table}")
    admin.set(f"killswitch:{table}", "a string")
    calls: list[Callable[[], object]] = [
        lambda: store.commit({}, {f"{at}k": b"w"}),
        lambda: store.commit({}, {}, [f"{at}k"]),
        lambda: store.hold(f"{at}other", b"v", 1_000),
        lease.release,
    ]
    for call in calls:
        with pytest.raises(StoreForbidden, match="something else is kept"):
            call()
    assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
    assert admin.hget(f"killswitch:key:{at}held", "value") == b"v"
    admin.flushall()


def test_databases_of_one_server_are_stores_of_their_own(rig: RedisContainerRig, at: str, observer: Observer) -> None:
    """Neither keys nor messages cross over, and a watch is not woken, or told, by the other."""
    with rig.open_with() as zero, rig.open_with(path="/7") as seven:
        seven.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        zero.commit({}, {f"{at}k": b"zero"})
        assert seven.read(f"{at}k") is None
        seven.commit({}, {f"{at}k": b"seven"})
        observer.wait_for(f"{at}k", b"seven")
        assert [entry.value for entry in observer.changes] == [b"seven"]
        assert seven.address == f"redis://{rig.server}/7"


def test_a_database_that_is_not_there_is_refused(rig: RedisContainerRig, at: str) -> None:
    """Nobody is left waiting for a database that Redis was not configured for."""
    with rig.open_with(path="/999") as store, pytest.raises(StoreForbidden, match="out of range"):
        store.read(f"{at}k")


def test_a_hundred_thousand_keys_that_run_out_delay_no_lease(
    store: Store, other: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """Redis's own events of expiry came later than 20 s here; leases are found by looking at them alone."""
    admin.eval(f"for i = 1, {OTHER_KEYS} do redis.call('SET', 'other:' .. i, 'v', 'EX', 3600) end", 0)
    assert admin.dbsize() >= OTHER_KEYS
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    for number in range(3):
        started_s = time.monotonic()
        lease = store.hold(f"{at}{number}", b"v", LEASE_TTL_MS)
        bound_s = (LEASE_TTL_MS + store.guarantees.lease_slack_ms) / 1_000
        gone = observer.wait_for(f"{at}{number}", None, within_s=bound_s + NOTICE_S)
        assert time.monotonic() - started_s >= LEASE_TTL_MS / 1_000
        assert gone.version > lease.version
    assert admin.dbsize() >= OTHER_KEYS
    admin.flushall()


def test_a_lease_that_runs_out_is_read_as_absent_at_once(store: Store, at: str) -> None:
    """No watch has looked, and no read, scan, commit or hold is told of a holder that is gone."""
    lease = store.hold(f"{at}k", b"v", 300)
    wait_until(lambda: store.read(f"{at}k") is None, what="the lease having run out")
    assert store.scan(at) == []
    with pytest.raises(Conflict):
        store.commit({f"{at}k": lease.version}, {f"{at}deed": b"of one deposed"})
    with pytest.raises(LeaseLost):
        lease.keep_alive()
    store.hold(f"{at}k", b"next", 60_000)
    lease.release()
    entry = store.read(f"{at}k")
    assert entry is not None
    assert entry.value == b"next"


def test_a_key_put_over_a_lease_outlives_its_time(store: Store, other: Store, at: str, observer: Observer) -> None:
    """Redis goes on counting a time to live when a key is written again, unless it is told to stop."""
    other.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    lease = store.hold(f"{at}k", b"leased", 3_000)
    control = store.hold(f"{at}control", b"leased", 3_000)
    version = store.commit({f"{at}k": lease.version}, {f"{at}k": b"lasting"})
    observer.wait_for(control.key, None)
    assert store.read(f"{at}k") == Entry(f"{at}k", b"lasting", version)
    assert observer.newest(f"{at}k") == Entry(f"{at}k", b"lasting", version)


def test_a_change_without_a_message_is_found_by_looking(
    rig: RedisContainerRig, store: Store, at: str, observer: Observer
) -> None:
    """Redis may drop a message. Here one goes to a channel that nobody listens to."""
    with rig.open_with(path="/0") as speechless:
        speechless._calls.channel = "killswitch:lost"
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        for number in range(3):
            speechless.commit({}, {f"{at}k": b"%d" % number})
            observer.wait_for(f"{at}k", b"%d" % number)
        # The next message is about another prefix, but does not join on to what the watch knows.
        for number in range(3):
            speechless.commit({}, {f"{at}unsaid": b"%d" % number})
            store.commit({}, {f"/elsewhere{at}": b"v"})
            observer.wait_for(f"{at}unsaid", b"%d" % number)
        assert observer.gaps == 1
    versions = [entry.version for entry in observer.changes]
    assert versions == sorted(versions)


def test_a_watch_whose_subscription_is_killed_subscribes_again(
    store: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """A server that drops a client which listens too slowly costs a gap."""
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    assert admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
    observer.wait_for_gap(after=1)
    store.commit({}, {f"{at}k": b"v"})
    observer.wait_for(f"{at}k", b"v")


def test_more_changes_than_one_answer_holds_all_arrive_in_order(
    store: Store, other: Store, at: str, observer: Observer
) -> None:
    """A burst that a watch slept through comes in pages, and what was written together is not torn apart."""
    admitted = threading.Event()

    def slow(entry: Entry) -> None:
        admitted.wait(30.0)
        observer.on_change(entry)

    other.watch(at, slow, observer.on_gap)
    observer.wait_for_gap()
    for number in range(450):
        store.commit({}, {f"{at}{number:03}": b"v"})
    together = store.commit({}, {f"{at}together{number:03}": b"v" for number in range(250)})
    admitted.set()
    observer.wait_for(f"{at}together249", b"v")
    assert len(observer.changes) == 700
    assert {entry.key for entry in observer.changes} == {entry.key for entry in store.scan(at)}
    versions = [entry.version for entry in observer.changes]
    assert versions == sorted(versions)
    assert versions[-250:] == [together] * 250


def test_a_watch_that_is_behind_what_was_forgotten_says_gap(
    store: Store, other: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """Deletions are remembered up to a bound; whoever slept through more is told to read again."""
    asleep, awake = threading.Event(), threading.Event()

    def doze(entry: Entry) -> None:
        observer.on_change(entry)
        if entry.key == f"{at}doze":
            asleep.set()
            awake.wait(60.0)

    other.watch(at, doze, observer.on_gap)
    observer.wait_for_gap()
    store.commit({}, {f"{at}doze": b"v"})
    assert asleep.wait(30.0)
    keys = [f"{at}{number}" for number in range(TOMBSTONES_MAX + 1)]
    store.commit({}, dict.fromkeys(keys, b"v"))
    store.commit({}, {}, keys[:1])
    for first in range(1, len(keys), 1_000):
        store.commit({}, {}, keys[first : first + 1_000])
    assert admin.zcard("killswitch:deleted") == TOMBSTONES_MAX
    awake.set()
    observer.wait_for_gap(after=1)
    store.commit({}, {f"{at}after": b"v"})
    observer.wait_for(f"{at}after", b"v")


def test_a_commit_whose_reply_is_lost_is_unknown_and_has_happened_once(
    rig: RedisContainerRig, store: Store, at: str
) -> None:
    """With the request through and the reply lost nothing is sent again, not even when the network is back."""
    with (
        Forwarder(rig.server) as network,
        # Long enough for the reply to be there, and lost, before the client gives up.
        open_impatient_redis(f"redis://{network.server}", request_timeout_ms=4_000) as hasty,
    ):
        hasty.read(f"{at}k")
        network.swallow_replies.set()
        with pytest.raises(OutcomeUnknown, match="may have happened"):
            hasty.commit({}, {f"{at}k": b"once"})
        assert network.swallowed_bytes > 0
        first = wait_until(lambda: store.read(f"{at}k"), what="the commit having happened")
        assert first is not None
        network.swallow_replies.clear()
        assert hasty.commit({f"{at}k": first.version}, {f"{at}k": b"twice"}) > first.version


def test_a_connection_that_the_server_closed_costs_no_request(store: Store, admin: redis.Redis, at: str) -> None:
    """After a restart or an idle time-out the next write goes over a new connection, and its outcome is known."""
    for number in range(5):
        store.commit({}, {f"{at}k": b"%d" % number})
        assert admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 1
        # The kill is known to this side once its connection can be read.
        wait_until(lambda: not store._transport._idle[0].quiet(), what="the connection being closed")


def test_a_primary_that_becomes_a_replica_answers_neither_reads_nor_writes(
    rig: RedisContainerRig, store: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """READONLY is never a success, and a read from a replica never passes for a linearizable one."""
    lease = store.hold(f"{at}held", b"v", 60_000)
    version = store.commit({}, {f"{at}k": b"v"})
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    calls: list[Callable[[], object]] = [
        lambda: store.read(f"{at}k"),
        lambda: store.scan(at),
        lambda: store.commit({}, {f"{at}k": b"w"}),
        lambda: store.commit({f"{at}k": version}, {}),
        lambda: store.hold(f"{at}other", b"v", 1_000),
        lease.keep_alive,
        lease.release,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"replica"):
            call()
    with capture_logs() as logs:
        wait_until(lambda: any(line["event"] == "watch interrupted" for line in logs), what="the watch noticing it")
    gaps_before = observer.gaps
    admin.execute_command("REPLICAOF", "NO", "ONE")
    observer.wait_for_gap(after=gaps_before)
    assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
    lease.keep_alive()


def test_too_few_replicas_of_a_single_server_confirm_nothing(rig: RedisContainerRig, at: str) -> None:
    """wait_replicas on a server without any: nothing is read, and a write is unknown."""
    with rig.open_with(options="?wait_replicas=1") as store:
        # Half of it is for the replicas, and Redis tells up to 145 ms late that they did not confirm.
        store._transport.request_timeout_ms = 2_000
        with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
            store.read(f"{at}k")
        with pytest.raises(OutcomeUnknown, match="0 of the 1 replicas"):
            store.commit({}, {f"{at}k": b"v"})


def test_every_read_is_confirmed_anew(rig: RedisContainerRig, admin: redis.Redis, at: str) -> None:
    """What replicas confirmed before says nothing about whom they follow now, so a read has to write something."""
    rig.exec("redis-server", "--port", "6380", "--replicaof", "127.0.0.1", "6379", "--save", "", "--dir", "/var/tmp",
             "--repl-diskless-sync-delay", "0", "--pidfile", "/tmp/replica.pid", "--daemonize", "yes")  # fmt: skip
    # What the primary sends by itself would have to be confirmed, too, and hide that the read sends nothing.
    admin.config_set("repl-ping-replica-period", 3_600)
    try:
        with open_impatient_redis(f"redis://{rig.server}?wait_replicas=1", request_timeout_ms=2_000) as store:
            wait_until(lambda: admin.execute_command("WAIT", 1, 100) == 1, within_s=30.0, what="a replica that follows")
            wait_until(lambda: reads(store, f"{at}k"), what="a confirmed read")
            rig.exec("sh", "-c", "kill -STOP $(cat /tmp/replica.pid)")
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
                    store.read(f"{at}k")
            rig.exec("sh", "-c", "kill -CONT $(cat /tmp/replica.pid)")
            wait_until(lambda: reads(store, f"{at}k"), what="a confirmed read")
    finally:
        rig.exec("sh", "-c", "kill -KILL $(cat /tmp/replica.pid)")
        admin.config_set("repl-ping-replica-period", 10)


def test_a_full_redis_refuses_writes_and_can_still_be_read(store: Store, admin: redis.Redis, at: str) -> None:
    """OOM is StoreUnavailable: nothing was written. With noeviction what is there stays there."""
    version = store.commit({}, {f"{at}k": b"v"})
    admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            store.commit({}, {f"{at}k": b"w"})
        with pytest.raises(StoreUnavailable, match="OOM"):
            store.hold(f"{at}held", b"w", 1_000)
        assert store.scan(at) == [Entry(f"{at}k", b"v", version)]
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
    finally:
        admin.config_set("maxmemory", 0)


def test_a_watch_begins_on_a_redis_that_is_empty_and_full(
    store: Store, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """What others keep in it may fill it. A look that gives an empty store its birth goes through all the same."""
    admin.flushall()
    admin.config_set("maxmemory", 1)
    try:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
    finally:
        admin.config_set("maxmemory", 0)
    store.commit({}, {f"{at}k": b"v"})
    observer.wait_for(f"{at}k", b"v")


def test_a_forgotten_script_is_sent_again(store: Store, admin: redis.Redis, at: str) -> None:
    """SCRIPT FLUSH, like a restart, costs a round trip and no request."""
    version = store.commit({}, {f"{at}k": b"v"})
    admin.script_flush()
    assert store.commit({f"{at}k": version}, {f"{at}k": b"w"}) > version
    admin.script_flush()
    assert store.read(f"{at}k") is not None


def test_more_threads_than_connections_wait_for_one_another(store: Store, admin: redis.Redis, at: str) -> None:
    """Connections are bounded, and nobody is refused for it."""
    with ThreadPoolExecutor(40) as pool:
        versions = list(pool.map(lambda number: store.commit({}, {f"{at}{number}": b"v"}), range(400)))
    assert len(set(versions)) == 400
    assert len(store.scan(at)) == 400
    assert int(admin.info("clients")["connected_clients"]) <= 10


def test_the_settings_that_decide_what_is_forgotten_are_told(store: RedisStore, admin: redis.Redis) -> None:
    """For an operator, and for `killswitch doctor`."""
    assert store.server_settings() == {
        "wait_replicas": "0",
        "maxmemory_policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "role": "master",
        "connected_replicas": "0",
        "min_replicas_to_write": "0",
    }
    assert store.server_version() == admin.info("server")["redis_version"]
