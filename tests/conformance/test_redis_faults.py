"""What only Redis does to a store: it forgets everything, evicts, is shared with others, and becomes a replica.

Sentinel is in ``test_redis_sentinel.py``; what every store has to do is in the other files of this folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import trustme
from structlog.testing import capture_logs
from testcontainers.core.container import DockerContainer

from killswitch.stores import Conflict, Entry, LeaseLost, OutcomeUnknown, Store, StoreForbidden, StoreUnavailable
from killswitch.stores._redis_scripts import TOMBSTONES_MAX
from killswitch.stores.redis import RedisStore
from tests.conformance.forwarder import Forwarder
from tests.conformance.rigs.base import PATIENT_MS, ContainerServer, wait_until_serving
from tests.conformance.rigs.network import free_port
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.redis import RedisContainerRig, open_impatient_redis
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 1_000
# For the test to be scheduled on a busy machine; no part of what the store promises.
NOTICE_S = 1.0
OTHER_KEYS = 100_000
MINIMAL_RIGHTS = [
    "resetchannels", "resetkeys", "nocommands", "~killswitch:*", "&killswitch:*",
    "+eval", "+evalsha", "+role", "+subscribe", "+ping", "+publish", "+time",
    "+del", "+hget", "+hset", "+hdel", "+hincrby", "+pexpire", "+persist", "+pttl",
    "+zadd", "+zcard", "+zpopmin", "+zrangebylex", "+zrangebyscore", "+zrem", "+zscore",
]  # fmt: skip


@pytest.fixture(scope="module")
def image() -> str:
    """The image of Redis."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        return choose_image(client, "redis")
    finally:
        client.close()


@pytest.fixture(scope="module")
def rig(image: str) -> Iterator[RedisContainerRig]:
    """A server of this file's own, because what is done to it here others would notice."""
    made = RedisContainerRig(image)
    yield made
    made.close()


@pytest.fixture
def admin(rig: RedisContainerRig) -> Iterator[redis.Redis]:
    """Somebody else's client of the same server."""
    host, _, port = rig.server.partition(":")
    with redis.Redis(host=host, port=int(port)) as client:
        yield client


def open_with(rig: RedisContainerRig, *, path: str = "", login: str = "", options: str = "") -> RedisStore:
    """A patient client by a URL with more in it."""
    return open_impatient_redis(
        f"redis://{login}{rig.server}{path}{options}", request_timeout_ms=PATIENT_MS, alive_every_ms=500
    )


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
    with open_with(rig) as zero, open_with(rig, path="/7") as seven:
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
    with open_with(rig, path="/999") as store, pytest.raises(StoreForbidden, match="out of range"):
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
    lease = store.hold(f"{at}k", b"leased", 300)
    control = store.hold(f"{at}control", b"leased", 300)
    version = store.commit({f"{at}k": lease.version}, {f"{at}k": b"lasting"})
    observer.wait_for(control.key, None)
    assert store.read(f"{at}k") == Entry(f"{at}k", b"lasting", version)
    assert observer.newest(f"{at}k") == Entry(f"{at}k", b"lasting", version)


def test_a_change_without_a_message_is_found_by_looking(
    rig: RedisContainerRig, store: Store, at: str, observer: Observer
) -> None:
    """Redis may drop a message. Here one goes to a channel that nobody listens to."""
    with open_with(rig, path="/0") as speechless:
        speechless._calls._common = (b"killswitch:lost", b"0")
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        for number in range(3):
            speechless.commit({}, {f"{at}k": b"%d" % number})
            observer.wait_for(f"{at}k", b"%d" % number)
        # The next message does not join on to what the watch knows, and is not taken for all that has happened.
        speechless.commit({}, {f"{at}unsaid": b"v"})
        store.commit({}, {f"{at}said": b"v"})
        observer.wait_for(f"{at}said", b"v")
        observer.wait_for(f"{at}unsaid", b"v")
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
    with Forwarder(rig.server) as network, open_impatient_redis(f"redis://{network.server}") as hasty:
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
    with open_with(rig, options="?wait_replicas=1") as store:
        store._transport.request_timeout_ms = 400
        with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
            store.read(f"{at}k")
        with pytest.raises(OutcomeUnknown, match="0 of the 1 replicas"):
            store.commit({}, {f"{at}k": b"v"})


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


