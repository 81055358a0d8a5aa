"""What the etcd store makes of each answer: a scripted server says what a real one says only in bad moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from pyetcd import etcdrpc
from pyetcd.etcdrpc.kv_pb2 import KeyValue

from killswitch.stores import OutcomeUnknown, StoreForbidden, StoreUnavailable
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.etcd.watch import prefix_range
from killswitch.stores.urls import Login
from tests.support.waiting import wait_until

Code = grpc.StatusCode


class ScriptedEtcd(  # type: ignore[misc]
    etcdrpc.KVServicer, etcdrpc.LeaseServicer, etcdrpc.WatchServicer, etcdrpc.AuthServicer
):
    """Serves reads, and answers writes, leases, watches and logins as told. Counts what reaches it."""

    def __init__(self) -> None:
        self.fail_reads: tuple[Any, str] | None = None
        self.fail_writes: tuple[Any, str] | None = None
        self.granted_ttl_s: int | None = None
        self.watch_responses: list[Any] = []
        self.reads = 0
        self.writes = 0
        self.watches = 0
        self.watched_at_s: list[float] = []
        self.revoked: list[int] = []
        self.read_when: threading.Event | None = None
        self.allowed_s: list[float] = []
        self.found: Any = etcdrpc.RangeResponse()
        self.good_tokens: set[str] | None = None
        self.refuse_token = (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
        self.fail_logins: tuple[Any, str] | None = None
        self.log_in_when: threading.Event | None = None
        self.logins = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        etcdrpc.add_KVServicer_to_server(self, self._server)
        etcdrpc.add_LeaseServicer_to_server(self, self._server)
        etcdrpc.add_WatchServicer_to_server(self, self._server)
        etcdrpc.add_AuthServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def Range(self, request: Any, context: Any) -> Any:
        self.reads += 1
        self.allowed_s.append(context.time_remaining())
        assert not request.serializable
        if self.read_when:
            self.read_when.wait(10.0)
        if self.fail_reads:
            context.abort(*self.fail_reads)
        self._check_token(context)
        return self.found

    def Txn(self, request: Any, context: Any) -> Any:
        self.writes += 1
        if self.fail_writes:
            context.abort(*self.fail_writes)
        self._check_token(context)
        return etcdrpc.TxnResponse(succeeded=True, header=etcdrpc.ResponseHeader(revision=7))

    def LeaseGrant(self, request: Any, context: Any) -> Any:
        return etcdrpc.LeaseGrantResponse(ID=1, TTL=self.granted_ttl_s or request.TTL)

    def LeaseRevoke(self, request: Any, context: Any) -> Any:
        self.revoked.append(request.ID)
        return etcdrpc.LeaseRevokeResponse()

    def Watch(self, requests: Any, context: Any) -> Any:
        self.watches += 1
        self.watched_at_s.append(time.monotonic())
        if self.good_tokens is not None and _token(context) not in self.good_tokens:
            yield etcdrpc.WatchResponse(
                created=True, canceled=True, cancel_reason="rpc error: ... etcdserver: permission denied"
            )
            return
        yield from self.watch_responses

    def Authenticate(self, request: Any, context: Any) -> Any:
        self.logins += 1
        if self.log_in_when:
            self.log_in_when.wait(10.0)
        if self.fail_logins:
            context.abort(*self.fail_logins)
        return etcdrpc.AuthenticateResponse(token=f"{request.name}.{self.logins}")

    def _check_token(self, context: Any) -> None:
        if self.good_tokens is not None and _token(context) not in self.good_tokens:
            context.abort(*self.refuse_token)


def _token(context: Any) -> str:
    return str(dict(context.invocation_metadata()).get("token", ""))


@pytest.fixture
def servers() -> Iterator[list[ScriptedEtcd]]:
    """Two scripted servers."""
    made = [ScriptedEtcd(), ScriptedEtcd()]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def store(servers: list[ScriptedEtcd]) -> Iterator[EtcdStore]:
    """A client of both, asking the first first. The cap bounds an attempt to connect, and a busy machine needs time."""
    with EtcdStore([server.address for server in servers], request_timeout_ms=5_000, backoff_cap_ms=2_000) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied"),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty"),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large"),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (2 vs. 1)"),
    ],
)
def test_a_refusal_for_good_is_forbidden_and_no_other_server_is_asked(
    store: EtcdStore, servers: list[ScriptedEtcd], code: Any, details: str
) -> None:
    """Trying again elsewhere would be refused as well, or would hide a wrong configuration."""
    servers[0].fail_writes = servers[0].fail_reads = (code, details)
    with pytest.raises(StoreForbidden, match="refuses"):
        store.read("k")
    servers[0].fail_reads = None
    with pytest.raises(StoreForbidden, match="refuses"):
        store.commit({}, {"k": b"v"})
    assert servers[1].reads == servers[1].writes == 0


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
        (Code.UNAVAILABLE, "etcdserver: leader changed"),
        (Code.UNAVAILABLE, ""),
        (Code.UNKNOWN, "raft proposal dropped"),
        (Code.INTERNAL, "stream terminated by RST_STREAM"),
        (Code.ABORTED, ""),
        (Code.CANCELLED, ""),
    ],
)
def test_a_write_that_failed_after_it_was_sent_is_unknown_and_sent_to_nobody_else(
    store: EtcdStore, servers: list[ScriptedEtcd], code: Any, details: str
) -> None:
    """A second server would do it a second time; the next call, however, goes to the second server."""
    servers[0].fail_writes = (code, details)
    with pytest.raises(OutcomeUnknown, match="may have happened"):
        store.commit({}, {"k": b"v"})
    assert [server.writes for server in servers] == [1, 0]
    assert store.commit({}, {"k": b"v"}) == 7
    assert [server.writes for server in servers] == [1, 1]


@pytest.mark.parametrize(
    ("code", "details"),
    [(Code.UNAVAILABLE, "etcdserver: no leader"), (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")],
)
def test_a_write_refused_before_it_was_proposed_goes_to_the_next_server(
    store: EtcdStore, servers: list[ScriptedEtcd], code: Any, details: str
) -> None:
    """It certainly did not happen, so it may be sent again; when nobody takes it, it is unavailable."""
    servers[0].fail_writes = (code, details)
    assert store.commit({}, {"k": b"v"}) == 7
    servers[1].fail_writes = (code, details)
    with pytest.raises(StoreUnavailable):
        store.commit({}, {"k": b"v"})


def test_a_failed_read_asks_every_server_and_is_unavailable(store: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """A read changes nothing, so every failure of it is retried elsewhere, and none is an unknown outcome."""
    servers[0].fail_reads = (Code.UNAVAILABLE, "etcdserver: leader changed")
    assert store.read("k") is None
    servers[1].fail_reads = (Code.UNKNOWN, "something")
    with pytest.raises(StoreUnavailable, match=servers[0].address):
        store.read("k")
    assert servers[1].reads == 2


def test_a_write_goes_out_only_over_a_link_that_has_answered(store: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """Before the first write, and after every failure, a read goes first; in between none does."""
    store.commit({}, {"k": b"v"})
    store.commit({}, {"k": b"v"})
    assert (servers[0].reads, servers[0].writes) == (1, 2)
    servers[0].fail_reads = servers[1].fail_reads = (Code.UNAVAILABLE, "")
    servers[0].fail_writes = (Code.UNAVAILABLE, "")
    with pytest.raises(OutcomeUnknown):
        store.commit({}, {"k": b"v"})
    with pytest.raises(StoreUnavailable):
        store.commit({}, {"k": b"v"})
    assert [server.writes for server in servers] == [3, 0]


def test_a_lease_far_longer_than_asked_for_is_refused(store: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """A server with a long election time-out grants no short leases, which would break the declared slack."""
    servers[0].granted_ttl_s = 8
    with pytest.raises(StoreForbidden, match="grants no lease below 8000 ms, and 2000 ms were asked for"):
        store.hold("k", b"v", 2_000)
    assert servers[0].writes == 0
    assert servers[0].revoked == [1]
    store.hold("k", b"v", 7_000)


FULL = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


def version_found(version: int) -> Any:
    """A read's answer: the key at this version."""
    return etcdrpc.RangeResponse(kvs=[KeyValue(key=b"k", mod_revision=version)])


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        # The first write that fills the database is applied, and answered so.
        (3, version_found(3), StoreUnavailable),
        (3, version_found(4), OutcomeUnknown),
        (3, etcdrpc.RangeResponse(), OutcomeUnknown),
        (None, etcdrpc.RangeResponse(), OutcomeUnknown),
    ],
    ids=["as before", "changed", "gone", "absence proves nothing"],
)
def test_a_write_that_found_no_space_did_not_happen_where_a_read_shows_so(
    store: EtcdStore, servers: list[ScriptedEtcd], expected: int | None, found: Any, error: type[Exception]
) -> None:
    """It is not forbidden, because it passes; the sentence says what to do; no other member is asked to write."""
    servers[0].fail_writes, servers[0].found = FULL, found
    with pytest.raises(error, match=r"out of space.*alarm disarm"):
        store.commit({"k": expected}, {"k": b"v"})
    assert (servers[0].writes, servers[1].writes) == (1, 0)


