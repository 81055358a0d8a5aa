"""What the Redis store makes of errors, silence and broken connections: did it happen, and was it sent only once?"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from killswitch import clock
from killswitch.stores import OutcomeUnknown, Store, StoreForbidden, StoreUnavailable
from killswitch.stores.redis.link import Link, LinkFailed, LinkSettings
from killswitch.stores.redis.store import RedisStore
from killswitch.stores.timing import Deadline
from killswitch.stores.urls import parse_store_url
from tests.support.scripted_redis import MASTER, NOTHING, OK, PONG, REPLICA, ScriptedRedis
from tests.support.waiting import wait_until

COMMITTED = b"*2\r\n:1\r\n$1\r\n7\r\n"
TIMEOUT_MS = 400
NOTICE_S = 0.6


@pytest.fixture
def server() -> Iterator[ScriptedRedis]:
    """A scripted server."""
    with ScriptedRedis() as made:
        yield made


@pytest.fixture
def second() -> Iterator[ScriptedRedis]:
    """Another one."""
    with ScriptedRedis() as made:
        yield made


def open_store_at(url: str, request_timeout_ms: int = 5_000) -> RedisStore:
    """A client by URL."""
    return RedisStore(parse_store_url(url), request_timeout_ms=request_timeout_ms, backoff_cap_ms=100)


@pytest.fixture
def store(server: ScriptedRedis) -> Iterator[RedisStore]:
    """A patient client of the scripted server."""
    with open_store_at(f"redis://{server.server}") as made:
        yield made


def scripts(server: ScriptedRedis) -> int:
    """How many scripts were asked for after a greeting."""
    return sum(name in (b"EVAL", b"EVALSHA") for name in server.requests)


def commit(store: Store) -> int:
    """A write."""
    return store.commit({}, {"k": b"v"})


@pytest.mark.parametrize(
    "error",
    [
        b"-NOPERM this user has no permissions to run the 'evalsha' command",
        b"-NOAUTH Authentication required.",
        b"-WRONGPASS invalid username-password pair or user is disabled.",
        b"-DENIED Redis is running in protected mode",
        b"-WRONGTYPE Operation against a key holding the wrong kind of value script: f, on @user_script:3.",
        b"-ERR The user executing the script can't run this command or subcommand script: f, on @user_script:1.",
        b"-ERR Error running script (call to f_1): @user_script:1: -WRONGTYPE Operation against a key",
        b"-CROSSSLOT Keys in request don't hash to the same slot",
        b"-MOVED 1 127.0.0.1:1",
        b"-ERR unknown command 'EVALSHA', with args beginning with: ",
    ],
)
def test_what_will_not_change_by_itself_is_forbidden(store: RedisStore, server: ScriptedRedis, error: bytes) -> None:
    """Reads and writes alike, asked for once."""
    server.answer = error + b"\r\n"
    with pytest.raises(StoreForbidden, match="refuses"):
        store.read("k")
    with pytest.raises(StoreForbidden, match="refuses"):
        commit(store)
    assert scripts(server) == 2


@pytest.mark.parametrize(
    "error",
    [
        b"-READONLY You can't write against a read only replica. script: f, on @user_script:7.",
        b"-ERR Error running script (call to f_1): @user_script:7: -READONLY You can't write against a replica.",
        b"-LOADING Redis is loading the dataset in memory",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        b"-NOREPLICAS Not enough good replicas to write.",
        b"-OOM command not allowed when used memory > 'maxmemory'.",
        b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        b"-TRYAGAIN Multiple keys request during rehashing of slot",
        b"-CLUSTERDOWN The cluster is down",
    ],
)
def test_what_was_refused_undone_is_unavailable(store: RedisStore, server: ScriptedRedis, error: bytes) -> None:
    """Redis says these before a script begins, or at its first write; a write is no unknown outcome."""
    server.answer = error + b"\r\n"
    with pytest.raises(StoreUnavailable, match="refuses"):
        store.read("k")
    with pytest.raises(StoreUnavailable, match="refuses"):
        commit(store)
    assert scripts(server) == 2


def test_an_error_that_nobody_foresaw_makes_a_write_unknown(store: RedisStore, server: ScriptedRedis) -> None:
    """A script that failed midway has written what it had written."""
    server.answer = b"-ERR user_script:9: attempt to index a nil value script: f, on @user_script:9.\r\n"
    with pytest.raises(OutcomeUnknown, match=r"attempt to index.*may have happened"):
        commit(store)
    with pytest.raises(StoreUnavailable, match="attempt to index"):
        store.read("k")
    assert scripts(server) == 2


def test_a_server_that_is_not_primary_any_more_is_asked_once_more_over_a_new_connection(
    store: RedisStore, server: ScriptedRedis
) -> None:
    """A refused write did not happen, so it may go to whoever is primary now; when nobody is, it is unavailable."""
    server.answer = COMMITTED
    assert commit(store) == 7
    server.answer = b"-READONLY You can't write against a read only replica.\r\n"
    with pytest.raises(StoreUnavailable):
        commit(store)
    assert (scripts(server), server.greetings) == (3, 2)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_write_without_an_answer_is_unknown_and_sent_once(
    store: RedisStore, server: ScriptedRedis, used_before: bool
) -> None:
    """The connection breaks after the request: whether on a new one or an old one, nobody sends it again."""
    if used_before:
        server.answer = COMMITTED
        commit(store)
    before = scripts(server)
    server.answer = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OutcomeUnknown, match="may have happened"):
        commit(store)
    assert scripts(server) == before + 1


def test_a_read_without_an_answer_is_asked_again_once_over_a_new_connection(
    store: RedisStore, server: ScriptedRedis
) -> None:
    """The connection may have died unseen. A new one that dies too is answer enough."""
    assert store.read("k") is None
    server.answer = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        store.read("k")
    assert (scripts(server), server.greetings) == (3, 2)


def test_while_a_server_hangs_only_the_first_write_is_unknown(server: ScriptedRedis) -> None:
    """The second would need a new connection, which nobody greets; it is not sent at all."""
    with open_store_at(f"redis://{server.server}", TIMEOUT_MS) as store:
        server.answer = COMMITTED
        commit(store)
        server.answer, server.greets = NOTHING, False
        for expected in (OutcomeUnknown, StoreUnavailable, StoreUnavailable):
            started_s = time.monotonic()
            with pytest.raises(expected, match="timed out"):
                commit(store)
            assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
        assert scripts(server) == 2


def test_connections_that_were_idle_during_a_failure_are_not_used_again(
    store: RedisStore, server: ScriptedRedis
) -> None:
    """Each would make one more write unknown on a server that hangs."""
    everybody_in = threading.Barrier(3)

    def answer_together(connection: socket.socket) -> None:
        everybody_in.wait(10.0)
        connection.sendall(COMMITTED)

    server.answer = answer_together
    threads = [threading.Thread(target=commit, args=(store,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.greetings == 3
    server.answer = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OutcomeUnknown):
        commit(store)
    server.answer = COMMITTED
    assert commit(store) == 7
    assert server.greetings == 4


def test_a_connection_that_was_closed_while_idle_makes_no_write_unknown(
    store: RedisStore, server: ScriptedRedis
) -> None:
    """Its end can be read before anything is sent over it."""
    server.answer = COMMITTED
    commit(store)
    server.drop_all()
    wait_until(lambda: not store._transport._idle[0].quiet(), what="the end of the connection having arrived")
    assert commit(store) == 7
    assert (scripts(server), server.greetings) == (2, 2)


def test_an_answer_that_comes_in_drops_does_not_stretch_the_time(server: ScriptedRedis) -> None:
    """Each byte arrives well within any time-out of its own; all of them together do not."""
    stop = threading.Event()

    def trickle(connection: socket.socket) -> None:
        for byte in b"*3\r\n:1\r\n$100\r\n" + b"x" * 100:
            if stop.wait(0.05):
                return
            connection.sendall(bytes([byte]))

    server.answer = trickle
    with open_store_at(f"redis://{server.server}", TIMEOUT_MS) as store:
        for call, expected in ((lambda: store.read("k"), StoreUnavailable), (lambda: commit(store), OutcomeUnknown)):
            started_s = time.monotonic()
            with pytest.raises(expected, match="timed out"):
                call()
            assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
    stop.set()


def test_a_name_that_is_not_resolved_in_time_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's look-up may take half a minute; the call does not, and calls do not pile up threads."""
    answer = threading.Event()
    before = threading.active_count()

    def hang(*args: object, **kwargs: object) -> list[object]:
        answer.wait(30.0)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with open_store_at("redis://redis.example:6379", TIMEOUT_MS) as store:
        for _ in range(3):
            started_s = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"redis\.example:6379 did not answer"):
                commit(store)
            assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
        assert threading.active_count() <= before + 1
    answer.set()
    wait_until(lambda: threading.active_count() <= before, what="the end of the look-up")