def test_a_user_with_the_listed_rights_can_do_everything(
    rig: RedisContainerRig, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """The rights that the documents list are enough, and settings that may not be asked for are left out."""
    admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">se:cr@et", *MINIMAL_RIGHTS)
    with open_with(rig, login="agent:se%3Acr%40et@") as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        lease = store.hold(f"{at}held", b"v", 60_000)
        lease.keep_alive()
        version = store.commit({f"{at}k": None}, {f"{at}k": b"v"})
        observer.wait_for(f"{at}k", b"v")
        store.commit({f"{at}k": version}, {}, [f"{at}k"])
        lease.release()
        observer.wait_for(f"{at}held", None)
        expiring = store.hold(f"{at}expiring", b"v", 100)
        observer.wait_for(expiring.key, None)
        assert store.scan(at) == []
        assert store.server_settings() == {"role": "master", "connected_replicas": "0"}
        assert store.server_version() == ""


@pytest.mark.parametrize("missing", [right for right in MINIMAL_RIGHTS if right[0] in "+~&"])
def test_a_right_that_is_missing_is_forbidden_and_nothing_is_done_by_halves(
    rig: RedisContainerRig, store: Store, admin: redis.Redis, at: str, missing: str
) -> None:
    """Redis checks each command of a script when it comes to it, and undoes nothing; so we check before."""
    rights = [right for right in MINIMAL_RIGHTS if right != missing]
    admin.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">secret", *rights)
    version = store.commit({}, {f"{at}k": b"v", f"{at}gone": b"v"})
    lease = store.hold(f"{at}held", b"v", 60_000)
    before = (store.scan(at), admin.hgetall("killswitch:meta"), admin.dbsize())
    with open_with(rig, login="poor:secret@") as poor:
        if missing in ("+subscribe", "+ping"):
            # Only watches need these.
            assert poor.read(f"{at}k") is not None
        else:
            calls: list[Callable[[], object]] = [
                lambda: poor.commit({f"{at}k": version}, {f"{at}k": b"w"}, [f"{at}gone"]),
                lambda: poor.hold(f"{at}other", b"w", 1_000),
            ]
            for call in calls:
                with pytest.raises(StoreForbidden, match="NOPERM"):
                    call()
    assert (store.scan(at), admin.hgetall("killswitch:meta"), admin.dbsize()) == before
    lease.release()


@pytest.mark.parametrize("login", ["agent:wrong-password@", "nobody:wrong-password@", ""])
def test_a_wrong_password_is_forbidden_and_in_no_message(
    rig: RedisContainerRig, admin: redis.Redis, at: str, login: str
) -> None:
    """Waiting would not help, so it is StoreForbidden; the sentence names the user and never the password."""
    admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">right", *MINIMAL_RIGHTS)
    admin.execute_command("ACL", "SETUSER", "default", "off")
    try:
        with open_with(rig, login=login) as store:
            for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
                with pytest.raises(StoreForbidden) as caught:
                    call()
                told = f"{caught.value!r} {caught.value.__cause__!r} {store!r} {store.address}"
                assert "wrong-password" not in told
                assert (login.partition(":")[0] or "NOAUTH") in told
    finally:
        # Connections that are open keep their rights.
        admin.execute_command("ACL", "SETUSER", "default", "on")


def test_the_settings_that_decide_what_is_forgotten_are_told(store: RedisStore, admin: redis.Redis) -> None:
    """For an operator, and for `killswitch doctor`."""
    assert store.server_settings() == {
        "maxmemory_policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "role": "master",
        "connected_replicas": "0",
        "min_replicas_to_write": "0",
    }
    assert store.server_version() == admin.info("server")["redis_version"]