def test_a_write_that_found_no_space_is_unknown_when_nobody_can_be_asked(
    store: EtcdStore, servers: list[ScriptedEtcd]
) -> None:
    """A failed look proves nothing."""
    store.commit({}, {"k": b"v"})
    servers[0].fail_writes = FULL
    servers[0].fail_reads = servers[1].fail_reads = (Code.UNAVAILABLE, "")
    with pytest.raises(OutcomeUnknown, match="out of space"):
        store.commit({"k": 3}, {"k": b"v"})


LOGIN = Login(username="agent", password="very-secret")


@pytest.fixture
def known(servers: list[ScriptedEtcd]) -> Iterator[EtcdStore]:
    """A client of both with a login."""
    addresses = [server.address for server in servers]
    with EtcdStore(addresses, request_timeout_ms=3_000, backoff_cap_ms=2_000, login=LOGIN) as made:
        yield made


def test_one_login_serves_all_calls_of_all_threads(known: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """Checking a password costs a server some 50 ms."""
    servers[0].good_tokens = {"agent.1"}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: known.read("k"), range(8))) == [None] * 8
    known.commit({}, {"k": b"v"})
    assert (servers[0].logins, servers[1].reads) == (1, 0)


@pytest.mark.parametrize(
    "refusal",
    [
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old"),
        (Code.UNKNOWN, "auth: revision in header is old"),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty"),
    ],
)
def test_a_refused_token_is_renewed_once_and_the_call_made_again(
    known: EtcdStore, servers: list[ScriptedEtcd], refusal: tuple[Any, str]
) -> None:
    """Writes as well, because a refused one did not happen."""
    known.commit({}, {"k": b"v"})
    servers[0].good_tokens, servers[0].refuse_token = {"agent.2", "agent.3"}, refusal
    assert known.commit({}, {"k": b"v"}) == 7
    assert (servers[0].logins, servers[0].writes) == (2, 3)
    servers[0].good_tokens = {"agent.3"}
    assert known.read("k") is None
    assert (servers[0].logins, servers[1].reads) == (3, 0)