def test_a_name_that_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for a server that is down."""

    def fail(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with open_store_at("redis://redis.example") as store, pytest.raises(StoreUnavailable, match="cannot be resolved"):
        store.read("k")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"\r\n"])
def test_something_that_is_not_redis_is_unavailable(server: ScriptedRedis, answer: bytes) -> None:
    """And nothing is written to it."""
    server.role = answer
    with open_store_at(f"redis://{server.server}", TIMEOUT_MS) as store, pytest.raises(StoreUnavailable):
        commit(store)
    assert scripts(server) == 0


def test_closing_ends_calls_that_wait(server: ScriptedRedis) -> None:
    """From another thread, at once, and truthfully about what had been sent."""
    store = open_store_at(f"redis://{server.server}", 60_000)
    arrived = threading.Event()
    server.answer = lambda _: arrived.set()
    failures: list[BaseException] = []

    def wait_for_answer() -> None:
        try:
            commit(store)
        except BaseException as error:
            failures.append(error)

    waiting = threading.Thread(target=wait_for_answer)
    waiting.start()
    assert arrived.wait(10.0)
    store.close()
    waiting.join(10.0)
    assert not waiting.is_alive()
    assert [type(error) for error in failures] == [OutcomeUnknown]


def test_a_link_is_not_made_twice(server: ScriptedRedis) -> None:
    """redis-py connects by itself when a connection is gone, and would send the request over the new one."""
    link = Link(server.server, LinkSettings())
    deadline = Deadline(5_000, clock.now_ns)
    link.connect(deadline)
    assert link.request(deadline, (b"ROLE",)) != []
    link._connection.disconnect()
    with pytest.raises(LinkFailed) as caught:
        link.request(deadline, (b"ROLE",))
    assert not caught.value.sent
    link.close()
    assert server.requests == [b"ROLE"]


def test_a_link_that_is_broken_off_before_it_connects_does_not_connect(server: ScriptedRedis) -> None:
    """Whoever closes a store is not overtaken by a connection that is just being made."""
    link = Link(server.server, LinkSettings())
    link.break_off()
    with pytest.raises(LinkFailed, match="broken off"):
        link.connect(Deadline(5_000, clock.now_ns))


@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR unknown command 'AUTH', with args beginning with: 'me' 'se-cret' \r\n",
        b"-WRONGPASS invalid username-password pair se-cret\r\n",
        b"-ERR AUTH se-cret called without any password configured\r\n",
    ],
)
def test_a_password_is_in_no_error_not_even_when_the_server_quotes_it(server: ScriptedRedis, refusal: bytes) -> None:
    """A server that does not know a command repeats its arguments."""
    server.auth = refusal
    with open_store_at(f"redis://me:se-cret@{server.server}") as store:
        with pytest.raises(StoreForbidden, match="password of user 'me' is not accepted") as caught:
            commit(store)
        error: BaseException | None = caught.value
        while error is not None:
            assert "se-cret" not in f"{error} {error!r}"
            error = error.__cause__ or error.__context__
        assert "se-cret" not in f"{store!r} {vars(store)!r} {store.address}"


def sentinel_names(server: ScriptedRedis) -> bytes:
    """What a Sentinel says of ``server``."""
    host, _, port = server.server.partition(":")
    return b"*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(host), host.encode(), len(port), port.encode())


def test_a_sentinel_that_names_a_replica_is_not_the_last_word(server: ScriptedRedis, second: ScriptedRedis) -> None:
    """In a failover they may disagree; the server's own word counts, and another Sentinel is asked."""
    with ScriptedRedis() as replica, ScriptedRedis() as primary:
        replica.role = REPLICA
        primary.answer = COMMITTED
        server.sentinel, second.sentinel = sentinel_names(replica), sentinel_names(primary)
        with open_store_at(f"redis+sentinel://{server.server},{second.server}/main?wait_replicas=0") as store:
            assert commit(store) == 7
        assert (scripts(replica), scripts(primary)) == (0, 1)


