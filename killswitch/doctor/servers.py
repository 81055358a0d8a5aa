"""What the settings and versions of store servers mean for a kill switch. A setting that is not told, or not known
here, leads to no finding."""

from __future__ import annotations

import re
from collections.abc import Mapping

from killswitch.doctor.measurements import StoreSeen
from killswitch.doctor.verdict import Finding, Severity

ETCD = frozenset({"etcd", "etcds", "embedded"})
REDIS = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel"})
ZOOKEEPER = frozenset({"zookeeper", "zookeeper+tls"})

FORGETFUL_ETCD = re.compile(r"^3\.5\.[0-2](?!\d)")
"""github.com/etcd-io/etcd/issues/13766: killed under load, these can forget commits that they had confirmed."""

UNKNOWN = "unknown"
"""How a store begins the value of a setting that it could not find out."""

ETCD_DEFAULT_QUOTA_BYTES = 2 * 1024**3
NEAR_QUOTA = 0.8
MIB = 1024**2

WHY_NOT_ALONE = "while it is down nobody can trade or freeze, and with its disk all is lost"

OK, NOTE, WARNING, FAULT = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.FAULT


def server_findings(seen: StoreSeen) -> list[Finding]:
    """Judge what a server tells of itself, under the names that its store gives it (``server_settings``)."""
    scheme = seen.address.partition("://")[0]
    told = {name: value for name, value in seen.settings.items() if not value.startswith(UNKNOWN)}
    if scheme in ETCD:
        return _etcd(seen.version, told, alone_on_purpose=scheme == "embedded")
    if scheme in REDIS:
        return [*_redis(told), *_replicas(told, with_sentinel=scheme.endswith("+sentinel"))]
    if scheme in ZOOKEEPER:
        return _zookeeper(told)
    return []


def _etcd(version: str, told: Mapping[str, str], *, alone_on_purpose: bool) -> list[Finding]:
    found = []
    if FORGETFUL_ETCD.match(version):
        what = f"this is etcd {version}, which can forget commits that it had confirmed when it is killed under load"
        found.append(Finding(WARNING, "server", what, "a freeze could be lost", "use 3.4, or 3.5.3 and newer"))
    alarms = told.get("alarms", "none")
    if alarms != "none":
        what = f"etcd has raised an alarm ({alarms})"
        why = "with NOSPACE it takes no writes, so no freeze; with CORRUPT its members disagree"
        found.append(Finding(FAULT, "server", what, why, "see `etcdctl alarm list`, mend it, then `alarm disarm`"))
    if _number(told, "voting_members") == 1:
        severity = NOTE if alone_on_purpose else WARNING
        learners = (_number(told, "member_count") or 1) > 1
        what = "etcd has one member that votes" if learners else "etcd has one member only"
        found.append(Finding(severity, "server", what, WHY_NOT_ALONE, "run three for production"))
    if told.get("login_required") == "no":
        what = "etcd asks for no password"
        found.append(Finding(NOTE, "server", what, "whoever reaches it may release what others froze"))
    size_bytes = _number(told, "database_bytes")
    if size_bytes is not None and size_bytes > NEAR_QUOTA * ETCD_DEFAULT_QUOTA_BYTES:
        # A note: etcd does not tell its quota, and one that was raised has room.
        what = f"etcd's database has {size_bytes / MIB:.0f} MiB"
        why = (
            f"at its quota, which it does not tell and which is {ETCD_DEFAULT_QUOTA_BYTES / MIB:.0f} MiB where nobody "
            "has set another, it takes no writes, so no freeze"
        )
        do = "compare it with --quota-backend-bytes; compact and defragment it, or raise the quota"
        found.append(Finding(NOTE, "server", what, why, do))
    return found


def _redis(told: Mapping[str, str]) -> list[Finding]:
    found = []
    policy = told.get("maxmemory_policy", "")
    if policy and policy != "noeviction":
        why = "a full Redis would throw the flag or its history away"
        what = f"Redis has maxmemory-policy {policy}"
        found.append(Finding(FAULT, "server", what, why, "set maxmemory-policy noeviction"))
    append_only, synced = told.get("appendonly", ""), told.get("appendfsync", "")
    if append_only == "no":
        why = "a restart forgets freezes that it had confirmed"
        do = "set appendonly yes and appendfsync always"
        found.append(Finding(FAULT, "server", "Redis has appendonly no", why, do))
    elif synced and synced != "always":
        why = "a machine that crashes forgets freezes that it had confirmed"
        found.append(Finding(WARNING, "server", f"Redis has appendfsync {synced}", why, "set appendfsync always"))
    return found


def _replicas(told: Mapping[str, str], *, with_sentinel: bool) -> list[Finding]:
    """Judge the fence of ``docs/decisions/0014-redis.md``: the primary and those that confirm are a majority."""
    following, fence = _number(told, "connected_replicas"), _number(told, "wait_replicas")
    if following is None or fence is None:
        return []
    found = []
    known = max(following, _number(told, "known_replicas") or 0)
    needed = (known + 1) // 2
    if not with_sentinel and following and not fence:
        what = f"{_replicas_of(following)} this Redis, and wait_replicas is 0"
        why = "if one of them is made primary, the old one goes on renewing the permits of those who still reach it"
        do = f"set wait_replicas={needed} in the store's URL, or name it by its Sentinels"
        found.append(Finding(WARNING, "replicas", what, why, do))
    elif 0 < fence < needed:
        what = f"wait_replicas is {fence}, and of {known + 1} servers the primary and {fence} are no majority"
        why = "an old primary that is cut off together with a replica goes on renewing permits"
        found.append(Finding(WARNING, "replicas", what, why, f"set wait_replicas={needed} in the store's URL"))
    if following < known:
        what = f"{following} of the {known} replicas that the Sentinels know follow the primary"
        do = "start the others, or have the Sentinels forget those that are gone for good: SENTINEL RESET"
        found.append(Finding(WARNING, "replicas", what, "the next failure finds fewer to take over", do))
    confirming = max(fence, _number(told, "min_replicas_to_write") or 0)
    if 0 < confirming == following:
        what = f"{_replicas_of(following)} the primary, and so many must confirm each request"
        why = "when one more is away no permit is renewed and no freeze is taken: every gate closes"
        found.append(Finding(WARNING, "replicas", what, why, "run one replica more than wait_replicas"))
    if found or not fence:
        return found
    what = f"{_replicas_of(following)} the primary; wait_replicas is {fence}, as it should be"
    return [Finding(OK, "replicas", what)]


def _replicas_of(number: int) -> str:
    return "1 replica follows" if number == 1 else f"{number} replicas follow"


def _zookeeper(told: Mapping[str, str]) -> list[Finding]:
    found = []
    if told.get("read_only") == "true":
        what = "the ZooKeeper server is in read-only mode"
        why = "it has lost its quorum: it takes no freeze, and what it shows may be old"
        found.append(Finding(FAULT, "server", what, why, "bring a majority of the servers back"))
    if told.get("mode") == "standalone":
        what = "ZooKeeper has one member only"
        found.append(Finding(WARNING, "server", what, WHY_NOT_ALONE, "run three for production"))
    return found


def _number(told: Mapping[str, str], name: str) -> int | None:
    """The whole number under a name, ``None`` where there is none."""
    text = told.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