class TlsRig(ContainerServer):
    """Redis that speaks TLS alone, and asks its clients for a certificate."""

    def __init__(self, image: str, files: Path, authority: trustme.CA) -> None:
        self.port = free_port()
        self.files = files
        authority.cert_pem.write_to_path(files / "ca.pem")
        _write_certificate(authority.issue_cert("127.0.0.1", "redis.example"), files, "server")
        _write_certificate(authority.issue_cert("agent.example"), files, "client")
        super().__init__(
            DockerContainer(image)
            .with_bind_ports(6379, self.port)
            .with_volume_mapping(str(files), "/tls", "ro")
            .with_command(
                "redis-server --port 0 --tls-port 6379 --tls-cert-file /tls/server.pem --tls-key-file /tls/server.key "
                "--tls-ca-cert-file /tls/ca.pem --tls-auth-clients yes --protected-mode no --save '' --dir /tmp"
            )
        )
        try:
            wait_until_serving(self.open, f"redis over TLS at {self.port}")
        except BaseException:
            self.close()
            raise

    def open(self, host: str = "127.0.0.1", request_timeout_ms: int = 2_000, **options: str) -> RedisStore:
        """A client; options of the URL replace the right ones, and '' leaves one out."""
        chosen = {name: str(self.files / file) for name, file in
                  (("ca_file", "ca.pem"), ("cert_file", "client.pem"), ("key_file", "client.key"))}  # fmt: skip
        chosen |= options
        query = "&".join(f"{name}={value}" for name, value in chosen.items() if value)
        return open_impatient_redis(
            f"rediss://{host}:{self.port}?{query}", request_timeout_ms=request_timeout_ms, alive_every_ms=500
        )


def _write_certificate(issued: trustme.LeafCert, files: Path, name: str) -> None:
    with (files / f"{name}.pem").open("wb") as file:
        for part in issued.cert_chain_pems:
            file.write(part.bytes())
    issued.private_key_pem.write_to_path(files / f"{name}.key")
    # The server in the container may be another user than this one.
    (files / f"{name}.key").chmod(0o644)


@pytest.fixture(scope="module")
def tls(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRig]:
    """A server that speaks TLS."""
    files = tmp_path_factory.mktemp("tls")
    files.chmod(0o755)
    made = TlsRig(image, files, trustme.CA())
    yield made
    made.close()


def test_tls_with_a_client_certificate_carries_everything(tls: TlsRig, at: str, observer: Observer) -> None:
    """Requests and watches, with a large value that does not fit one record."""
    with tls.open() as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        large = b"x" * 200_000
        store.commit({f"{at}k": None}, {f"{at}k": large})
        observer.wait_for(f"{at}k", large)
        assert store.address == f"rediss://127.0.0.1:{tls.port}"
    with tls.open("localhost", server_name="redis.example") as store:
        assert store.read(f"{at}k") is not None


def test_a_server_that_cannot_prove_who_it_is_is_refused(tls: TlsRig, at: str, tmp_path: Path) -> None:
    """Another authority, or another name, and nothing is sent."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    wrong: list[RedisStore] = [
        tls.open(ca_file=str(tmp_path / "other.pem")),
        tls.open(server_name="other.example"),
        tls.open(ca_file=""),
        tls.open("localhost"),
    ]
    for store in wrong:
        with store, pytest.raises(StoreUnavailable, match="certificate verify failed"):
            store.commit({}, {f"{at}k": b"v"})
    with tls.open() as store:
        assert store.read(f"{at}k") is None


def test_a_client_without_a_certificate_is_refused(tls: TlsRig, at: str) -> None:
    """With TLS 1.3 the refusal comes after the handshake, and is no unknown outcome all the same."""
    with tls.open(cert_file="", key_file="") as store, pytest.raises(StoreUnavailable, match="did not answer"):
        store.commit({}, {f"{at}k": b"v"})


def test_a_client_in_the_clear_gets_nowhere_with_a_tls_server(tls: TlsRig, at: str) -> None:
    """And is told within its time."""
    with (
        open_impatient_redis(f"redis://127.0.0.1:{tls.port}", request_timeout_ms=2_000) as store,
        pytest.raises(StoreUnavailable, match="did not answer"),
    ):
        store.commit({}, {f"{at}k": b"v"})
