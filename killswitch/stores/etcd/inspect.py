"""What a person wants to know of an etcd cluster before it is trusted: members, leader, size, alarms, passwords.

Each fact is asked for by itself, so that one that cannot be had hides no other.
"""

from __future__ import annotations

from google.protobuf.unknown_fields import UnknownFieldSet
from pyetcd import etcdrpc

from killswitch.stores.etcd import channel as wire
from killswitch.stores.etcd import failures
from killswitch.stores.port import StoreError

ALARM_NAMES = {etcdrpc.AlarmType.Value(name): name for name in etcdrpc.AlarmType.keys()}  # noqa: SIM118 - no mapping

IS_LEARNER = 5
"""Number of the field ``isLearner`` of ``etcdserverpb.Member``, since etcd 3.4."""


def server_version(transport: wire.EtcdTransport) -> str:
    """Version of the server that answers; raises as a read does."""
    answer = transport.ask(
        lambda link, how: link.maintenance.Status(etcdrpc.StatusRequest(), **wire.without_leader(how)), "its version"
    )
    return str(answer.version)


def server_settings(transport: wire.EtcdTransport) -> dict[str, str]:
    """Facts by name, in the order in which a person reads them; "unknown: ..." where one cannot be had."""
    told: dict[str, str] = {}
    for facts, names in (
        (_status, ("member", "leader", "raft_term", "database_bytes")),
        (_members, ("member_count", "voting_members", "members")),
        (_alarms, ("alarms",)),
        (_login_required, ("login_required",)),
    ):
        try:
            told.update(facts(transport))
        except StoreError as error:
            told.update(dict.fromkeys(names, f"unknown: {error}"))
    return told


def _status(transport: wire.EtcdTransport) -> dict[str, str]:
    answer = transport.ask(
        lambda link, how: link.maintenance.Status(etcdrpc.StatusRequest(), **wire.without_leader(how)), "its status"
    )
    return {
        "member": f"{answer.header.member_id:x}",
        "leader": f"{answer.leader:x}" if answer.leader else "none",
        "raft_term": str(answer.raftTerm),
        "database_bytes": str(answer.dbSize),
    }


def _members(transport: wire.EtcdTransport) -> dict[str, str]:
    answer = transport.ask(
        lambda link, how: link.cluster.MemberList(etcdrpc.MemberListRequest(), **wire.without_leader(how)),
        "the list of its members",
    )
    return {
        "member_count": str(len(answer.members)),
        # A learner copies and has no vote: it keeps no quorum.
        "voting_members": str(sum(not _is_learner(member) for member in answer.members)),
        # A member that never started has no name.
        "members": ", ".join(sorted(_named(member) for member in answer.members)),
    }


def _named(member: etcdrpc.Member) -> str:
    learner = ", learner" if _is_learner(member) else ""
    return f"{member.name or 'not started'} ({member.ID:x}{learner})"


def _is_learner(member: etcdrpc.Member) -> bool:
    """Whether a member has no vote. The stubs are older than learners, so it is among the fields they do not know."""
    unknown = UnknownFieldSet(member)
    fields = (unknown[number] for number in range(len(unknown)))
    return any(field.field_number == IS_LEARNER and bool(field.data) for field in fields)


def _alarms(transport: wire.EtcdTransport) -> dict[str, str]:
    request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
    answer = transport.ask(lambda link, how: link.maintenance.Alarm(request, **how), "its alarms")
    raised = sorted(f"{ALARM_NAMES.get(alarm.alarm, alarm.alarm)} at {alarm.memberID:x}" for alarm in answer.alarms)
    return {"alarms": ", ".join(raised) or "none"}


def _login_required(transport: wire.EtcdTransport) -> dict[str, str]:
    """Log in as nobody: etcd says first whether it knows of passwords. Its own question for this is not in 3.4."""

    def log_in_as_nobody(link: wire.Link, how: wire.How) -> bool:
        try:
            link.auth.Authenticate(etcdrpc.AuthenticateRequest(), **how)
        except wire.RPC_ERROR as error:
            if failures.says_auth_is_off(error):
                return False
            if failures.refuses_nobody(error):
                return True
            raise
        return True

    required = transport.ask(log_in_as_nobody, "whether it wants passwords")
    return {"login_required": "yes" if required else "no"}
