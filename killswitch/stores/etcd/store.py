"""The port on etcd, version 3.4 or newer, over gRPC channels of our own.

etcd fits the port closely: a version is the revision that a key was last modified at, a commit is a transaction that
compares those, a lease is a lease. What needed care is in the other modules of this folder: whether a failed
write can have happened (``channel``, ``failures``), watches that notice silence (``watch``), certificates and
passwords (``credentials``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from pyetcd import etcdrpc

from killswitch import clock
from killswitch.stores.etcd import channel as wire
from killswitch.stores.etcd import failures
from killswitch.stores.etcd.credentials import TokenKeeper
from killswitch.stores.etcd.watch import PROGRESS_EVERY_MS, EtcdWatch, EtcdWatchSettings, prefix_range
from killswitch.stores.front import LeaseFront, StoreFront, conflict, key_bytes, key_text
from killswitch.stores.port import (
    Conflict,
    Entry,
    Guarantees,
    OnChange,
    OnGap,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from killswitch.stores.timing import MILLISECONDS_PER_S, Deadline
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


ALARM_NAMES = {etcdrpc.AlarmType.Value(name): name for name in etcdrpc.AlarmType.keys()}  # noqa: SIM118 - no mapping

IS_LEARNER = 5
"""Number of the field ``isLearner`` of ``etcdserverpb.Member``, since etcd 3.4."""


class EtcdLease(LeaseFront):
    """A lease of :class:`EtcdStore`."""

    def __init__(self, transport: wire.EtcdTransport, key: str, lease_id: int, version: int) -> None:
        super().__init__(key, version, f"etcd {transport.address}")
        self._transport = transport
        self._lease_id = lease_id

    def _keep_alive(self, what: str) -> str:
        """Lost also when the key is no longer this lease's: deleted, or written over by somebody.

        The look at the key is a linearizable read, so an old leader that is cut off cannot answer for the new one.
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

        ttl_s, found = self._transport.ask(ask_both, what)
        if ttl_s <= 0:
            return "has run out"
        if not found or found[0].mod_revision != self._version:
            return f"holds it no more: it was {'written over' if found else 'deleted'}"
        return ""

    def _release(self, what: str) -> None:
        _revoke(self._transport, self._lease_id, what, self._transport.deadline())


class EtcdStore(StoreFront):
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
        super().__init__(f"{'etcds' if tls else 'etcd'}://{','.join(addresses)}", GUARANTEES)
        self._transport = wire.EtcdTransport(
            addresses, request_timeout_ms=request_timeout_ms, dial=dial, tls=tls, tokens=tokens, now_ns=now_ns
        )
        self._watch_settings = EtcdWatchSettings(
            servers=tuple(addresses),
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=backoff_cap_ms,
            alive_every_ms=progress_every_ms,
            now_ns=now_ns,
            open_channel=dial,
            tokens=tokens,
            tls=tls is not None,
        )

    def _read(self, key: str, what: str) -> Entry | None:
        found = self._range(etcdrpc.RangeRequest(key=key_bytes(key)), what)
        return found[0] if found else None

    def _scan(self, prefix: str, what: str) -> list[Entry]:
        first, end = prefix_range(prefix)
        # etcd returns a range in the order of its keys; UTF-8 keeps the order of code points.
        return self._range(etcdrpc.RangeRequest(key=first, range_end=end), what)

    def _commit(
        self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], what: str
    ) -> int:
        operations = [
            etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key_bytes(key), value=value))
            for key, value in puts.items()
        ]
        operations += [
            etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key_bytes(key))) for key in deletes
        ]
        return self._transact(expect, operations, what, None)

    def _hold(self, key: str, value: bytes, ttl_ms: int, what: str) -> EtcdLease:
        """The time to live is rounded up to whole seconds, because etcd has no smaller ones."""
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

    def _new_watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> EtcdWatch:
        return EtcdWatch(self._watch_settings, prefix, on_change, on_gap, on_close=self._forget)

    def _disconnect(self) -> None:
        self._transport.close()

    def server_version(self) -> str:
        """Version of the server that answers, such as ``3.5.16``; raises as a read does."""
        return str(self._status("its version").version)

    def server_settings(self) -> dict[str, str]:
        """What ``killswitch doctor`` shows of the cluster, in the order in which a person reads it.

        Each fact is asked for by itself, so that one that cannot be had hides no other: it is "unknown: ..." then.

        Names: member, leader, raft_term, database_bytes, member_count, voting_members, members, alarms, login_required.
        """
        told: dict[str, str] = {}
        for facts, names in (
            (self._status_facts, ("member", "leader", "raft_term", "database_bytes")),
            (self._member_facts, ("member_count", "voting_members", "members")),
            (self._alarm_facts, ("alarms",)),
            (self._login_facts, ("login_required",)),
        ):
            try:
                told.update(facts())
            except StoreError as error:
                told.update(dict.fromkeys(names, f"unknown: {error}"))
        return told

    def _status(self, what: str) -> Any:
        return self._transport.ask(
            lambda link, how: link.maintenance.Status(etcdrpc.StatusRequest(), **wire.without_leader(how)), what
        )

    def _status_facts(self) -> dict[str, str]:
        answer = self._status("its status")
        return {
            "member": f"{answer.header.member_id:x}",
            "leader": f"{answer.leader:x}" if answer.leader else "none",
            "raft_term": str(answer.raftTerm),
            "database_bytes": str(answer.dbSize),
        }

    def _member_facts(self) -> dict[str, str]:
        answer = self._transport.ask(
            lambda link, how: link.cluster.MemberList(etcdrpc.MemberListRequest(), **wire.without_leader(how)),
            "the list of its members",
        )
        return {
            "member_count": str(len(answer.members)),
            # A learner copies and has no vote: it keeps no quorum.
            "voting_members": str(sum(not _is_learner(member) for member in answer.members)),
            "members": ", ".join(sorted(_member_name(member) for member in answer.members)),
        }

    def _alarm_facts(self) -> dict[str, str]:
        request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        answer = self._transport.ask(lambda link, how: link.maintenance.Alarm(request, **how), "its alarms")
        raised = sorted(f"{ALARM_NAMES.get(alarm.alarm, alarm.alarm)} at {alarm.memberID:x}" for alarm in answer.alarms)
        return {"alarms": ", ".join(raised) or "none"}

    def _login_facts(self) -> dict[str, str]:
        """Log in as nobody: etcd says first whether it knows of passwords. Its own question for this is not in 3.4."""

        def log_in_as_nobody(link: wire.Link, how: wire.How) -> bool:
            try:
                link.auth.Authenticate(etcdrpc.AuthenticateRequest(), **how)
            except wire.RPC_ERROR as error:
                if failures.says_auth_is_off(error):
                    return False
                if not failures.refuses_nobody(error):
                    raise
            return True

        required = self._transport.ask(log_in_as_nobody, "whether it wants passwords")
        return {"login_required": "yes" if required else "no"}

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


def _member_name(member: etcdrpc.Member) -> str:
    learner = ", learner" if _is_learner(member) else ""
    # A member that never started has no name.
    return f"{member.name or 'not started'} ({member.ID:x}{learner})"


def _is_learner(member: etcdrpc.Member) -> bool:
    """Whether a member has no vote. The stubs are older than learners, so it is among the fields they do not know."""
    unknown = UnknownFieldSet(member)
    fields = (unknown[number] for number in range(len(unknown)))
    return any(field.field_number == IS_LEARNER and bool(field.data) for field in fields)