def test_when_another_server_is_primary_no_connection_to_the_old_one_is_used(
    server: ScriptedRedis, second: ScriptedRedis
) -> None:
    """A new connection that leads elsewhere is news for all that are open."""
    with ScriptedRedis() as old, ScriptedRedis() as new:
        server.sentinel = sentinel_names(old)
        both_in = threading.Barrier(2)

        def answer_together(connection: socket.socket) -> None:
            both_in.wait(10.0)
            connection.sendall(OK)

        old.answer = answer_together
        with open_store_at(f"redis+sentinel://{server.server}/main?wait_replicas=0") as store:
            threads = [threading.Thread(target=store.read, args=("k",)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.sentinel = sentinel_names(new)
            release = threading.Event()
            # One of the two old connections is busy, the other one gets a fellow that leads to the new primary.
            old.answer = lambda connection: (release.wait(10.0), connection.sendall(OK))
            busy = [threading.Thread(target=store.read, args=("k",)) for _ in range(2)]
            for thread in busy:
                thread.start()
            wait_until(lambda: scripts(old) == 4, what="both old connections being busy")
            store.read("k")
            assert scripts(new) == 1
            release.set()
            for thread in busy:
                thread.join()
            store.read("k")
        assert (scripts(old), scripts(new)) == (4, 2)


def test_a_replica_that_takes_writes_is_no_primary(server: ScriptedRedis) -> None:
    """`replica-read-only no` lets the probe through; ROLE does not."""
    server.role = REPLICA
    with open_store_at(f"redis://{server.server}") as store:
        for call in (lambda: commit(store), lambda: store.read("k")):
            with pytest.raises(StoreUnavailable, match="is a replica"):
                call()
        server.role = MASTER
        server.answer = COMMITTED
        assert commit(store) == 7


def test_too_few_replicas_make_a_write_unknown_and_a_conflict_unavailable(server: ScriptedRedis) -> None:
    """What was certainly not written is no unknown outcome, and a conflict at a deposed primary may be none."""
    with open_store_at(f"redis://{server.server}?wait_replicas=2") as store:
        server.answer = COMMITTED
        with pytest.raises(OutcomeUnknown, match="only 0 of the 2 replicas"):
            commit(store)
        server.answer = b"*2\r\n:0\r\n$1\r\n5\r\n"
        with pytest.raises(StoreUnavailable, match="only 0 of the 2 replicas"):
            store.commit({"k": 7}, {"k": b"v"})
        server.answer = OK
        with pytest.raises(StoreUnavailable, match="only 0 of the 2 replicas"):
            store.read("k")


# Birth, version, no gap, no more, and nothing that has changed.
NO_NEWS = b"*5\r\n:1\r\n$1\r\n5\r\n$1\r\n5\r\n:0\r\n:0\r\n"


def test_a_subscription_that_falls_silent_is_noticed_although_questions_are_answered(server: ScriptedRedis) -> None:
    """Two connections, two lives: a firewall may forget the quiet one, and with it every message."""
    server.answer = NO_NEWS
    gaps: list[None] = []
    with (
        RedisStore(
            parse_store_url(f"redis://{server.server}"),
            request_timeout_ms=5_000,
            backoff_cap_ms=100,
            look_every_ms=50,
        ) as store,
        capture_logs() as logs,
    ):
        store.watch("", lambda _: None, lambda: gaps.append(None))
        wait_until(lambda: server.requests.count(b"PING") >= 3, what="signs of life being asked for")
        # A stall of this machine is a silence, too, and costs a gap.
        gaps_before = len(gaps)
        server.ping = NOTHING
        wait_until(lambda: any(line["event"] == "watch silent" for line in logs), what="the silence being noticed")
        server.ping = PONG
        wait_until(lambda: len(gaps) > gaps_before, what="another subscription")


@pytest.mark.parametrize(
    "answer", [b"-ERR a fault\r\n", b"*1\r\n:1\r\n", b"+what?\r\n", b"*5\r\n:1\r\n$1\r\n5\r\n$1\r\nx\r\n:0\r\n:0\r\n"]
)
def test_a_watch_goes_on_for_ever_whatever_a_server_answers(server: ScriptedRedis, answer: bytes) -> None:
    """A thread that died of an answer that nobody foresaw would be a watch that says nothing for ever."""
    gaps: list[None] = []
    server.answer = answer
    with open_store_at(f"redis://{server.server}") as store:
        store.watch("", lambda _: None, lambda: gaps.append(None))
        wait_until(lambda: server.requests.count(b"SUBSCRIBE") >= 3, what="further attempts")
        assert gaps == []
        server.answer = NO_NEWS
        wait_until(lambda: len(gaps) == 1, what="the subscription")


def calls_in_time(store: RedisStore) -> dict[str, Callable[[], object]]:
    """Reads and writes."""
    return {"read": lambda: store.read("k"), "commit": lambda: commit(store)}


def test_a_server_whose_queue_of_connections_is_full_is_unavailable_in_time() -> None:
    """The kernel does not even answer the first packet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        with open_store_at(f"redis://127.0.0.1:{port}", TIMEOUT_MS) as store:
            for call in calls_in_time(store).values():
                started_s = time.monotonic()
                with pytest.raises(StoreUnavailable, match="timed out"):
                    call()
                assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
        for filler in fillers:
            filler.close()


def test_renewed_tls_files_are_taken_up_by_the_next_connection(tmp_path: Path) -> None:
    """An agent runs for months, and certificates do not: who changes the files restarts nothing."""
    ca = tmp_path / "ca.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def exchange_the_authority() -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(ca))
        authority.issue_cert("127.0.0.1").configure_cert(context)

    exchange_the_authority()
    with ScriptedRedis(context) as secure, open_store_at(f"rediss://{secure.server}?ca_file={ca}") as store:
        assert store.read("k") is None
        exchange_the_authority()
        secure.drop_all()
        assert store.read("k") is None
        ca.write_text("half of a fi")
        secure.drop_all()
        with pytest.raises(StoreUnavailable, match=f"ca_file {ca} cannot be used"):
            store.read("k")
