"""The port on etcd, version 3.4 or newer, over gRPC channels of our own.

etcd fits the port closely: a version is the revision that a key was last modified at, a commit is a transaction that
compares those, a lease is a lease. What needed care is in the private modules: whether a failed write can have
happened (``_etcd_channel``, ``_etcd_failures``), watches that notice silence (``_etcd_watch``), certificates
(``_etcd_tls``) and passwords (``_etcd_login``).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pyetcd import etcdrpc

from killswitch import clock
from killswitch.stores._requests import check_commit, check_key, check_ttl, check_value, conflict, named
from killswitch.stores._timing import MILLISECONDS_PER_S, Deadline
from killswitch.stores.etcd import channel as wire
from killswitch.stores.etcd import failures, inspect
from killswitch.stores.etcd.login import TokenKeeper
from killswitch.stores.etcd.watch import (
    PROGRESS_EVERY_MS,
    EtcdWatch,
    WatchSettings,
    key_bytes,
    key_text,
    prefix_range,
)
from killswitch.stores.port import (
    Conflict,
    Entry,
    Guarantees,
    LeaseLost,
    OnChange,
    OnGap,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from killswitch.stores.urls import Login, TlsFiles

# etcd counts leases in whole seconds (up to 1 s more), grants none below 1.5 election time-outs (2 s by default),
# looks every 0.5 s for those that ran out, and then has to agree on the deletion.
LEASE_SLACK_MS = 3_000
# What of the slack remains for looking and agreeing.
LEASE_SWEEP_MS = 1_000

GUARANTEES = Guarantees(
    linearizable_reads=True,
    survives_failover=True,
    atomic_multi_key=True,
    lease_slack_ms=LEASE_SLACK_MS,
    note="After a change of leader, or a restart, etcd counts the whole time to live of every lease anew.",
)


class EtcdLease:
    """A lease of :class:`EtcdStore`."""

    def __init__(self, transport: wire.EtcdTransport, key: str, lease_id: int, version: int) -> None:
        self._transport = transport
        self._key = key
        self._lease_id = lease_id
        self._version = version

    @property
    def key(self) -> str:
        """The leased key."""
        return self._key

    @property
    def version(self) -> int:
        """Version of the leased key as it was created."""
        return self._version

    def keep_alive(self) -> None:
        """Start the time to live anew; raises as the port says.

        :class:`LeaseLost` also when the key is no longer this lease's: deleted, or written over by somebody. The look
        at the key is a linearizable read, so an old leader that is cut off cannot answer for the new one.
        """
        request = etcdrpc.LeaseKeepAliveRequest(ID=self._lease_id)
        look = etcdrpc.RangeRequest(key=key_bytes(self._key), keys_only=True)

        def ask_both(link: wire.Link, how: wire.How) -> tuple[int, Any]:
            # Both at once: one after the other they would not fit into the time over a slow line.
            looking = link.kv.Range.future(look, **how)
            try:
                kept = link.keep_lease_alive(request, **how)
            except wire.RPC_ERROR:
                looking.cancel()
                raise
            return int(kept.TTL), looking.result().kvs

        ttl_s, found = self._transport.ask(ask_both, f"keeping the lease of {self._key!r} alive")
        if ttl_s <= 0:
            raise LeaseLost(f"the lease of {self._key!r} at etcd {self._transport.address} has run out")
        if not found or found[0].mod_revision != self._version:
            done = "written over" if found else "deleted"
            raise LeaseLost(
                f"{self._key!r} at etcd {self._transport.address} was {done}, so its lease holds it no more"
            )

    def release(self) -> None:
        """Delete the key now; a lease that is gone is no error."""
        _revoke(self._transport, self._lease_id, f"releasing the lease of {self._key!r}", self._transport.deadline())


class EtcdStore:
    """The port on an etcd cluster. Opening one sends nothing; the first call connects.

    Args:
        addresses: ``host:port`` of each server, at least one. They are tried in turn.
        request_timeout_ms: time that one call may take, rotation to a second server included.
        backoff_cap_ms: longest pause between two attempts to reconnect.
        progress_every_ms: how often a watch asks for a sign of life; after three times that without one it reconnects.
        login: user and password; a token is fetched with them by the first call that needs one.
        tls: files for TLS, ``None`` for connections in the clear. They are read now, by every watch that connects, and
            by calls after a connection failed and the files have changed.
        now_ns: clock of the time-outs.

    Raises:
        ValueError: no address, or a file of ``tls`` that cannot be used.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        request_timeout_ms: int = 400,
        backoff_cap_ms: int = 1_000,
        progress_every_ms: int = PROGRESS_EVERY_MS,
        login: Login | None = None,
        tls: TlsFiles | None = None,
        now_ns: clock.NowNs = clock.now_ns,
    ) -> None:
        if not addresses:
            raise ValueError("an etcd store needs the address of at least one server")

        def dial(address: str) -> Any:
            return wire.open_channel(
                address, request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms, tls=tls
            )

        tokens = TokenKeeper(login, now_ns) if login else None
        self._scheme = "etcds" if tls else "etcd"
        self._transport = wire.EtcdTransport(
            addresses, request_timeout_ms=request_timeout_ms, dial=dial, tls=tls, tokens=tokens, now_ns=now_ns
        )
        self._watch_settings = WatchSettings(
            addresses=tuple(addresses),
            open_channel=dial,
            backoff_cap_ms=backoff_cap_ms,
            login_timeout_ms=request_timeout_ms,
            tokens=tokens,
            tls=tls is not None,
            progress_every_ms=progress_every_ms,
            now_ns=now_ns,
        )
        self._lock = threading.Lock()
        self._watches: set[EtcdWatch] = set()
        self._closed = False

    @property
    def guarantees(self) -> Guarantees:
        """Declared facts about this store."""
        return GUARANTEES

    @property
    def address(self) -> str:
        """The URL."""
        return f"{self._scheme}://{self._transport.address}"

    def read(self, key: str) -> Entry | None:
        """The newest value, or ``None``; raises as the port says."""
        check_key(key)
        found = self._range(etcdrpc.RangeRequest(key=key_bytes(key)), f"reading {key!r}")
        return found[0] if found else None

    def scan(self, prefix: str) -> list[Entry]:
        """All entries below ``prefix``, sorted by key; raises as the port says."""
        first, end = prefix_range(prefix)
        # etcd returns a range in the order of its keys; UTF-8 keeps the order of code points.
        return self._range(etcdrpc.RangeRequest(key=first, range_end=end), f"scanning {prefix!r}")

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        """Write all or nothing; raises as the port says, and ``ValueError`` for a request that makes no sense."""
        check_commit(expect, puts, deletes, self._transport.address)
        operations = [
            etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key_bytes(key), value=value))
            for key, value in puts.items()
        ]
        operations += [
            etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key_bytes(key)))
            for key in dict.fromkeys(deletes)
        ]
        return self._transact(expect, operations, f"a commit to {named([*puts, *deletes, *expect])}", None)

    def hold(self, key: str, value: bytes, ttl_ms: int) -> EtcdLease:
        """Create ``key`` under a lease; raises as the port says.

        The time to live is rounded up to whole seconds, because etcd has no smaller ones.
        """
        check_key(key)
        check_value(key, value, self._transport.address)
        check_ttl(ttl_ms)
        what = f"holding {key!r}"
        deadline = self._transport.deadline()
        request = etcdrpc.LeaseGrantRequest(TTL=-(-ttl_ms // MILLISECONDS_PER_S))
        # Asking twice is harmless: a lease without keys has no effect, and runs out.
        grant = self._transport.ask(
            lambda link, how: link.lease.LeaseGrant(request, **how),
            what,
            deadline,
        )
        lease_id = int(grant.ID)
        try:
            self._check_granted(grant.TTL * MILLISECONDS_PER_S, ttl_ms)
            put = etcdrpc.PutRequest(key=key_bytes(key), value=value, lease=lease_id)
            version = self._transact({key: None}, [etcdrpc.RequestOp(request_put=put)], what, deadline)
        except (Conflict, StoreForbidden):
            self._drop_unused(lease_id, deadline)
            raise
        return EtcdLease(self._transport, key, lease_id, version)

    def watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> EtcdWatch:
        """Subscribe, on a thread of the watch's own; as the port says."""
        watch = EtcdWatch(self._watch_settings, prefix, on_change, on_gap, on_close=self._forget)
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"the store at {self.address} has been closed")
            self._watches.add(watch)
            watch.start()
        return watch

    def close(self) -> None:
        """End all watches and connections."""
        with self._lock:
            self._closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._transport.close()

    def server_version(self) -> str:
        """Version of the server that answers, such as ``3.5.16``; raises as a read does."""
        return inspect.server_version(self._transport)

    def server_settings(self) -> dict[str, str]:
        """What ``killswitch doctor`` shows of the cluster, as far as it can be had; raises nothing of the port.

        Names: member, leader, raft_term, database_bytes, member_count, voting_members, members, alarms, login_required.
        """
        return inspect.server_settings(self._transport)

    def _range(self, request: Any, what: str, deadline: Deadline | None = None) -> list[Entry]:
        # RangeRequest.serializable stays false: the read goes through the leader's quorum.
        answer = self._transport.ask(lambda link, how: link.kv.Range(request, **how), what, deadline)
        return [Entry(key_text(kv.key), bytes(kv.value), int(kv.mod_revision)) for kv in answer.kvs]

    def _transact(
        self, expect: Mapping[str, int | None], operations: list[Any], what: str, deadline: Deadline | None
    ) -> int:
        """One transaction; returns its revision. When an expectation fails, the versions found come with the answer."""
        request = etcdrpc.TxnRequest(
            compare=[
                etcdrpc.Compare(
                    result=etcdrpc.Compare.EQUAL,
                    target=etcdrpc.Compare.MOD,
                    key=key_bytes(key),
                    # An absent key has modification revision 0.
                    mod_revision=version or 0,
                )
                for key, version in expect.items()
            ],
            success=operations,
            failure=[
                etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key_bytes(key), keys_only=True))
                for key in expect
            ],
        )
        deadline = deadline or self._transport.deadline()
        try:
            answer = self._transport.write_once(lambda link, how: link.kv.Txn(request, **how), what, deadline)
        except wire.DatabaseFull as full:
            self._raise_if_undone(full, expect, operations, what, deadline)
            raise
        if not answer.succeeded:
            found = {
                key_text(kv.key): int(kv.mod_revision)
                for response in answer.responses
                for kv in response.response_range.kvs
            }
            raise conflict(self._transport.address, expect, found)
        return int(answer.header.revision)

    def _raise_if_undone(
        self,
        full: wire.DatabaseFull,
        expect: Mapping[str, int | None],
        operations: list[Any],
        what: str,
        deadline: Deadline,
    ) -> None:
        """Raise :class:`StoreUnavailable` when a read shows that a write that found no space did not happen.

        The server has answered, so the write is no longer under way; and a key that it would have changed still bears
        the version from before, which no write can bring back. An expected absence shows nothing: keys come and go.
        """
        changed = {key_text(change.request_put.key or change.request_delete_range.key) for change in operations}
        key = next((key for key, version in expect.items() if version is not None and key in changed), None)
        if key is None:
            return
        try:
            found = self._range(etcdrpc.RangeRequest(key=key_bytes(key), keys_only=True), what, deadline)
        except StoreError:
            return
        if found and found[0].version == expect[key]:
            raise StoreUnavailable(f"{wire.full_sentence(self._transport.address, what)}; it was not done") from full

    def _check_granted(self, granted_ms: int, ttl_ms: int) -> None:
        """Refuse a lease so much longer than asked for that the declared slack would not hold."""
        if granted_ms + LEASE_SWEEP_MS > ttl_ms + LEASE_SLACK_MS:
            raise StoreForbidden(
                f"etcd at {self._transport.address} grants no lease below {granted_ms} ms, and {ttl_ms} ms were asked "
                "for; lower its --election-timeout, or ask for more"
            )

    def _drop_unused(self, lease_id: int, deadline: Deadline) -> None:
        try:
            _revoke(self._transport, lease_id, "dropping an unused lease", deadline)
        except StoreError:
            # It has no key, and runs out by itself.
            return

    def _forget(self, watch: EtcdWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _revoke(transport: wire.EtcdTransport, lease_id: int, what: str, deadline: Deadline) -> None:
    """Revoke a lease, bounded by ``deadline``; one that is gone already is no error."""
    request = etcdrpc.LeaseRevokeRequest(ID=lease_id)

    def revoke(link: wire.Link, how: wire.How) -> None:
        try:
            link.lease.LeaseRevoke(request, **how)
        except wire.RPC_ERROR as error:
            if not failures.is_not_found(error):
                raise

    transport.ask(revoke, what, deadline)