def test_a_server_that_refuses_every_token_is_not_asked_without_end(
    known: EtcdStore, servers: list[ScriptedEtcd]
) -> None:
    """Twice at each server, then the call is unavailable: a restart between login and call is no judgement on us."""
    known.commit({}, {"k": b"v"})
    servers[0].good_tokens = servers[1].good_tokens = set()
    with pytest.raises(StoreUnavailable, match="invalid auth token"):
        known.commit({}, {"k": b"v"})
    assert servers[0].writes == 3
    assert servers[1].reads == 2
    assert servers[1].writes == 0
    assert servers[0].logins + servers[1].logins <= 5


def test_a_wrong_password_is_forbidden_and_not_repeated(known: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """Neither at another server, nor in the words of the error."""
    details = "etcdserver: authentication failed, invalid user ID or password"
    servers[0].fail_logins = (Code.INVALID_ARGUMENT, details)
    for call in (lambda: known.read("k"), lambda: known.commit({}, {"k": b"v"})):
        with pytest.raises(StoreForbidden, match="the user name or the password is wrong") as refused:
            call()
        assert "very-secret" not in str(refused.value)
    assert (servers[0].logins, servers[0].reads, servers[0].writes, servers[1].logins) == (2, 0, 0, 0)
    assert "very-secret" not in repr(known)


def test_a_server_that_wants_no_password_gets_none(known: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """As etcd's own client does, so that passwords can be turned on while agents run."""
    servers[0].fail_logins = (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
    servers[0].good_tokens = {""}
    known.commit({}, {"k": b"v"})
    assert known.read("k") is None
    assert servers[0].logins == 1


def test_logging_in_counts_into_the_time_of_a_call(known: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """A server that hangs in a login leaves time for another, and a write that waited for it was never sent."""
    servers[0].log_in_when = threading.Event()
    started_s = time.monotonic()
    known.commit({}, {"k": b"v"})
    assert 0.7 < time.monotonic() - started_s < 3.5
    servers[0].log_in_when.set()
    assert (servers[0].writes, servers[1].writes) == (0, 1)


def test_a_watch_whose_token_is_refused_logs_in_anew(known: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """etcd 3.5.1 says "permission denied" for a token that has run out."""
    known.read("k")
    for server in servers:
        server.good_tokens, server.watch_responses = {"agent.2", "agent.3"}, [etcdrpc.WatchResponse(created=True)]
    gaps = watch_gaps(known)
    wait_until(lambda: gaps, what="a gap")
    assert servers[0].logins + servers[1].logins >= 2


def test_a_user_without_permission_for_the_probe_may_write(store: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """The read that goes before the first write is of a key that few may read; that it is denied is an answer."""
    servers[0].fail_reads = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
    assert store.commit({}, {"k": b"v"}) == 7
    assert (servers[0].reads, servers[0].writes) == (1, 1)


def watch_gaps(store: EtcdStore) -> list[None]:
    """Watch everything; returns the list that grows with each gap."""
    gaps: list[None] = []
    store.watch("", lambda _: None, lambda: gaps.append(None))
    return gaps


@pytest.mark.parametrize(
    "ending",
    [
        etcdrpc.WatchResponse(canceled=True, compact_revision=9),
        etcdrpc.WatchResponse(canceled=True, cancel_reason="etcdserver: no leader"),
        None,
    ],
    ids=["compacted", "cancelled", "stream ends"],
)
def test_a_watch_that_the_server_ends_is_made_again_with_a_gap(
    store: EtcdStore, servers: list[ScriptedEtcd], ending: Any
) -> None:
    """Whatever the reason, the watch comes back, in turn at each server, and says that it may have missed something."""
    for server in servers:
        server.watch_responses = [etcdrpc.WatchResponse(created=True), *([ending] if ending else [])]
    gaps = watch_gaps(store)
    wait_until(lambda: len(gaps) >= 4, what="four gaps")
    assert all(server.watches >= 2 for server in servers)


def test_a_watch_that_is_refused_says_no_gap_and_tries_on(store: EtcdStore, servers: list[ScriptedEtcd]) -> None:
    """A response that is created and cancelled at once, as for lack of permission, is no subscription."""
    for server in servers:
        server.watch_responses = [
            etcdrpc.WatchResponse(created=True, canceled=True, cancel_reason="etcdserver: permission denied")
        ]
    gaps = watch_gaps(store)
    wait_until(lambda: servers[1].watches >= 2, what="further attempts")
    assert gaps == []


def test_a_server_that_drops_every_watch_is_not_asked_without_end(servers: list[ScriptedEtcd]) -> None:
    """Accepted and dropped counts as failed: the pauses grow to the cap."""
    servers[0].watch_responses = [etcdrpc.WatchResponse(created=True)]
    with EtcdStore([servers[0].address], request_timeout_ms=5_000, backoff_cap_ms=60_000) as store:
        watch_gaps(store)
        wait_until(lambda: servers[0].watches >= 5, what="five attempts")
    # The fourth pause is of 200 to 400 ms; without growth it would be of 25 to 50.
    assert servers[0].watched_at_s[4] - servers[0].watched_at_s[3] >= 0.2


@pytest.mark.parametrize(
    ("prefix", "first", "end"),
    [
        ("a/", b"a/", b"a0"),
        ("", b"\0", b"\0"),
        ("é", b"\xc3\xa9", b"\xc3\xaa"),
        ("a\udcff", b"a\xff", b"b"),
        ("\udcff", b"\xff", b"\0"),
    ],
)
def test_the_range_of_a_prefix_ends_before_its_next_neighbour(prefix: str, first: bytes, end: bytes) -> None:
    """The last byte is raised by one; bytes that cannot be raised are dropped first."""
    assert prefix_range(prefix) == (first, end)


def test_an_etcd_store_needs_a_server() -> None:
    """No address is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one"):
        EtcdStore([])


def test_rotation_stays_within_one_request_time(servers: list[ScriptedEtcd]) -> None:
    """Half of the time is for the first server, so that a second can answer in the rest."""
    servers[0].read_when = threading.Event()
    with EtcdStore([server.address for server in servers], request_timeout_ms=2_000) as store:
        assert store.read("k") is None
    servers[0].read_when.set()
    # About 1.0: gRPC rounds what it sends, and the server counts anew. All of the 2.0 would be wrong.
    assert 0.5 < servers[0].allowed_s[0] < 1.5
    assert servers[1].reads == 1
